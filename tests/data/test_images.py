import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, features

from foveal.data.images import FORMATS, MAX_PIXELS, ImageError, file_in, image_files, read_image

from .pictures import HEIGHT, WIDTH, animated, bomb, encoded, palette, ramp, rotated, truncated

LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "PPM": {}, "WEBP": {"lossless": True}}
ENCODED = {kind: encoded(ramp(32, 40), kind, **LOSSLESS.get(kind, {})) for kind in FORMATS}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_its_pixels(kind):
    image = read_image(ENCODED[kind])
    assert (image.shape, image.dtype) == ((32, 40, 3), np.uint8)
    assert image.flags.writeable
    assert image.flags.c_contiguous
    if kind in LOSSLESS:
        np.testing.assert_array_equal(image, ramp(32, 40))
    else:
        assert np.abs(image.astype(int) - ramp(32, 40)).mean() < 40  # the ramp wraps round, which JPEG cannot follow


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (0, 255), (0, 0, 0)),
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),  # a fifth black on white
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 100, (100, 100, 100)),
        ("I;16", 300, (1, 1, 1)),  # clipping to 8 bit would make it white
    ],
)
def test_modes_in_png(mode, colour, expected):
    assert read_image(encoded(Image.new(mode, (3, 2), colour)))[1, 2].tolist() == list(expected)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("I;16", 32768, (128, 128, 128)),
        ("I", 65535, (255, 255, 255)),
        ("F", 0.0, (0, 0, 0)),
        ("F", 0.5, (128, 128, 128)),
        ("F", 1.0, (255, 255, 255)),
        ("F", 200.0, (200, 200, 200)),
    ],
)
def test_modes_in_tiff(mode, colour, expected):
    assert read_image(encoded(Image.new(mode, (3, 2), colour), "TIFF"))[0, 0].tolist() == list(expected)


def test_cmyk_jpeg():
    red = read_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))[8, 8]
    assert red[0] > 240
    assert red[1:].max() < 15


def test_a_shallow_grey_map_is_scaled_by_its_own_white():
    assert read_image(b"P5 2 1 4095\n" + (4095).to_bytes(2, "big") + bytes(2)).tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize(("mode", "colour"), [("F", float("nan")), ("F", -1.0), ("F", 256.0), ("I", 70_000), ("I", -1)])
def test_values_without_a_known_white_are_refused(mode, colour):
    with pytest.raises(ImageError, match=r"unknown value range .*rescale") as caught:
        read_image(encoded(Image.new(mode, (3, 2), colour), "TIFF"))
    assert caught.value.reason == "unknown value range"


def test_palette():
    for transparent, right in ((False, [0, 0, 0]), (True, [255, 255, 255])):
        image = read_image(palette(transparent))
        assert image[0, 0].tolist() == [0, 255, 0]
        assert image[0, -1].tolist() == right


def test_one_transparent_colour_of_rgb():
    image = Image.new("RGB", (4, 2), (1, 2, 3))
    image.putpixel((0, 0), (9, 9, 9))
    assert read_image(encoded(image, transparency=(1, 2, 3)))[0, :2].tolist() == [[9] * 3, [255] * 3]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame(kind):
    red = read_image(animated(kind))[0, 0]
    assert red[0] > 240
    assert red[2] < 15


def test_a_phone_jpeg_with_two_pictures():
    assert read_image(animated("MPO"))[0, 0, 0] > 240


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", *(["AVIF"] if features.check("avif") else [])])
@pytest.mark.parametrize(
    ("orientation", "shape", "dark", "light"),
    [
        (1, (16, 32), (8, 4), (8, 28)),
        (2, (16, 32), (8, 28), (8, 4)),
        (3, (16, 32), (8, 28), (8, 4)),
        (4, (16, 32), (8, 4), (8, 28)),
        (5, (32, 16), (4, 8), (28, 8)),
        (6, (32, 16), (4, 8), (28, 8)),
        (7, (32, 16), (28, 8), (4, 8)),
        (8, (32, 16), (28, 8), (4, 8)),
    ],
)
def test_upright(kind, orientation, shape, dark, light):
    image = read_image(rotated(orientation, kind))
    assert image.shape[:2] == shape
    assert image[dark].max() < 30
    assert image[light].min() > 225


def test_orientation_is_that_of_pillow():
    """The picture above is symmetric; this one is not."""
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(ramp(), exif=exif)
        turn = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270"}
        turn |= {7: "TRANSVERSE", 8: "ROTATE_90"}
        flat = Image.fromarray(ramp())
        expected = flat if orientation == 1 else flat.transpose(Image.Transpose[turn[orientation]])
        np.testing.assert_array_equal(read_image(content), np.asarray(expected))


def test_a_damaged_exif_block_does_not_cost_the_picture():
    content = encoded(ramp(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_image(content), ramp())


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_anywhere_is_an_error_never_half_a_picture(kind):
    content = ENCODED[kind]
    whole, errors = read_image(content), 0
    lengths = range(0, len(content), max(1, len(content) // 60))
    for length in lengths:
        try:
            image = read_image(content[:length])
        except ImageError:
            errors += 1
        else:  # only a closing mark is lost
            np.testing.assert_array_equal(image, whole)
    assert errors >= 0.7 * len(lengths)


@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from(FORMATS), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=8))
def test_any_bytes_give_a_picture_or_an_image_error(kind, changes):
    content = bytearray(ENCODED[kind])
    for place, value in changes:
        content[place % len(content)] = value
    try:
        image = read_image(bytes(content), max_pixels=1_000_000)
    except ImageError:
        return
    assert image.dtype == np.uint8
    assert image.shape[2:] == (3,)
    assert image.size <= 3_000_000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<html>not found</html>", "not an image"),
        (truncated(), "truncated or corrupt"),
        (bomb(), "too many pixels"),
        (encoded(Image.new("RGB", (4, 4)), "ICO"), "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_broken_files_name_file_reason_and_remedy(tmp_path, content, reason):
    path = tmp_path / "a picture.jpg"
    path.write_bytes(content)
    for source, name in ((path, "a picture.jpg"), (str(path), "a picture.jpg"), (content, "bytes")):
        with pytest.raises(ImageError, match=f"{name}: {reason} .*; ") as caught:
            read_image(source)
        assert caught.value.reason == reason
        assert "\n" not in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).reason == reason


def test_what_is_no_file(tmp_path):
    fifo = tmp_path / "pipe.jpg"
    os.mkfifo(fifo)
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    cases = {
        tmp_path: "not a file",
        fifo: "not a file",
        "/dev/zero": "not a file",
        tmp_path / "none.png": "missing file",
    }
    cases |= {"a\0.png": "missing file", "x" * 9999: "unreadable file", tmp_path / "loop.jpg": "unreadable file"}
    for source, reason in cases.items():
        with pytest.raises(ImageError) as caught:
            read_image(source)
        assert caught.value.reason == reason


@pytest.mark.parametrize("url", ["https://a.b/c.png", "HTTP://a.b/c.png", "s3://a/b", "data:image/png;base64,AAAA"])
def test_a_url_is_refused(url):
    with pytest.raises(ImageError, match=r"looks like a URL\); download it"):
        read_image(url)


def test_odd_names_stay_one_printable_line(tmp_path):
    name = os.fsdecode(b"\xff\n\x1b[31m.jpg")
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / name)
    assert str(caught.value).isprintable()


def test_the_limit_is_checked_before_a_pixel_is_decoded(monkeypatch):
    def decoded(*_):
        raise AssertionError("decoded")

    content = encoded(ramp())
    assert read_image(content, max_pixels=HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    for refused, limit in ((content, HEIGHT * WIDTH - 1), (bomb(10_000), MAX_PIXELS), (bomb(), MAX_PIXELS)):
        with pytest.raises(ImageError, match="too many pixels"):
            read_image(refused, max_pixels=limit)


def test_open_files(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(ramp()))
    with path.open("rb") as file:
        np.testing.assert_array_equal(read_image(file), ramp())
    np.testing.assert_array_equal(read_image(io.BytesIO(path.read_bytes())), ramp())
    with path.open(encoding="latin-1") as file, pytest.raises(ValueError, match="binary mode"):
        read_image(file)
    with pytest.raises(ValueError, match="max_pixels=0"):
        read_image(path, max_pixels=0)


def test_image_files(tmp_path):
    names = ["b.JPG", "a/2.png", "a/10.webp", "a/c/x.tiff", ".hidden.jpg", ".git/x.jpg", "a/notes.txt", "z.avif"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "gone.png").symlink_to("nowhere")
    outside = tmp_path.with_name(f"{tmp_path.name}-outside")
    outside.mkdir()
    (outside / "o.png").touch()
    (tmp_path / "linked").symlink_to(outside, target_is_directory=True)
    (tmp_path / "folder.jpg").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)]
    assert found == ["a/10.webp", "a/2.png", "a/c/x.tiff", "b.JPG", "gone.png", "linked/o.png", "z.avif"]
    with pytest.raises(ValueError, match=r"notes\.txt' is not a folder"):
        image_files(tmp_path / "a" / "notes.txt")
    with pytest.raises(ValueError, match="nowhere' is missing"):
        image_files(str(tmp_path / "nowhere"))


def test_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(ValueError, match="cannot be listed: Permission denied; check its permissions"):
        image_files(tmp_path)


def test_names_from_annotations_stay_in_the_folder(tmp_path):
    assert file_in(tmp_path, "a/../b.png") == tmp_path / "b.png"
    assert file_in(tmp_path, str(tmp_path / "c.png")) == tmp_path / "c.png"
    for name in ("../x.png", "/etc/passwd", "a/../../x.png", f"{tmp_path}-outside/x.png"):
        with pytest.raises(ImageError, match="outside the folder"):
            file_in(tmp_path, name)
