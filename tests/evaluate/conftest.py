"""Tiny checkpoints, saved once for all tests."""

import pytest

from .tiny import save_clip


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="session")
def clip(clip_folder):
    from foveal.evaluate.models import open_model

    return open_model(str(clip_folder))
