"""Any image file as an upright RGB array, or one line that says why not.

The one place where foveal decodes pictures, so that all readers and commands agree on rotation, transparency and depth,
and none of them is felled by a hostile or broken file.
"""

import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError, features

from foveal.data.faults import SampleError

MAX_PIXELS = 64_000_000  # a 64 megapixel camera; 192 MB as RGB
SUFFIXES = frozenset(
    f".{name}"
    for name in (
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "apng",
        "webp",
        "gif",
        "bmp",
        "dib",
        "tif",
        "tiff",
        "ppm",
        "pgm",
        "pbm",
        "pnm",
        "avif",
    )
)
# An allow-list: Pillow also opens formats that run other programs (EPS) or that nobody has as photographs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *(("AVIF",) if features.check("avif") else ()))

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(SampleError):
    """An image that cannot be read: one line with the file, the reason and the remedy."""


def read_image(
    source: str | os.PathLike[str] | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
    """The image upright (EXIF orientation applied) in RGB, uint8, (H, W, 3), writable.

    Transparent pixels are laid on white. 16-bit grey is scaled from 0…65535 to 0…255. Float images are scaled from
    0…1, or taken as they are when they reach beyond 1 and stay within 255. Of an animation or a multi-page file the
    first frame counts. Colour profiles are ignored.

    Args:
        source: a local path, the bytes of a file, or a file opened in binary mode. Never a URL.
        max_pixels: larger images are refused by their header, before any pixel is decoded.

    Raises:
        ImageError: missing or empty file, directory, no image of an allowed format, truncated or corrupt, too large.
    """
    if max_pixels < 1:
        raise ValueError(f"max_pixels={max_pixels}: must be at least 1")
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        with _open_file(name) as file:
            return _decode(file, name, max_pixels)
    content = source if isinstance(source, bytes) else source.read()
    if not isinstance(content, bytes):
        raise ValueError(f"source={source!r} gives text: open the file in binary mode, open(path, 'rb')")
    name = str(getattr(source, "name", "")) or f"of {len(content)} bytes"
    if not content:
        raise _error(name, "empty file", "0 bytes", "copy or download it again")
    return _decode(io.BytesIO(content), name, max_pixels)


def image_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Image files (by suffix) in a folder and below it, sorted; hidden ones are left out.

    Links to folders are followed, but each real folder is entered once, so that a loop of links ends.

    Raises:
        ValueError: when ``folder`` is missing, not a folder, or one below it cannot be listed.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(
            f"folder={os.fspath(folder)!r} is {'not a folder' if root.exists() else 'missing'}: give a folder of images"
        )
    try:
        return sorted(_walk(root))
    except OSError as error:
        place = error.filename or os.fspath(folder)
        raise ValueError(f"folder={place!r} cannot be listed: {error.strerror}; check its permissions") from error


def _walk(root: Path) -> Iterator[Path]:
    entered: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        here = waiting.pop()
        identity = here.stat()
        if (identity.st_dev, identity.st_ino) in entered:
            continue
        entered.add((identity.st_dev, identity.st_ino))
        for path in sorted(here.iterdir(), reverse=True):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                waiting.append(path)
            elif path.suffix.lower() in SUFFIXES:
                yield path  # a broken link too: whoever reads it must hear of it


def file_in(folder: Path, name: str) -> Path:
    """Where a file lies that an annotation names: below ``folder``, wherever the annotation comes from.

    Raises:
        ImageError: when the name is absolute or climbs out with ``..``, and does not end up in the folder.
    """
    root = os.path.abspath(folder)  # noqa: PTH100 - by name only: links in the folder are the user's own
    path = os.path.abspath(os.path.join(root, name))  # noqa: PTH100, PTH118 - as above
    if os.path.commonpath([root, path]) != root:
        remedy = "give the folder that holds all images"
        raise _error(repr(name), "outside the folder", f"it leads out of {root}", remedy)
    return Path(path)


def _error(name: str, reason: str, detail: str, remedy: str) -> ImageError:
    return ImageError(f"cannot read image {name}: {reason} ({detail}); {remedy}", reason)


def _open_file(name: str) -> BinaryIO:
    """The file, after everything that could block or mislead (a pipe, a device, a folder, a URL) is ruled out."""
    if re.match(r"[a-z][a-z0-9+.-]*://|data:", name, re.IGNORECASE):
        shown = name if len(name) <= 80 else f"{name[:80]}…"
        raise _error(shown, "not a local file", "it looks like a URL", "download it and give the path")
    try:
        status = os.stat(name)  # noqa: PTH116 - `name` may hold what Path would normalise away in the message
        if stat.S_ISDIR(status.st_mode):
            raise _error(name, "not a file", "it is a folder", "give one of the files in it")
        if not stat.S_ISREG(status.st_mode):
            raise _error(name, "not a file", "it is a pipe, socket or device", "give a regular file")
        if status.st_size == 0:
            raise _error(name, "empty file", "0 bytes", "copy or download it again")
        return Path(name).open("rb")
    except FileNotFoundError as error:
        raise _error(name, "missing file", "no such file", "check the path") from error
    except OSError as error:
        raise _error(name, "unreadable file", error.strerror or str(error), "check its permissions") from error
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise _error(repr(name), "missing file", str(error), "check the path") from error  # a NUL in the name


def _decode(file: BinaryIO, name: str, max_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                detail = f"{width} × {height} is more than max_pixels={max_pixels}"
                raise _error(name, "too many pixels", detail, "shrink the image, or raise max_pixels if you trust it")
            image.load()
            return np.array(_rgb(_upright(image)))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise _error(name, "not an image", "the content fits no allowed format", f"allowed are {known}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        detail, remedy = str(error), "shrink the image, or raise max_pixels and PIL.Image.MAX_IMAGE_PIXELS"
        raise _error(name, "too many pixels", detail, remedy) from error
    except _Values as error:
        raise _error(name, "unknown value range", str(error), "rescale it to 8 bit") from error
    except Exception as error:  # decoders meet hostile bytes: Pillow's let a dozen kinds of exception through
        detail = str(error) or type(error).__name__
        raise _error(name, "truncated or corrupt", detail, "copy or download it again") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return image
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


class _Values(ValueError):
    """Numbers without a known black and white."""


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bit(image)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _eight_bit(image: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """Grey of 16 or 32 bits in 8, by the full scale of the format: never stretched to the values that are there."""
    values = np.asarray(image).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    white = 65535.0 if image.mode != "F" else 1.0 if high <= 1 else 255.0
    if not (low >= 0 and high <= white):  # also when a NaN is in it
        raise _Values(f"mode {image.mode} from {low:g} to {high:g}")
    return np.rint(values * (255 / white)).astype(np.uint8)
