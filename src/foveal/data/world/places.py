"""The places: grass, sand, water, snow, street, sky, wood, brick, each drawn from its seed at the size asked for.

All close up at their left and right edges, so that shifting one gives another stretch of the same place. What is random
is laid out in shares of the picture: at twice the size the same picture comes out, sharper.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

Grey = Float[np.ndarray, "h w"]


def place_picture(name: str, variant: int, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """The place, a little lighter or darker, warmer or cooler from variant to variant."""
    rng = np.random.default_rng((zlib.crc32(name.encode()), variant))
    light = rng.uniform(0.88, 1.06) * rng.uniform(0.97, 1.03, 3)
    rgb = _PLACES[name](rng, height, width) * light
    return rgb.clip(0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, height: int, width: int, rows: int, columns: int) -> Grey:
    """Smooth noise of ``rows`` by ``columns`` knots, -1 to 1, closed at its sides."""
    knots = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    around = np.concatenate([knots[:, -2:], knots, knots[:, :2]], axis=1)
    box = (2.0, 0.0, float(columns + 2), float(rows))
    smooth = Image.fromarray(around).resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(smooth)


def _clouds(rng: np.random.Generator, height: int, width: int, rows: int, columns: int, octaves: int = 4) -> Grey:
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        total += _noise(rng, height, width, rows << octave, columns << octave) * 0.5**octave
    return total


def _mix(share: Grey, low: tuple[int, int, int], high: tuple[int, int, int]) -> Float[np.ndarray, "h w 3"]:
    share = share.clip(0, 1)[..., None]
    return np.asarray(low, np.float32) * (1 - share) + np.asarray(high, np.float32) * share


def _strokes(
    rgb: Float[np.ndarray, "h w 3"],
    lines: Float[np.ndarray, "n 4"],
    colours: UInt8[np.ndarray, "n 3"],
    widths: Float[np.ndarray, "n"],
) -> Float[np.ndarray, "h w 3"]:
    """Lines (x0, y0, x1, y1 and widths as shares) drawn four times finer, also one picture to the left and right."""
    height, width = rgb.shape[:2]
    finer = 4 if max(height, width) <= 512 else 2
    canvas = Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).resize((width * finer, height * finer))
    pen = ImageDraw.Draw(canvas)
    scale = np.array([width, height, width, height], np.float32) * finer
    for line, colour, thick in zip((lines * scale).tolist(), colours.tolist(), (widths * height * finer).tolist()):
        x0, y0, x1, y1 = line
        for shift in (-width * finer, 0, width * finer):
            if max(x0, x1) + shift >= 0 and min(x0, x1) + shift <= width * finer:
                pen.line((x0 + shift, y0, x1 + shift, y1), fill=tuple(colour), width=max(1, round(thick)))
    return np.asarray(canvas.reduce(finer), dtype=np.float32)


def _rows(height: int) -> Grey:
    return ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]


def _columns(width: int) -> Grey:
    return ((np.arange(width, dtype=np.float32) + 0.5) / width)[None, :]


def _grass(rng: np.random.Generator, height: int, width: int) -> Float[np.ndarray, "h w 3"]:
    ground = _mix(0.5 + 0.35 * _clouds(rng, height, width, 3, 3), (70, 138, 52), (112, 178, 74))
    count = 420
    x, y = rng.uniform(0, 1, count), np.sort(rng.uniform(0, 1.08, count))  # lower blades in front
    tall, lean = rng.uniform(0.05, 0.1, count) * (0.6 + 0.6 * y), rng.uniform(-0.03, 0.03, count)
    greens = np.array([(44, 104, 36), (82, 152, 52), (140, 198, 88), (58, 122, 44)], np.uint8)
    lines = np.stack([x, y, x + lean, y - tall], axis=1)
    return _strokes(ground, lines, greens[rng.integers(0, 4, count)], 0.006 + 0.006 * y)


def _sand(rng: np.random.Generator, height: int, width: int) -> Float[np.ndarray, "h w 3"]:
    bend = _noise(rng, height, width, 3, 3)
    ripples = np.sin(2 * np.pi * (9 * _rows(height) ** 1.3 + 0.55 * bend + 0.2 * np.sin(2 * np.pi * _columns(width))))
    grain = _noise(rng, height, width, 96, 96)
    return _mix(0.55 + 0.24 * ripples + 0.16 * grain, (206, 166, 104), (246, 220, 160))


def _water(rng: np.random.Generator, height: int, width: int) -> Float[np.ndarray, "h w 3"]:
    rows = _rows(height)
    deep = _mix(0.35 + 0.5 * (1 - rows) + 0.18 * _clouds(rng, height, width, 5, 2, 3), (20, 84, 158), (92, 178, 226))
    bend = _noise(rng, height, width, 5, 5)
    waves = np.sin(2 * np.pi * (7 * rows**1.25 + 0.12 * np.sin(2 * np.pi * 5 * _columns(width)) + 0.22 * bend))
    crest = ((waves - 0.72) / 0.28).clip(0, 1) * (0.75 + 0.5 * _noise(rng, height, width, 8, 6)).clip(0, 1)
    return deep + (np.array([214, 240, 255], np.float32) - deep) * crest[..., None] * 0.85


def _snow(rng: np.random.Generator, height: int, width: int) -> Float[np.ndarray, "h w 3"]:
    rows = _rows(height)
    drift = np.sin(2 * np.pi * (2.6 * rows + 0.35 * _noise(rng, height, width, 2, 3)))
    ground = _mix(0.62 + 0.3 * drift + 0.1 * _clouds(rng, height, width, 6, 4, 2), (190, 208, 232), (250, 252, 255))
    count = 150
    x, y = rng.uniform(0, 1, (2, count))
    thick = rng.uniform(0.01, 0.024, count)
    flakes = np.stack([x - thick / 2, y, x + thick / 2, y], axis=1)
    shadow = np.stack([x - thick / 2, y + thick * 0.5, x + thick / 2, y + thick * 0.5], axis=1)
    ground = _strokes(ground, shadow, np.full((count, 3), (172, 190, 220), np.uint8), thick * 0.7)
    return _strokes(ground, flakes, np.full((count, 3), 255, np.uint8), thick)


def _street(rng: np.random.Generator, height: int, width: int) -> Float[np.ndarray, "h w 3"]:
    """A road from left to right between two pavements, with a broken line along its middle."""
    grain = _noise(rng, height, width, 80, 80) * 0.5 + _clouds(rng, height, width, 3, 3, 2) * 0.3
    rows, columns = np.broadcast_to(_rows(height), (height, width)), np.broadcast_to(_columns(width), (height, width))
    asphalt = _mix(0.5 + 0.4 * grain, (72, 74, 80), (108, 110, 116))
    flags = _mix(0.5 + 0.4 * grain, (158, 154, 148), (188, 184, 176))
    soft = 0.75 / height
    joints = np.abs((columns * 8 + 0.25) % 1 - 0.5) < np.maximum(0.03, 4 / width)
    flags[joints] *= 0.78
    pavement = ((0.2 - rows) / soft).clip(0, 1) + ((rows - 0.88) / soft).clip(0, 1)
    kerb = ((0.028 - np.abs(rows - 0.2)) / soft).clip(0, 1) + ((0.028 - np.abs(rows - 0.88)) / soft).clip(0, 1)
    dash = ((0.022 - np.abs(rows - 0.54)) / soft).clip(0, 1)
    dash = dash * ((0.3 - np.abs((columns * 4) % 1 - 0.5)) * width).clip(0, 1)
    road = asphalt + (flags - asphalt) * pavement[..., None]
    road += (np.array([206, 204, 200], np.float32) - road) * kerb.clip(0, 1)[..., None]
    return road + (np.array([242, 240, 228], np.float32) - road) * dash.clip(0, 1)[..., None]


def _sky(rng: np.random.Generator, height: int, width: int) -> Float[np.ndarray, "h w 3"]:
    blue = _mix(np.broadcast_to(_rows(height), (height, width)), (74, 146, 226), (178, 216, 246))
    puffs = _clouds(rng, height, width, 4, 3, 5)
    white = ((puffs - 0.18) * 2.6).clip(0, 1)[..., None]
    shade = _mix(0.75 + 0.5 * puffs, (214, 224, 236), (255, 255, 255))
    return blue + (shade - blue) * white


def _wood(rng: np.random.Generator, height: int, width: int) -> Float[np.ndarray, "h w 3"]:
    """Planks from left to right with their grain, gaps and nails."""
    planks = 6
    rows = np.broadcast_to(_rows(height) * planks, (height, width))
    number = rows.astype(np.int64).clip(0, planks - 1)
    tone = rng.uniform(-0.22, 0.22, planks)[number]
    grain = _noise(rng, height, width, 60, 3) * 0.5 + _noise(rng, height, width, 24, 2) * 0.4
    rgb = _mix(0.5 + tone + 0.42 * grain, (134, 84, 44), (204, 150, 92))
    gap = np.maximum(0.035, 0.55 * planks / height)
    rgb[np.abs((rows + 0.5) % 1 - 0.5) < gap] = (84, 50, 26)
    ends = rng.uniform(0, 1, (planks, 2))[number]  # where planks meet end to end
    columns = np.broadcast_to(_columns(width), (height, width))
    for end in range(2):
        rgb[np.abs(columns - ends[..., end]) < max(0.005, 0.55 / width)] = (84, 50, 26)
    return rgb


def _brick(rng: np.random.Generator, height: int, width: int) -> Float[np.ndarray, "h w 3"]:
    courses, across = 10, 5
    rows = np.broadcast_to(_rows(height) * courses, (height, width))
    number = rows.astype(np.int64).clip(0, courses - 1)
    columns = (np.broadcast_to(_columns(width) * across, (height, width)) + 0.5 * (number % 2)) % across
    tone = rng.uniform(-0.3, 0.3, (courses, across))[number, columns.astype(np.int64).clip(0, across - 1)]
    grain = _noise(rng, height, width, 64, 64)
    rgb = _mix(0.5 + tone + 0.16 * grain, (138, 58, 42), (198, 104, 76))
    below, beside = (np.abs((place + 0.5) % 1 - 0.5) for place in (rows, columns))
    mortar = np.minimum(below / courses * height, beside / across * width)  # pixels to the nearest joint
    thick = 0.009 * min(height, width)
    share = (thick + 0.5 - mortar).clip(0, 1)[..., None]
    return rgb + (np.array([206, 198, 186], np.float32) - rgb) * share


_PLACES: dict[str, Callable[[np.random.Generator, int, int], Float[np.ndarray, "h w 3"]]] = {
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "snow": _snow,
    "street": _street,
    "sky": _sky,
    "wood": _wood,
    "brick": _brick,
}
