"""Folders of pictures: what is cached, skipped and found."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.demo.search import PictureIndex, _cache_file, _digest, index_folder


@pytest.fixture
def folder(tmp_path, monkeypatch, cat, church):
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "pictures"
    (place / "below").mkdir(parents=True)
    Image.fromarray(cat).save(place / "b.png")
    Image.fromarray(church).save(place / "below" / "a.png")
    return place


def test_finds_by_text(folder, zero_shot):
    index = index_folder(folder, zero_shot)
    assert index.search(zero_shot, "a cat", 1)[0][0].name == "b.png"
    found = index.search(zero_shot, "church", 9)
    assert [path.name for path, _ in found] == ["a.png", "b.png"]
    assert found[0][1] > 1 > found[1][1] >= 0


def test_the_second_time_comes_from_the_cache_with_the_same_numbers(folder, zero_shot, monkeypatch):
    first = index_folder(folder, zero_shot)
    (folder / "b.png").rename(folder / "c.png")
    monkeypatch.setattr(zero_shot, "logits", None)  # calling it would fail
    second = index_folder(folder, zero_shot)
    assert (first.fresh, second.fresh) == (2, 0)
    assert [path.name for path in second.paths] == ["a.png", "c.png"]
    assert torch.equal(second.logits, first.logits[[1, 0]])


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00v\x00{'desc"])
def test_a_damaged_cache_is_mended(folder, zero_shot, damage):
    first = index_folder(folder, zero_shot)
    file = _cache_file(_digest(folder / "b.png"))
    file.write_bytes(damage)
    again = index_folder(folder, zero_shot)
    assert again.fresh == 1
    assert torch.allclose(again.logits, first.logits, atol=1e-3)
    assert np.load(file).shape == (1000,)
    assert not list(file.parent.glob(".*"))


def test_unreadable_files_are_skipped_and_told(folder, zero_shot):
    (folder / "empty.jpg").touch()
    (folder / "broken.png").write_bytes((folder / "b.png").read_bytes()[:3000])
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    index = index_folder(folder, zero_shot)
    assert len(index.paths) == 2
    told = " ".join(map(str, index.skipped.values()))
    assert len(index.skipped) == 4
    assert all(name in told for name in ("empty.jpg", "broken.png", "pipe.png", "gone.jpg"))


def test_a_cache_that_cannot_be_written(folder, zero_shot, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path / "file" / "cache"))
    assert len(index_folder(folder, zero_shot).paths) == 2


def test_more_than_a_batch_and_progress(folder, zero_shot):
    for number in range(17):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(folder / f"plain{number}.png")
    told = []
    index = index_folder(folder, zero_shot, lambda what, done, total: told.append((done, total)))
    assert told == [(done, 19) for done in range(19)]
    assert len(index.paths) == len(index.logits) == index.fresh == 19


def test_nothing_there_and_bad_input(tmp_path, zero_shot):
    assert index_folder(tmp_path, zero_shot).search(zero_shot, "cat") == []
    with pytest.raises(ValueError, match="folder"):
        index_folder(tmp_path / "missing", zero_shot)
    with pytest.raises(ValueError, match="k=0"):
        PictureIndex([], torch.empty(0, 1000), [], 0).search(zero_shot, "cat", 0)
