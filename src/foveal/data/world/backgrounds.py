"""What is behind the things: a colour, a gradient or a textured place; its depth, and its motion under the camera.

A place is a plane: walls and the sky stand at `FAR` metres; a floor comes from there, at the top of the picture, to
`NEAR` at the bottom, behind everything. The inverse depth of a plane is linear in the picture, so that a camera which
moves sideways or zooms changes the background by an affine map, and points on it can be followed exactly.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from foveal.data.world.places import place_picture
from foveal.data.world.scene import Background
from foveal.data.world.vocabulary import COLOURS, PLACES

FAR, NEAR = 20.0, 10.5
"""Metres: farther than any thing."""
FLOORS = frozenset(PLACES) - {"sky", "brick"}
VARIANTS = 8
"""Pictures of a place; shifts and reflections of them make more."""
FINEST = 1024
"""Short side up to which backgrounds are drawn; beyond it they are enlarged."""
CACHED_PIXELS = 512 * 512
BAND = 512
"""Rows that are enlarged at once."""


def picture(background: Background, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """The background alone, writable."""
    if background.kind == "plain":
        canvas = np.empty((height, width, 3), np.uint8)
        canvas[:] = _muted(background.name)
        return canvas
    scale = max(1.0, min(height, width) / FINEST)
    rows, columns = round(height / scale), round(width / scale)
    make = _cached_tile if rows * columns <= CACHED_PIXELS else _tile
    tile = make(background.kind, background.name, background.variant % VARIANTS, rows, columns)
    if background.kind == "place":
        tile = _shifted(tile, background.variant // VARIANTS)
    if background.camera != (0.0, 0.0) or background.zoom != 1.0:
        tile = _seen_from(background, tile)
    if scale > 1.0:
        return _enlarged(tile, height, width)
    return tile if tile.flags.writeable else tile.copy()


def depth(background: Background, height: int, width: int) -> Float[np.ndarray, "h w"]:
    """Metres of each pixel of the background, writable."""
    metres = np.empty((height, width), np.float32)
    far, slope = _plane(background)
    if slope:
        metres[:] = _depth_of_rows(background.camera[1], background.zoom, height)
    else:
        metres[:] = 1 / far
    return metres


@lru_cache(maxsize=64)
def _depth_of_rows(down: float, zoom: float, height: int) -> Float[np.ndarray, "h 1"]:
    """Metres of the rows of a floor."""
    floor = Background("place", "grass", camera=(0.0, down), zoom=zoom)
    y = (np.arange(height) + 0.5) / height
    y = to_plane(floor, np.stack([np.full(height, 0.5), y], axis=1))[:, 1]
    return (1.0 / _inverse_depth(floor, y)).astype(np.float32)[:, None]


def to_plane(background: Background, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Points of the picture (x, y as shares) to where they were in it before the camera moved."""
    far, slope = _plane(background)
    right, down = background.camera
    x, y = ((points - 0.5) / background.zoom + 0.5).T
    y = (y + down * far) / (1.0 - down * slope)
    return np.stack([x + right * (far + slope * y), y], axis=1)


def from_plane(background: Background, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """The inverse of `to_plane`."""
    moved = points - np.asarray(background.camera) * _inverse_depth(background, points[:, 1])[:, None]
    return (moved - 0.5) * background.zoom + 0.5


def _plane(background: Background) -> tuple[float, float]:
    """Inverse depth at the top of the picture, and how much greater it is at the bottom."""
    floor = background.kind == "place" and background.name in FLOORS
    return 1 / FAR, (1 / NEAR - 1 / FAR) if floor else 0.0


def _inverse_depth(background: Background, y: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    far, slope = _plane(background)
    return np.maximum(far + slope * y, 1e-3)  # a kilometre away is far enough


@cache
def _muted(colour: str) -> UInt8[np.ndarray, "3"]:
    """Backgrounds are paler than things, so that a thing of nearly the same colour still stands out."""
    return (np.array(COLOURS[colour]) * 0.72 + 0.28 * 215).astype(np.uint8)


def _tile(kind: str, name: str, variant: int, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    tile = (
        _gradient(name, variant, height, width) if kind == "gradient" else place_picture(name, variant, height, width)
    )
    tile.flags.writeable = False  # it may be shared through the cache
    return tile


_cached_tile = lru_cache(maxsize=512)(_tile)


def _gradient(colour: str, variant: int, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """From pale to the colour, in one of eight directions."""
    angle = 2 * np.pi * variant / VARIANTS
    x, y = (np.arange(width) + 0.5) / width - 0.5, (np.arange(height) + 0.5) / height - 0.5
    share = (0.5 + 0.7 * (np.cos(angle) * x[None, :] + np.sin(angle) * y[:, None])).clip(0, 1)[..., None]
    dark, pale = _muted(colour).astype(np.float64), np.array(COLOURS[colour]) * 0.3 + 0.7 * 235
    return (pale + (dark - pale) * share).astype(np.uint8)


def _shifted(tile: UInt8[np.ndarray, "h w 3"], variant: int) -> UInt8[np.ndarray, "h w 3"]:
    """Another stretch of the place, which closes up at its sides; and perhaps its mirror image."""
    if variant & 1:
        tile = tile[:, ::-1]
    width = tile.shape[1]
    shift = round((variant >> 1) % 64 / 64 * width)
    out = np.empty_like(tile, order="C")
    out[:, :shift] = tile[:, width - shift :]
    out[:, shift:] = tile[:, : width - shift]
    return out


def _enlarged(tile: UInt8[np.ndarray, "rows columns 3"], height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Resized in bands: Pillow holds an image three times over while it turns into an array."""
    out = np.empty((height, width, 3), np.uint8)
    rows, columns = tile.shape[:2]
    small = Image.fromarray(tile)
    for top in range(0, height, BAND):
        bottom = min(top + BAND, height)
        box = (0.0, top / height * rows, float(columns), bottom / height * rows)
        out[top:bottom] = np.asarray(small.resize((width, bottom - top), Image.Resampling.BICUBIC, box=box))
    return out


def _seen_from(background: Background, tile: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The tile after the camera has moved: wrapped at its sides, mirrored at its top and bottom."""
    height, width = tile.shape[:2]
    corners = np.array([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
    origin, across, down = to_plane(background, corners)
    opposite = across + down - origin
    beyond = np.abs(np.stack([origin, across, down, opposite]) - 0.5).max(0) - 0.5
    pad_x, pad_y = (max(1, int(np.ceil(share * side)) + 1) for share, side in zip(beyond, (width, height)))
    around = np.pad(tile, ((pad_y, pad_y), (0, 0), (0, 0)), "reflect")
    margins = ((0, 0), (pad_x, pad_x), (0, 0))
    around = np.pad(around, margins, "wrap") if background.kind == "place" else np.pad(around, margins, "reflect")
    size = np.array([width, height])
    steps_x, steps_y = (across - origin) * size / width, (down - origin) * size / height
    start = origin * size + [pad_x, pad_y]
    affine = (steps_x[0], steps_y[0], start[0], steps_x[1], steps_y[1], start[1])
    seen = Image.fromarray(around).transform(
        (width, height), Image.Transform.AFFINE, tuple(map(float, affine)), Image.Resampling.BILINEAR
    )
    return np.array(seen)
