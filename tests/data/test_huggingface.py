import pickle
import socket
import subprocess
import sys

import numpy as np
import pytest

from foveal.data.faults import SampleError
from foveal.data.record import Turn

from .pictures import encoded, ramp, truncated

datasets = pytest.importorskip("datasets")

from foveal.data import huggingface  # noqa: E402 - needs the library
from foveal.data.huggingface import HuggingFaceDataset  # noqa: E402


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def table(images=None, **columns):
    images = [encoded(ramp()), encoded(ramp())] if images is None else images
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    content = {
        "image": [content if content is None else {"bytes": content, "path": None} for content in images],
        "label": [0, 1] * (len(images) // 2),
        "caption": [f"text {row}" for row in range(len(images))],
        **columns,
    }
    inferred = datasets.Dataset.from_dict({name: content[name] for name in content if name not in features}).features
    return datasets.Dataset.from_dict(content, features=datasets.Features({**features, **inferred}))


def test_columns_become_fields():
    turns = [[{"role": "user", "content": "<image>Hm?"}, {"role": "assistant", "content": "Yes."}]] * 2
    source = table(messages=turns, name=["x", "x"], several=[["a", "b"], []])
    reader = HuggingFaceDataset(source, caption="several", label="label", conversation="messages", key="name")
    first, second = reader
    np.testing.assert_array_equal(first.image, ramp())
    assert (first.key, second.key) == ("x", "x@1")
    assert (first.captions, second.captions) == (("a", "b"), ())
    assert (first.labels, second.labels) == (("cat",), ("dog",))
    assert first.conversation == (Turn("user", "<image>Hm?"), Turn("assistant", "Yes."))
    assert HuggingFaceDataset(source, caption="caption")[1].captions == ("text 1",)
    assert HuggingFaceDataset(source, image=None, caption="caption")[1].images == ()
    assert len(pickle.loads(pickle.dumps(reader))) == 2


def test_classes():
    names = datasets.ClassLabel(names=["cat", "dog"])
    source = table(
        label=[1, -1, None], images=[encoded(ramp())] * 3, several=[[0, 1], [-1], [None, 1]], plain=[7, 8, 9]
    )
    reader = HuggingFaceDataset(source, label="label")
    assert [sample.labels for sample in reader] == [("dog",), (), ()]  # -1 and null are how "not told" is stored
    listed = HuggingFaceDataset(source.cast_column("several", datasets.List(names)), label="several")
    assert [sample.labels for sample in listed] == [("cat", "dog"), (), ("dog",)]
    assert HuggingFaceDataset(source, label="plain")[0].labels == ("7",)
    renamed = source.cast_column("plain", datasets.Value("int64"))
    few = renamed.features.copy()
    few["plain"] = names
    with pytest.raises(SampleError, match="row 0: label 7 is none of the 2 classes"):
        HuggingFaceDataset(datasets.Dataset(renamed.data, info=datasets.DatasetInfo(features=few)), label="plain")[0]


def test_order_of_the_dataset_is_kept():
    shuffled = table().select([1, 0])
    assert [sample.caption for sample in HuggingFaceDataset(shuffled, caption="caption")] == ["text 1", "text 0"]


def test_lists_paths_and_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(ramp()))
    path = str(tmp_path / "a.png")
    content = {"paths": [path], "bytes": [encoded(ramp(3, 3))], "both": [[path, path]]}
    source = datasets.Dataset.from_dict(content)
    assert HuggingFaceDataset(source, image="paths")[0].image.shape == ramp().shape
    assert HuggingFaceDataset(source, image="bytes")[0].image.shape == (3, 3, 3)
    assert len(HuggingFaceDataset(source, image="both")[0].images) == 2
    listed = source.cast_column("both", datasets.List(datasets.Image()))
    assert len(HuggingFaceDataset(listed, image="both")[0].images) == 2


@pytest.mark.filterwarnings("ignore")
def test_saved_to_disk(tmp_path):
    table().save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table(), "test": table().select([1])}).save_to_disk(str(tmp_path / "splits"))
    assert len(HuggingFaceDataset(tmp_path / "one")) == 2
    assert len(HuggingFaceDataset(str(tmp_path / "splits"), split="test")) == 1
    with pytest.raises(ValueError, match=r"split=None: choose one of train, test"):
        HuggingFaceDataset(tmp_path / "splits")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"other' was not written by save_to_disk"):
        HuggingFaceDataset(tmp_path / "other")


def test_a_bad_image_is_skipped_where_the_library_stops():
    source = table([encoded(ramp()), truncated(), None, encoded(ramp())])
    with pytest.raises((OSError, ValueError)):
        [row["image"] for row in source]
    reader = HuggingFaceDataset(source)
    assert [sample.key for sample in reader] == ["0", "3"]
    assert reader.faults.counts == {"truncated or corrupt": 1, "missing image": 1}
    with pytest.raises(SampleError, match="row 1: cannot read image of"):
        reader[1]


@pytest.mark.parametrize(
    ("columns", "options", "reason"),
    [
        ({"caption": [3, 4]}, {"caption": "caption"}, "malformed record"),
        ({"turns": [[], []]}, {"conversation": "turns"}, "malformed record"),
        (
            {"turns": [None, [{"role": "user", "content": "no mark"}]]},
            {"conversation": "turns"},
            "marks differ from images",
        ),
    ],
)
def test_malformed_rows(columns, options, reason):
    with pytest.raises(SampleError) as caught:
        HuggingFaceDataset(table(**columns), **options)[1]
    assert caught.value.reason == reason


def test_arguments():
    with pytest.raises(ValueError, match=r"image='img': no such column; there are image, label, caption"):
        HuggingFaceDataset(table(), image="img")
    with pytest.raises(ValueError, match="got an empty one"):
        HuggingFaceDataset(table().select([]))
    with pytest.raises(ValueError, match="got IterableDataset"):
        HuggingFaceDataset(table().to_iterable_dataset())


def test_a_hub_name_is_downloaded_only_when_asked_for(monkeypatch):
    with pytest.raises(ValueError, match=r"'owner/name' is no folder: .*from_hub to download"):
        HuggingFaceDataset("owner/name")
    asked = []
    monkeypatch.setattr(huggingface.datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or table())
    assert len(HuggingFaceDataset.from_hub("owner/name", split="train", revision="v1", caption="caption")) == 2
    assert asked == [(("owner/name",), {"split": "train", "revision": "v1"})]


def test_without_the_library_one_line_says_what_to_install():
    script = "import sys; sys.modules['datasets'] = None; import foveal.data.huggingface"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("pip install 'foveal[datasets]'")
