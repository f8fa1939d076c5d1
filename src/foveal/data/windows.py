"""Pictures too large for memory: windows of a PNG, TIFF or JPEG file, read without decoding the rest.

`read_image` decodes a whole picture and refuses those beyond its pixel limit. A satellite scene of 16,384 × 16,384
pixels would be 800 MB there; here its memory is that of one window. Decoding is done by libvips (``pyvips``).
"""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from foveal.data.images import MAX_PIXELS, ImageError

Box = tuple[int, int, int, int]
"""top, bottom, left, right in pixels; ends exclusive."""
LARGEST = 4_000_000_000
"""Pixels, a square of 63,245 a side: what `PictureFile` opens unless told otherwise."""
ROWS_AT_ONCE = 64
"""Rows that libvips decodes in one go."""
LOADERS = {
    b"\x89PNG": "pngload",
    b"\xff\xd8\xff": "jpegload",
    b"II*\x00": "tiffload",
    b"MM\x00*": "tiffload",
    b"II+\x00": "tiffload",
    b"MM\x00+": "tiffload",
}
"""First bytes to libvips' decoder. An allow-list: libvips also opens formats that run other programs."""
COLOURS = {"b-w": 1, "grey16": 1, "srgb": 3, "rgb": 3, "rgb16": 3}
"""libvips' name of a colour space to its bands without alpha."""


class PictureFile:
    """A picture on disk of which only windows are read.

    Colours are those of `read_image`: RGB of 8 bits, transparency laid on white, 16 bits scaled from 0…65535.

    Args:
        path: a local PNG, TIFF (the first page; striped, tiled or BigTIFF) or JPEG file.
        max_pixels: larger pictures are refused by their header.

    Attributes:
        height, width: pixels.

    Raises:
        ImportError: when the optional library is missing.
        ImageError: no such file, no picture of these formats, too large, turned by EXIF, other colours, or (beyond
            64 megapixels) interlaced.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_pixels: int = LARGEST) -> None:
        if max_pixels < 1:
            raise ValueError(f"max_pixels={max_pixels}: must be at least 1")
        self.path = os.fspath(path)
        self._vips = _library()
        self._loader = _loader(self.path)
        header = self._open()
        self.height, self.width = int(header.height), int(header.width)
        self._check(header, max_pixels)
        self._bands = COLOURS[header.interpretation]
        self._dtype = np.dtype(np.uint8 if header.format == "uchar" else np.uint16)
        self._tiled = header.get_typeof("tile-width") != 0

    def windows(self, boxes: Iterable[Box]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """One window for each box, in one pass over the file from top to bottom.

        No box may begin above the one before it: PNG, JPEG and striped TIFF files can only be decoded downwards. Of
        these whole rows are decoded, of tiled TIFF files only the tiles that a box meets. Copy a window before you
        write into it: the next one may share its rows.

        Raises:
            ValueError: for a box outside the picture, empty, or above the one before.
            ImageError: when the file is truncated or corrupt.
        """
        source = self._vips.Region.new(self._open())
        rows, reached, above = np.empty((0, self.width, 3), np.uint8), 0, 0
        for box in boxes:
            top, bottom, left, right = box
            if not (above <= top < bottom <= self.height and 0 <= left < right <= self.width):
                raise ValueError(
                    f"box {box} must be (top, bottom, left, right) within {self.height} × {self.width} pixels, not "
                    f"empty, and begin at row {above} or below: sort the boxes by their tops"
                )
            above = top
            if self._tiled:
                yield self._fetch(source, box)
                continue
            rows = rows[max(0, len(rows) - (reached - top)) :] if top < reached else rows[:0]
            if bottom > reached:
                fresh = self._rows(source, reached, max(top, reached), bottom)
                rows, reached = np.concatenate([rows, fresh]) if len(rows) else fresh, bottom
            start = reached - len(rows)
            yield rows[top - start : bottom - start, left:right]

    def _rows(self, source: Any, reached: int, top: int, bottom: int) -> UInt8[np.ndarray, "h w 3"]:
        """Whole rows from ``top`` on; decoding goes on from row ``reached``.

        In portions: libvips holds what it is asked for, and what it passes over on the way, a second and third time.
        """
        rows = np.empty((bottom - top, self.width, 3), np.uint8)
        for first in range(reached, bottom, ROWS_AT_ONCE):
            last = min(first + ROWS_AT_ONCE, bottom)
            if last <= top:
                self._fetch(source, (last - 1, last, 0, 1))
            else:
                first = max(first, top)
                rows[first - top : last - top] = self._fetch(source, (first, last, 0, self.width))
        return rows

    def _open(self) -> Any:
        """The header; pixels follow on request. Every pass needs its own, as decoders do not go back."""
        load = getattr(self._vips.Image, self._loader)
        # of a TIFF, only the strictest level stops at a tile that is missing; unknown tags pass it
        strictness = "warning" if self._loader == "tiffload" else "truncated"
        remembered = self._vips.cache_get_max()
        self._vips.cache_set_max(0)  # libvips keeps the pixels of its last hundred operations, such as earlier passes
        try:
            return load(self.path, access="sequential", fail_on=strictness, revalidate=True)
        except self._vips.Error as error:
            raise _error(self.path, "truncated or corrupt", _line(error), "copy or download it again") from error
        finally:
            self._vips.cache_set_max(remembered)

    def _fetch(self, source: Any, box: Box) -> UInt8[np.ndarray, "h w 3"]:
        top, bottom, left, right = box
        try:
            content = source.fetch(left, top, right - left, bottom - top)
        except self._vips.Error as error:
            raise _error(self.path, "truncated or corrupt", _line(error), "copy or download it again") from error
        values = np.frombuffer(content, self._dtype).reshape(bottom - top, right - left, -1)
        return _rgb(values, self._bands)

    def _check(self, header: Any, max_pixels: int) -> None:
        """Refuse what cannot be read by windows, or not in the right colours."""
        pixels, size = self.height * self.width, f"{self.width} × {self.height}"
        if pixels > max_pixels:
            detail = f"{size} is more than max_pixels={max_pixels}"
            raise _error(self.path, "too many pixels", detail, "raise max_pixels if you trust it")
        if header.format not in ("uchar", "ushort") or header.interpretation not in COLOURS:
            detail = f"{header.bands} bands of {header.format}, {header.interpretation}"
            raise _error(self.path, "unknown colours", detail, "save it as grey or RGB of 8 or 16 bits")
        if header.bands not in (colours := COLOURS[header.interpretation], colours + 1):
            detail = f"{header.bands} bands"
            raise _error(self.path, "unknown colours", detail, "save those that show red, green and blue")
        turned = header.get("orientation") if header.get_typeof("orientation") else 1
        if turned not in (0, 1):
            raise _error(self.path, "turned", f"EXIF orientation {turned}", "save it upright")
        multiscan = any(header.get_typeof(name) and header.get(name) for name in ("interlaced", "jpeg-multiscan"))
        if multiscan and pixels > MAX_PIXELS:
            detail = f"{size} in several scans, which only decode as a whole"
            raise _error(self.path, "interlaced or progressive", detail, "save it without")


def _library() -> Any:
    try:
        import pyvips
    except ImportError as error:
        raise ImportError("windows of large pictures are read with pyvips: pip install 'foveal[large]'") from error
    return pyvips


def _loader(path: str) -> str:
    """The decoder for a file, by its first bytes."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise _error(path, "not a file", "it is a folder, pipe or device", "give a picture file")
        with Path(path).open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise _error(path, "unreadable file", error.strerror or str(error), "check the path") from error
    for magic, loader in LOADERS.items():
        if head.startswith(magic):
            return loader
    raise _error(path, "not an image", "no PNG, TIFF or JPEG by its first bytes", "save it as one of these")


def _rgb(values: np.ndarray, colours: int) -> UInt8[np.ndarray, "h w 3"]:
    """Grey or RGB, 8 or 16 bits, with or without alpha."""
    if values.dtype == np.uint16:
        values = np.rint(values * np.float32(255 / 65535)).astype(np.uint8)
    rgb = values[..., :colours]
    if values.shape[-1] > colours:
        alpha = values[..., colours:].astype(np.float32) / 255
        rgb = np.rint(255 + (rgb - np.float32(255)) * alpha).astype(np.uint8)
    return rgb if colours == 3 else np.repeat(rgb, 3, axis=-1)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _error(name: str, reason: str, detail: str, remedy: str) -> ImageError:
    return ImageError(f"cannot read image {name}: {reason} ({detail}); {remedy}", reason)
