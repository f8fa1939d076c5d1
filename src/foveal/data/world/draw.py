"""A scene to its picture, and every truth about it that pixels can hold: instances, depth, boxes, visible shares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from foveal.data.world import backgrounds
from foveal.data.world.config import LARGEST, SMALLEST
from foveal.data.world.glyphs import letters
from foveal.data.world.scene import Scene, Thing, Writing
from foveal.data.world.sprites import stamp
from foveal.data.world.styles import stylise
from foveal.data.world.vocabulary import COLOURS

Box = tuple[int, int, int, int]
BAND = 256
"""Rows that are blended at once, so that memory does not grow with the square of a large thing."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawn scene. ``boxes`` and ``visible`` are in the order of ``scene.things``."""

    image: UInt8[np.ndarray, "h w 3"]
    instance: UInt8[np.ndarray, "h w"]
    """0 is the background (and writing), i + 1 is ``scene.things[i]``."""
    depth: Float[np.ndarray, "h w"]
    """Metres from the camera."""
    boxes: tuple[Box, ...]
    """x0, y0, x1, y1 in pixels around what is seen of each thing, ends exclusive; all zero if nothing is."""
    visible: tuple[float, ...]
    """Visible pixels of each thing over those it would have if nothing, nor the edge of the picture, hid any."""


def draw(scene: Scene, size: int | tuple[int, int]) -> Drawing:
    """The scene at a size: one number for a square, or (height, width).

    Raises:
        ValueError: when a side is not within 32 to 8192 pixels, or the scene has more than 254 things.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not (SMALLEST <= height <= LARGEST and SMALLEST <= width <= LARGEST):
        raise ValueError(f"size is {size!r}; each side must be {SMALLEST} to {LARGEST} pixels")
    if len(scene.things) > 254:
        raise ValueError(f"scene {scene.key} has {len(scene.things)} things; an instance map holds 254")
    image = backgrounds.picture(scene.background, height, width)
    depth = backgrounds.depth(scene.background, height, width)
    instance = np.zeros((height, width), np.uint8)
    laid: list[_Laid | None] = [None] * len(scene.things)
    for number in sorted(range(len(scene.things)), key=lambda i: (-scene.things[i].depth, -i)):
        laid[number] = _lay(scene.things[number], number + 1, image, instance, depth)
    for writing in scene.writings:
        _write(writing, image, instance)
    seen = [_seen(instance, number + 1, item) for number, item in enumerate(laid)]
    image = stylise(image, scene.style, scene.variant)
    return Drawing(image, instance, depth, tuple(box for box, _ in seen), tuple(share for _, share in seen))


@dataclass(frozen=True, slots=True)
class _Window:
    """Where a stamp meets the picture: slices into either, and the corner of the stamp in the picture."""

    picture: tuple[slice, slice]
    stamp: tuple[slice, slice]
    left: int
    top: int


@dataclass(frozen=True, slots=True)
class _Laid:
    """What is left to know of a stamp once it is in the picture."""

    window: tuple[slice, slice]
    box: Box
    area: int


def _window(x: float, y: float, stamp: np.ndarray, picture: np.ndarray) -> _Window | None:
    """Where a stamp centred at x, y (shares of the picture) lies, or None if it is outside."""
    (rows, columns), (height, width) = stamp.shape, picture.shape
    left, top = round(x * width - columns / 2), round(y * height - rows / 2)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + columns, width), min(top + rows, height)
    if x0 >= x1 or y0 >= y1:
        return None
    inner = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    return _Window((slice(y0, y1), slice(x0, x1)), inner, left, top)


def _lay(
    thing: Thing,
    number: int,
    image: UInt8[np.ndarray, "h w 3"],
    instance: UInt8[np.ndarray, "h w"],
    depth: Float[np.ndarray, "h w"],
) -> _Laid | None:
    """Put a thing in front of what is there; None if it is outside."""
    mark = stamp(thing.noun, round(2 * thing.radius * min(instance.shape)), thing.angle, thing.texture, thing.colour)
    window = _window(thing.x, thing.y, mark.mask, instance)
    if window is None:
        return None
    ground, paint, clear = image[window.picture], mark.paint[window.stamp], mark.clear[window.stamp]
    for top in range(0, len(ground), BAND):
        band = slice(top, top + BAND)
        mixed = ground[band].astype(np.uint16)
        mixed *= clear[band]
        mixed += paint[band]
        mixed >>= 8
        ground[band] = mixed
    mask = mark.mask[window.stamp]
    np.copyto(instance[window.picture], np.uint8(number), where=mask)
    np.copyto(depth[window.picture], np.float32(thing.depth), where=mask)
    x0, y0, x1, y1 = mark.box
    box = (x0 + window.left, y0 + window.top, x1 + window.left, y1 + window.top)
    return _Laid(window.picture, box, mark.area)


def _seen(instance: UInt8[np.ndarray, "h w"], number: int, laid: _Laid | None) -> tuple[Box, float]:
    """Box and visible share of a thing once everything is in place."""
    if laid is None:
        return (0, 0, 0, 0), 0.0
    mask = instance[laid.window] == number
    pixels = int(np.count_nonzero(mask))
    if not pixels:
        return (0, 0, 0, 0), 0.0
    if pixels == laid.area:  # nothing hides it: the box is known
        return laid.box, 1.0
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = laid.window[0].start, laid.window[1].start
    box = (int(left + columns[0]), int(top + rows[0]), int(left + columns[-1]) + 1, int(top + rows[-1]) + 1)
    return box, pixels / laid.area


def _write(writing: Writing, image: UInt8[np.ndarray, "h w 3"], instance: UInt8[np.ndarray, "h w"]) -> None:
    """Letters in their colour with a contour that contrasts with it."""
    inner, outer = letters(writing.text, writing.script, round(writing.height * min(instance.shape)))
    window = _window(writing.x, writing.y, inner, instance)
    if window is None:
        return
    colour = np.array(COLOURS[writing.colour], np.float32)
    contour = np.float32(20 if colour.mean() > 110 else 250)
    fill, edge = (part[window.stamp].astype(np.float32)[..., None] / 255 for part in (inner, outer))
    ground = image[window.picture]
    mixed = ground + (contour - ground) * edge
    ground[...] = mixed + (colour - mixed) * fill
    np.copyto(instance[window.picture], np.uint8(0), where=outer[window.stamp] >= 128)
