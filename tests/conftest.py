"""The real parts behind the demo, loaded once for all tests that look with them."""

import pytest


@pytest.fixture(scope="session")
def eyes():
    from foveal.demo.eyes import Eyes

    return Eyes.load()


@pytest.fixture(scope="session")
def zero_shot(eyes):
    from foveal.demo.zero_shot import ZeroShot

    return ZeroShot.load(eyes.vision)


@pytest.fixture(scope="session")
def cat():
    return _photo("skimage/chelsea")


@pytest.fixture(scope="session")
def church():
    return _photo("mvtbdata/church")


def _photo(key: str):
    from foveal.data.photos import photos

    return next(photo.images[0] for photo in photos() if photo.key == key)
