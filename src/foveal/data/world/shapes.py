"""The twelve shapes as polygons, and the textures that fill them. Both are drawn supersampled at the size asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

Polygon = Float[np.ndarray, "corners 2"]
RIM = 0.13
"""Width of the darker rim as a share of the radius: it parts a shape from a ground of its own colour."""


@cache
def outlines(noun: str) -> tuple[Polygon, ...]:
    """The polygons of a shape in the square -1 to 1, y down: the first is filled, any others are holes in it."""
    return tuple(np.asarray(polygon, dtype=np.float64) for polygon in _OUTLINES[noun]())


def shape_stamp(noun: str, pixels: int, angle: float, texture: str) -> tuple[UInt8[np.ndarray, "s s"], ...]:
    """Alpha and tone of a shape whose unrotated square has ``pixels`` a side; the stamp grows where corners need it.

    Tone 0 is the rim, 127 the colour of the shape, 254 the second colour of its texture.
    """
    alpha, inside = (_cached_silhouette if pixels <= 64 else _silhouette)(noun, pixels, angle)
    if texture == "plain":
        return alpha, inside >> 1
    pattern = texture_tone(texture, len(alpha), 2 * len(alpha) / pixels)
    return alpha, (np.multiply(inside, pattern, dtype=np.uint16) >> 8).astype(np.uint8)


def _silhouette(noun: str, pixels: int, angle: float) -> tuple[UInt8[np.ndarray, "s s"], UInt8[np.ndarray, "s s"]]:
    """How much of each pixel the shape covers, and how much of it what is inside of its rim covers."""
    turn = np.deg2rad(-angle)  # anticlockwise, with y down
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    polygons = [polygon @ rotation.T for polygon in outlines(noun)]
    reach = max(1.0, float(np.abs(polygons[0]).max()))
    side = pixels + 2 * int(np.ceil(pixels * (reach - 1.0) / 2))
    finer = 8 if side <= 64 else 4 if side <= 512 else 2
    canvas = Image.new("L", (side * finer, side * finer), 0)
    pen = ImageDraw.Draw(canvas)
    drawn = [((polygon * pixels / 2 + side / 2) * finer - 0.5).ravel().tolist() for polygon in polygons]
    for number, corners in enumerate(drawn):
        pen.polygon(corners, fill=0 if number else 255)
    alpha = np.asarray(canvas.reduce(finer))
    thick = max(1, round(RIM * pixels * finer))  # half of it falls outside of the shape
    for corners in drawn:
        pen.line([*corners, *corners[:2]], fill=0, width=thick)
        for x, y in zip(corners[::2], corners[1::2]):  # lines leave a notch where they meet
            pen.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=0)
    return alpha, np.asarray(canvas.reduce(finer))


_cached_silhouette = lru_cache(maxsize=4096)(_silhouette)


def texture_tone(texture: str, side: int, span: float) -> UInt8[np.ndarray, "side side"]:
    """128 where the texture shows the first colour, 255 where the second, for a square of ``span`` radii."""
    return (_cached_tone if side <= 64 else _tone)(texture, side, span)


def _tone(texture: str, side: int, span: float) -> UInt8[np.ndarray, "side side"]:
    line = ((np.arange(side, dtype=np.float32) + 0.5) / side - 0.5) * span
    wave = _TEXTURES[texture](line[None, :], line[:, None])
    sharpness = max(1.0, side / span / 4)  # one pixel wide edges at any size
    return (191.5 + 63.5 * np.clip(wave * sharpness, -1.0, 1.0)).astype(np.uint8)


_cached_tone = lru_cache(maxsize=1024)(_tone)


def _arc(start: float, end: float, radius: float = 1.0, x: float = 0.0, y: float = 0.0) -> Polygon:
    angles = np.deg2rad(np.linspace(start, end, 97))
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)


def _regular(corners: int, start: float = -90.0) -> Polygon:
    return _arc(start, start + 360)[:: 96 // corners][:corners]


def _star() -> Polygon:
    radii = np.where(np.arange(10) % 2, 0.45, 1.08)[:, None]
    angles = np.deg2rad(-90 + 36 * np.arange(10))
    points: Polygon = radii * np.stack([np.cos(angles), np.sin(angles)], axis=1) + np.array([0.0, 0.08])
    return points.clip(-1, 1)


def _heart() -> Polygon:
    t = np.linspace(0, 2 * np.pi, 97)[:-1]
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 16, (y - 2.5) / 14.6], axis=1)


def _cross() -> Polygon:
    arm = np.array([(-0.34, -1), (0.34, -1), (0.34, -0.34)])
    turns = [arm @ np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return np.concatenate(turns)


def _crescent() -> Polygon:
    """A moon open to the right: most of a circle, and back along a smaller one."""
    tip = np.array([0.55, 0.835])
    centre, radius = 0.48, float(np.hypot(tip[0] - 0.48, tip[1]))
    start = float(np.rad2deg(np.arctan2(tip[1], tip[0])))
    back = float(np.rad2deg(np.arctan2(tip[1], tip[0] - centre)))
    moon = np.concatenate([_arc(start, 360 - start), _arc(360 - back, back, radius, centre)])
    return moon + np.array([0.2, 0.0])


def _drop() -> Polygon:
    round_part = _arc(-28, 208, 0.66, y=0.34)
    return np.concatenate([[(0.0, -1.0)], round_part])


_OUTLINES: dict[str, Callable[[], tuple]] = {
    "circle": lambda: (_arc(0, 360)[:-1],),
    "square": lambda: ([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],),
    "triangle": lambda: ([(0, -0.95), (1, 0.85), (-1, 0.85)],),
    "star": lambda: (_star(),),
    "ring": lambda: (_arc(0, 360)[:-1], _arc(0, 360, 0.5)[:-1]),
    "heart": lambda: (_heart(),),
    "diamond": lambda: ([(0, -1), (0.72, 0), (0, 1), (-0.72, 0)],),
    "cross": lambda: (_cross(),),
    "crescent": lambda: (_crescent(),),
    "hexagon": lambda: (_regular(6, 0.0),),
    "arrow": lambda: ([(1, 0), (0.1, -0.85), (0.1, -0.34), (-1, -0.34), (-1, 0.34), (0.1, 0.34), (0.1, 0.85)],),
    "drop": lambda: (_drop(),),
}

Wave = Callable[[np.ndarray, np.ndarray], np.ndarray]
_TEXTURES: dict[str, Wave] = {  # positive where the second colour shows; x right and y down, in radii
    "striped": lambda x, y: np.sin((x + y) * 6.6) + 0.0,
    "dotted": lambda x, y: np.cos(x * 9.0) + np.cos(y * 9.0) - 0.75,
    "checked": lambda x, y: np.sin(x * 6.3) * np.sin(y * 6.3) * 1.5,
    "zigzag": lambda x, y: np.sin((y + 0.18 * np.abs((x * 2.4) % 2 - 1) * 2) * 9.5) + 0.0,
    "ringed": lambda x, y: np.sin(np.hypot(x, y) * 10.5 + 1.2) + 0.0,
}
