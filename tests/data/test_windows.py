import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from foveal.data import windows
from foveal.data.images import ImageError, read_image
from foveal.data.windows import PictureFile

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (70, 90, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (70, 90, 4), dtype=np.uint8)
GREY = RNG.integers(0, 65536, (70, 90), dtype=np.uint16)
FILES = {
    "rgb.png": lambda path: Image.fromarray(RGB).save(path),
    "alpha.png": lambda path: Image.fromarray(ALPHA).save(path),
    "grey.png": lambda path: Image.fromarray(RGB[..., 0]).save(path),
    "grey_alpha.png": lambda path: Image.fromarray(ALPHA[..., :2], "LA").save(path),
    "palette.png": lambda path: Image.fromarray(RGB).quantize(16).save(path),
    "sixteen.png": lambda path: Image.fromarray(GREY).save(path),
    "photo.jpg": lambda path: Image.fromarray(RGB).save(path, quality=90),
    "strips.tif": lambda path: tifffile.imwrite(path, RGB, rowsperstrip=8, photometric="rgb", compression="zlib"),
    "one_strip.tif": lambda path: tifffile.imwrite(path, RGB, photometric="rgb"),
    "tiles.tif": lambda path: tifffile.imwrite(path, RGB, tile=(16, 32), photometric="rgb", compression="zlib"),
    "geo.tif": lambda path: tifffile.imwrite(  # tags of its own, as satellite pictures have
        path, RGB, photometric="rgb", extratags=[(33550, "d", 3, (1.0, 1.0, 0.0), True), (65001, "H", 1, 7, True)]
    ),
    "big_endian.tif": lambda path: tifffile.imwrite(path, GREY, byteorder=">"),
}
BOXES = [(0, 1, 0, 90), (0, 20, 5, 8), (18, 19, 80, 90), (19, 40, 3, 60), (39, 41, 0, 2), (60, 70, 10, 90)]


def saved(folder, name):
    path = folder / name
    FILES[name](path)
    return path


@pytest.mark.parametrize("name", FILES)
def test_windows_are_parts_of_the_picture(tmp_path, name):
    path = saved(tmp_path, name)
    whole, picture = read_image(path), PictureFile(path)
    assert (picture.height, picture.width) == whole.shape[:2]
    for _ in range(2):  # every pass starts at the top again
        for box, window in zip(BOXES, picture.windows(BOXES), strict=True):
            top, bottom, left, right = box
            want = whole[top:bottom, left:right]
            assert window.dtype == np.uint8
            assert window.shape == want.shape
            assert np.abs(window.astype(int) - want).max() <= (1 if "alpha" in name else 0), box


def test_big_tiff(tmp_path):
    tifffile.imwrite(tmp_path / "big.tif", RGB, photometric="rgb", bigtiff=True)
    assert np.array_equal(next(PictureFile(tmp_path / "big.tif").windows([(0, 70, 0, 90)])), RGB)


@pytest.mark.parametrize("name", ["rgb.png", "tiles.tif"])
@pytest.mark.parametrize("box", [(3, 3, 0, 5), (0, 71, 0, 5), (0, 5, -1, 5), (0, 5, 80, 91), (0, 5, 5, 5)])
def test_boxes_must_lie_in_the_picture(tmp_path, name, box):
    with pytest.raises(ValueError, match=r"box .* within 70 × 90"):
        next(PictureFile(saved(tmp_path, name)).windows([box]))


def test_no_box_above_the_one_before(tmp_path):
    with pytest.raises(ValueError, match="begin at row 20 or below: sort"):
        list(PictureFile(saved(tmp_path, "rgb.png")).windows([(20, 30, 0, 5), (19, 30, 0, 5)]))


def test_only_what_was_asked_for_is_held(tmp_path):
    """The rows that windows share are kept, those above are not."""
    seen = []
    for window in PictureFile(saved(tmp_path, "rgb.png")).windows([(0, 10, 0, 90), (8, 14, 0, 90), (50, 52, 0, 90)]):
        seen.append(window.base.shape[0] if window.base is not None and window.base.ndim == 3 else len(window))
    assert max(seen) <= 10


BROKEN = {
    "missing.png": (lambda path: None, "unreadable file"),
    "folder.png": (lambda path: path.mkdir(), "not a file"),
    "text.png": (lambda path: path.write_text("no picture"), "not an image"),
    "drawing.svg": (lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"), "not an image"),
    "head.png": (lambda path: path.write_bytes(b"\x89PNG\r\n"), "truncated or corrupt"),
    "five.tif": (
        lambda path: tifffile.imwrite(path, np.zeros((9, 9, 5), np.uint8), photometric="rgb"),
        "unknown colours",
    ),
    "float.tif": (lambda path: tifffile.imwrite(path, np.zeros((9, 9), np.float32)), "unknown colours"),
    "cmyk.jpg": (lambda path: Image.new("CMYK", (9, 9)).save(path), "unknown colours"),
    "turned.jpg": (lambda path: Image.fromarray(RGB).save(path, exif=turned(6)), "turned"),
}


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_by_windows(tmp_path, name):
    path = tmp_path / name
    write, reason = BROKEN[name]
    write(path)
    with pytest.raises(ImageError, match=reason) as caught:
        PictureFile(path)
    assert caught.value.reason == reason
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rgb.png", "photo.jpg", "strips.tif", "tiles.tif"])
def test_truncated_files_are_never_half_read(tmp_path, name):
    path = saved(tmp_path, name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(ImageError, match="truncated or corrupt"):
        list(PictureFile(path).windows([(0, 10, 0, 90), (10, 70, 0, 90)]))


def test_limits(tmp_path, monkeypatch):
    path = saved(tmp_path, "rgb.png")
    with pytest.raises(ImageError, match="90 × 70 is more than max_pixels=6299"):
        PictureFile(path, max_pixels=6299)
    with pytest.raises(ValueError, match="max_pixels=0"):
        PictureFile(path, max_pixels=0)
    scans = tmp_path / "scans.jpg"
    Image.fromarray(RGB).save(scans, progressive=True)
    PictureFile(scans)
    monkeypatch.setattr(windows, "MAX_PIXELS", 1000)  # beyond it, a picture that decodes as a whole is refused
    PictureFile(path)
    with pytest.raises(ImageError, match="progressive"):
        PictureFile(scans)


def test_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyvips", None)
    with pytest.raises(ImportError, match=r"pip install 'foveal\[large\]'"):
        PictureFile(saved(tmp_path, "rgb.png"))
