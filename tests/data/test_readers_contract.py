"""What every reader promises of every bad input: read rightly, or counted under a name and skipped; raised if strict.

A new reader adds a function to `READERS`.
"""

import io
import json
import logging
import pickle
import re
import resource
import socket
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.data.coco import CocoCaptions, CocoInstances
from foveal.data.faults import SampleError
from foveal.data.folder import ImageFolder
from foveal.data.huggingface import HuggingFaceDataset
from foveal.data.llava_json import LlavaJson
from foveal.data.webdataset import Shards

from .pictures import animated, bomb, encoded, palette, ramp, rotated, truncated

MALFORMED = object()  # the image is sound, what is said about it is not
MISSING = None


def corner(*expected):
    def check(image):
        assert np.abs(image[0, 0].astype(int) - expected).max() < 20

    return check


def stands(image):
    assert image.shape == (32, 16, 3)
    assert image[0].max() < 30
    assert image[-1].min() > 225


READ = {
    "CMYK": (encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), corner(255, 0, 0)),
    "16-bit": (encoded(Image.new("I;16", (3, 2), 257 * 100)), corner(100, 100, 100)),
    "palette": (palette(False), lambda image: corner(0, 0, 0)(image[:, ::-1])),
    "transparent palette": (palette(True), lambda image: corner(255, 255, 255)(image[:, ::-1])),
    "animated": (animated(), corner(255, 0, 0)),
    "rotated": (rotated(6), stands),
    "1-bit": (encoded(Image.new("1", (3, 2), 1)), corner(255, 255, 255)),
    "float": (encoded(Image.new("F", (3, 2), 0.5), "TIFF"), corner(128, 128, 128)),
}
FAULTS = {
    "truncated": (truncated(), "truncated or corrupt"),
    "zero bytes": (b"", "empty file"),
    "not an image": (b"<html>404</html>", "not an image"),
    "bomb": (bomb(), "too many pixels"),
    "big": (bomb(9000), "too many pixels"),
    "not a number": (encoded(Image.new("F", (3, 2), float("nan")), "TIFF"), "unknown value range"),
    "missing": (MISSING, "missing file"),
    "malformed": (MALFORMED, "malformed record"),
}


def put(folder, contents):
    """Image files 0.png, 1.png …; a missing one is not there."""
    for place, content in enumerate(contents):
        if content is not MISSING:
            (folder / f"{place}.png").write_bytes(encoded(ramp()) if content is MALFORMED else content)


def write(folder, content):
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json"


def image_folder(folder, contents, **options):
    put(folder, contents)
    for place, content in enumerate(contents):
        if content is MISSING:
            (folder / f"{place}.png").symlink_to("nowhere")
        if content is MALFORMED:
            (folder / f"{place}.txt").write_bytes(b"\xff")
    return ImageFolder(folder, **options)


def coco(reader):
    def build(folder, contents, **options):
        put(folder, contents)
        images = [{"id": place, "file_name": f"{place}.png"} for place in range(len(contents))]
        wrong = [{"image_id": place} for place, content in enumerate(contents) if content is MALFORMED]
        return reader(write(folder, {"images": images, "annotations": wrong, "categories": []}), folder, **options)

    return build


def llava_json(folder, contents, **options):
    put(folder, contents)
    roles = ["nobody" if content is MALFORMED else "human" for content in contents]
    records = [
        {"id": str(place), "image": f"{place}.png", "conversations": [{"from": role, "value": "<image>"}]}
        for place, role in enumerate(roles)
    ]
    return LlavaJson(write(folder, records), **options)


def shards(folder, contents, **options):
    """One sample a shard."""
    for place, content in enumerate(contents):
        files = {"1.json": b"{"} if content is MALFORMED else {"1.png": content, "1.txt": b"x"}
        if content is MISSING:
            continue
        with tarfile.open(folder / f"{place}.tar", "w") as archive:
            for name, data in files.items():
                header = tarfile.TarInfo(name)
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
    return Shards([folder / f"{place}.tar" for place in range(len(contents))], **options)


def hugging_face(folder, contents, **options):
    import datasets

    stored = [encoded(ramp()) if content is MALFORMED else content for content in contents]
    images = [
        {"bytes": None, "path": str(folder / "none.png")} if s is MISSING else {"bytes": s, "path": None}
        for s in stored
    ]
    turns = [[{"role": "x" if content is MALFORMED else "user", "content": "<image>"}] for content in contents]
    source = datasets.Dataset.from_dict({"image": images, "turns": turns})
    return HuggingFaceDataset(source.cast_column("image", datasets.Image()), conversation="turns", **options)


READERS = {
    "folder": image_folder,
    "coco captions": coco(CocoCaptions),
    "coco instances": coco(CocoInstances),
    "llava": llava_json,
    "webdataset": shards,
    "huggingface": hugging_face,
}


def reason_of(reader, case, reason):
    """A reader's own words where it cannot have the general ones."""
    own = {
        ("folder", "malformed"): "unreadable caption",
        ("webdataset", "missing"): "missing shard",
    }
    return own.get((reader, case), reason)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("case", READ)
@pytest.mark.parametrize("reader", READERS)
def test_unusual_images_are_read_rightly(tmp_path, reader, case):
    content, check = READ[case]
    source = READERS[reader](tmp_path, [content, encoded(ramp())], strict=True)
    unusual, usual = source
    check(unusual.image)
    np.testing.assert_array_equal(usual.image, ramp())
    assert source.faults.total == 0


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.parametrize("reader", READERS)
def test_faults_are_counted_named_and_skipped_or_raised(tmp_path, reader, case, caplog):
    content, reason = FAULTS[case]
    reason = reason_of(reader, case, reason)
    sound = encoded(ramp())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = READERS[reader](tmp_path, [sound, content, sound])
    with caplog.at_level(logging.WARNING):
        samples = list(source)
    assert len(samples) == 2
    for sample in samples:  # the others are themselves: nothing was put in the place of the broken one
        np.testing.assert_array_equal(sample.image, ramp())
    assert len({sample.key for sample in samples}) == 2
    assert source.faults.counts == {reason: 1}
    (key,) = source.faults.keys[reason]
    assert key not in {sample.key for sample in samples}
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith(f"1 of 3 samples skipped: 1 × {reason} ({key})")
    source.faults.strict = True
    with pytest.raises(SampleError) as caught:
        list(source)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        with pytest.raises(SampleError):
            source[1]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes; a bomb would take 30 GB


@pytest.mark.parametrize("reader", READERS)
def test_keys_are_stable_and_readers_picklable(tmp_path, reader):
    source = READERS[reader](tmp_path, [encoded(ramp()), truncated(), encoded(ramp())])
    keys = [sample.key for sample in source]
    assert [sample.key for sample in source] == keys
    assert [sample.key for sample in pickle.loads(pickle.dumps(source))] == keys


def test_the_page_about_readers_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8").split("## The world")[0]
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "docs/data.md", "exec"), {})
    said = capsys.readouterr().out
    assert "1 of 4 samples skipped: 1 × empty file (dogs/broken.jpg)" in said
    first, second = (set(re.findall(r"'(\d+)'", half)) for half in said.splitlines()[-1].split("] ["))
    assert len(first) == len(second) == 8
    assert not first & second
