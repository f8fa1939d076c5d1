"""A user's own files, and parts that are loaded once instead of at every call."""

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Folder of a tiny random CLIP."""
    from evaluate.tiny import save_clip

    return save_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    """Folder of a tiny random LLaVA."""
    from evaluate.tiny import save_llava

    return save_llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture
def loaded(monkeypatch, eyes, zero_shot):
    """The commands get the parts at once."""
    from foveal.demo.eyes import Eyes
    from foveal.demo.zero_shot import ZeroShot

    monkeypatch.setattr(Eyes, "load", lambda progress=None: eyes)
    monkeypatch.setattr(ZeroShot, "load", lambda vision=None: zero_shot)


@pytest.fixture
def album(tmp_path, cat, church, monkeypatch):
    """A folder with a cat (a photo that was taken upside down), a church below, a broken file and a text."""
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "album"
    (folder / "trip").mkdir(parents=True)
    upside_down = Image.Exif()
    upside_down[0x0112] = 3
    Image.fromarray(cat).rotate(180).save(folder / "cat.jpg", exif=upside_down, quality=95)
    Image.fromarray(church).save(folder / "trip" / "church.webp")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "notes.txt").write_text("no picture")
    return folder
