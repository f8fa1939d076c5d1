"""Every photograph is where it is said to be, decodes, and is described and attributed."""

import socket

import numpy as np
import pytest

from foveal.data import bundled
from foveal.data.photos import PHOTOS, photos
from foveal.data.text import singular


def test_files_exist_and_keys_are_unique():
    for photo in PHOTOS:
        folder = {"skimage": "data", "mvtbdata": "images"}[photo.package]
        assert (bundled.package_folder(photo.package, "") / folder / photo.file).is_file(), photo.file
    assert len({(photo.package, photo.file.split("/")[-1].split(".")[0]) for photo in PHOTOS}) == len(PHOTOS) >= 25


def test_they_decode_without_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for sample in photos()[::4]:
        height, width, channels = sample.image.shape
        assert min(height, width) >= 200
        assert channels == 3
        assert sample.image.dtype == np.uint8
        assert sample.image.std() > 10  # a picture, not a blank


def test_descriptions():
    sample = photos()[0]
    assert sample.key == "skimage/chelsea"
    assert "cat" in sample.meta["nouns"]
    assert "CC0" in sample.meta["licence"]
    assert sample.meta["source"] == "scikit-image: skimage/data/chelsea.png"
    for photo in PHOTOS:
        assert photo.note
        assert photo.licence
        nouns = photo.nouns.split()
        assert len(nouns) == len(set(nouns)) >= 2, photo.file
        assert [singular(noun) for noun in nouns if noun != "people"] == [n for n in nouns if n != "people"], photo.file


def test_a_missing_package_is_named_with_its_remedy():
    with pytest.raises(FileNotFoundError, match="no_such_package is missing; run: pip install no-such"):
        bundled.package_folder("no_such_package", "no-such")
