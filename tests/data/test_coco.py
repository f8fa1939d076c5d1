import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from foveal.data.coco import CocoCaptions, CocoInstances, CocoReader, mask_of, run_lengths
from foveal.data.faults import SampleError
from foveal.data.images import ImageError

from .pictures import HEIGHT, WIDTH, encoded, ramp, rotated


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "images" / name).write_bytes(encoded(ramp()))
    return tmp_path


def write(folder, annotations, images=None, **more):
    content = {
        "images": images or [{"id": 10 + n, "file_name": f"{name}.png"} for n, name in enumerate("abc")],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
        **more,
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path, folder / "images"


def instance(**changes):
    return {"id": 1, "image_id": 10, "category_id": 7, "bbox": [1, 2, 3, 2.5], "iscrowd": 0} | changes


def test_captions(folder):
    texts = [(11, " a dog. "), (10, "one"), (10, "two")]
    reader = CocoCaptions(*write(folder, [{"image_id": image, "caption": text} for image, text in texts]))
    assert [sample.key for sample in reader] == ["a.png", "b.png", "c.png"]
    assert [sample.captions for sample in reader] == [("one", "two"), ("a dog.",), ()]
    assert reader[1].meta == {"image_id": 11}
    assert len(pickle.loads(pickle.dumps(reader))) == 3


def test_instances(folder):
    square = [2, 1, 6, 1, 6, 4, 2, 4]
    runs = {"size": [HEIGHT, WIDTH], "counts": [0, 6, 42]}
    entries = [
        instance(segmentation=[square]),
        instance(category_id=1, segmentation=runs),
        instance(iscrowd=1, segmentation=runs),
        instance(image_id=11),
    ]
    reader = CocoInstances(*write(folder, entries))
    dog, cat = reader[0].regions
    assert (dog.box, dog.label) == ((1, 2, 4, 4.5), "dog")
    assert np.argwhere(dog.mask).tolist() == [[row, column] for row in (1, 2, 3) for column in (2, 3, 4, 5)]
    assert cat.mask[:, 0].all()
    assert cat.mask.sum() == HEIGHT
    assert reader[0].labels == ("dog", "cat")
    assert reader[0].meta["crowd"] == [{"box": (1, 2, 4, 4.5), "label": "dog"}]
    assert reader[1].regions[0].mask is None
    assert reader[2].regions == ()
    assert CocoInstances(*write(folder, entries), masks=False)[0].regions[0].mask is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bbox": [1, 2, 3]}, "not enough values"),
        ({"bbox": [1, 2, 0, 3]}, "width > 0"),
        ({"bbox": [1, 2, "x", 3]}, "could not convert"),
        ({"bbox": [1, 2, float("nan"), 3]}, "width > 0"),
        ({"bbox": None}, "NoneType"),
        ({"category_id": 3}, "category_id 3 is not among"),
        ({"category_id": []}, "unhashable"),
        ({"segmentation": [[1, 2, 3, 4]]}, "polygon"),
        ({"segmentation": [[1, 2, 3, 4, 5, "x"]]}, "could not convert"),
        ({"segmentation": [[1, 2, 3, 4, 5, 10**400]]}, "too large"),
        ({"segmentation": {"size": [2, 2], "counts": [4]}}, "mask of size"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [47]}}, "do not add up"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-1, 49]}}, "do not add up"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [10**30]}}, "too large"),
        ({"segmentation": {"counts": [48]}}, "'size' is missing"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "é"}}, "compressed"),
    ],
)
def test_malformed_annotations(folder, changes, reason):
    reader = CocoInstances(*write(folder, [instance(**changes)]))
    with pytest.raises(SampleError, match=rf"a\.png: malformed annotation: .*{reason}") as caught:
        reader[0]
    assert caught.value.reason == "malformed record"
    assert [sample.key for sample in reader] == ["b.png", "c.png"]


def test_polygons_far_outside_are_clipped_and_cost_nothing():
    far = 1e15
    assert mask_of([[-far, -far, far, -far, far, far, -far, far]], 5, 7).all()
    assert not mask_of([[far, far, far + 9, far, far, far + 9]], 5, 7).any()


def test_boxes_of_an_unrotated_image_are_not_put_on_the_upright_one(folder):
    (folder / "images" / "a.png").write_bytes(rotated(6, "PNG"))
    images = [{"id": 10, "file_name": "a.png", "height": 16, "width": 32}, {"id": 11, "file_name": "b.png"}]
    reader = CocoInstances(*write(folder, [instance()], images))
    with pytest.raises(SampleError, match="32 × 16 pixels, its annotation says 16 × 32"):
        reader[0]
    assert len(list(reader)) == 1
    assert reader.faults.counts == {"size differs from annotation": 1}


def test_images_that_cannot_be_used(folder):
    names = [{"id": 1}, {"file_name": "a.png"}, "a.png", {"id": 2, "file_name": "../annotations.json"}]
    names += [{"id": 3, "file_name": "/etc/passwd"}, {"id": 4, "file_name": "none.png"}]
    names += [{"id": 5, "file_name": "b.png"}, {"id": 6, "file_name": "b.png"}]
    reader = CocoCaptions(*write(folder, [], names), max_fraction=1.0)
    assert [sample.key for sample in reader] == ["b.png", "b.png@7"]
    assert reader.faults.counts == {"malformed record": 3, "outside the folder": 2, "missing file": 1}
    with pytest.raises(ImageError, match="outside the folder"):
        reader[3]


def test_annotations_of_no_listed_image(folder, caplog):
    entries = [{"image_id": 10, "caption": "one"}, {"image_id": 99, "caption": "lost"}, "broken"]
    reader = CocoCaptions(*write(folder, entries))
    assert "2 annotations name no listed image, first {'image_id': 99" in caplog.text
    assert reader[0].captions == ("one",)
    with pytest.raises(ValueError, match="2 annotations name no listed image"):
        CocoCaptions(*write(folder, entries), strict=True)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"images": []}', '{"images": [], "annotations": []}', "[" * 99999]
)
def test_not_coco(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json"):
        CocoCaptions(tmp_path / "x.json", tmp_path)
    with pytest.raises(ValueError, match=r"none\.json: No such file"):
        CocoInstances(tmp_path / "none.json", tmp_path)


def compress(runs):
    """COCO's compressed text, written from the description of the format."""
    text = ""
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        while True:
            bits, value = value & 31, value >> 5
            done = value == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if done else 32))
            if done:
                break
    return text


def runs_of(mask):
    flat = np.concatenate([[False], mask.T.ravel(), [~mask.T.ravel()[-1]]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], edges])).tolist()


def test_run_lengths_written_by_pycocotools():
    """``pycocotools.mask.encode`` 2.0 gave these texts."""
    small = np.zeros((6, 9), dtype=bool)
    small[1:4, 2:7] = small[5, 8] = small[0, 0] = True
    np.testing.assert_array_equal(mask_of({"size": [6, 9], "counts": "01<2G0000000:N"}, 6, 9), small)


@given(arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_masks_survive_both_kinds_of_run_lengths(mask):
    runs = runs_of(mask)
    assert run_lengths(compress(runs)) == runs
    for counts in (runs, compress(runs)):
        np.testing.assert_array_equal(mask_of({"size": list(mask.shape), "counts": counts}, *mask.shape), mask)


@given(st.text(max_size=30))
def test_any_text_is_a_mask_or_an_error(text):
    try:
        mask = mask_of({"size": [5, 7], "counts": text}, 5, 7)
    except ValueError:
        return
    assert mask.shape == (5, 7)


@given(st.integers(3, 12), st.integers(0, 2**32 - 1))
def test_polygon_area(corners, seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    x, y = 60 + 45 * np.cos(angles), 50 + 45 * np.sin(angles)
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    mask = mask_of([np.stack([x, y], axis=1).ravel().tolist()], 100, 120)
    assert abs(int(mask.sum()) - area) < 40 + 0.02 * area


def test_the_shared_reader_alone_cannot_be_made(folder):
    with pytest.raises(TypeError, match="annotate"):
        CocoReader(*write(folder, []))
