"""Writing in the picture: DejaVu Sans for Latin, our own strokes for a few simple Chinese characters.

No wheel among our dependencies has a CJK font, and a font of 10 MB is more than the task needs. Each character is a
handful of brush strokes in a unit square.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

STROKES = {  # polylines as "x,y x,y; …" in percent of the square, y down
    "一": "12,52 88,52",
    "二": "22,28 78,28; 10,78 90,78",
    "三": "18,20 82,20; 24,50 76,50; 10,82 90,82",
    "十": "10,45 90,45; 50,10 50,92",
    "上": "48,10 48,84; 48,42 80,42; 10,84 90,84",
    "下": "10,16 90,16; 48,16 48,92; 50,38 76,58",
    "大": "12,36 88,36; 50,8 49,36 38,66 12,92; 51,38 62,66 90,92",
    "小": "50,8 50,90 38,80; 28,36 12,70; 72,36 88,70",
    "中": "18,26 18,66; 18,26 82,26 82,66; 18,66 82,66; 50,8 50,94",
    "人": "50,8 46,46 10,92; 48,46 62,68 92,92",
    "天": "18,16 82,16; 10,46 90,46; 50,16 49,46 38,70 10,92; 51,46 62,70 92,92",
    "口": "18,20 18,84; 18,20 82,20 82,84; 18,76 82,76",
    "日": "24,12 24,90; 24,12 76,12 76,90; 24,50 76,50; 24,86 76,86",
    "月": "30,10 28,60 14,92; 30,10 76,10 76,88 62,82; 30,36 76,36; 28,62 76,62",
    "山": "50,8 50,82; 14,36 14,82 86,82; 86,36 86,82",
    "川": "20,14 20,54 10,90; 50,18 50,80; 82,10 82,92",
    "木": "10,34 90,34; 50,8 50,94; 48,36 34,62 10,80; 52,36 68,62 92,80",
    "火": "22,30 32,50; 82,26 68,48; 50,8 48,50 34,74 10,92; 50,50 64,74 92,92",
    "水": "50,8 50,90 38,82; 10,36 38,36 30,60 10,80; 84,24 58,46; 54,40 68,66 92,84",
    "土": "20,40 80,40; 50,10 50,86; 8,86 92,86",
    "王": "16,14 84,14; 22,48 78,48; 50,14 50,86; 8,86 92,86",
    "田": "16,16 16,88; 16,16 84,16 84,88; 16,50 84,50; 50,16 50,84; 16,84 84,84",
}
CJK_WORDS = (
    *("山水", "火山", "人口", "大人", "小人", "天下", "上下", "大小", "日月", "中山", "土木", "水田", "山川", "大王"),
    *("一月", "二月", "三月", "十月", "木", "火", "水", "土", "山", "川", "中", "田", "王"),
)


@lru_cache(maxsize=512)
def letters(text: str, script: str, pixels: int) -> tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]]:
    """Alpha of the letters and of the letters with their contour, for a line ``pixels`` high (at least 4)."""
    draw = _latin if script == "latin" else _cjk
    return draw(text, max(4, pixels), 0), draw(text, max(4, pixels), max(1, round(pixels * 0.09)))


def _latin(text: str, pixels: int, contour: int) -> UInt8[np.ndarray, "h w"]:
    font = _font(pixels)
    margin = max(1, round(pixels * 0.09))
    left, top, right, bottom = font.getbbox(text, stroke_width=margin)
    canvas = Image.new("L", (int(right - left), int(bottom - top)), 0)
    ImageDraw.Draw(canvas).text((-left, -top), text, fill=255, font=font, stroke_width=contour)
    return np.asarray(canvas)


@lru_cache(maxsize=64)
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    spec = find_spec("matplotlib")  # found, not imported: that would take a third of a second
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the letters of the world come with matplotlib; pip install matplotlib")
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    return ImageFont.truetype(str(path), size=round(pixels / 0.73))  # capitals are 0.73 of the size


def _cjk(text: str, pixels: int, contour: int) -> UInt8[np.ndarray, "h w"]:
    finer, margin = 4, max(1, round(pixels * 0.09))
    width, height = round(pixels * (1.1 * len(text) - 0.1)) + 2 * margin, pixels + 2 * margin
    canvas = Image.new("L", (width * finer, height * finer), 0)
    pen = ImageDraw.Draw(canvas)
    thick = round((pixels * 0.1 + 2 * contour) * finer)
    for number, character in enumerate(text):
        origin = margin + number * pixels * 1.1
        for stroke in STROKES[character].split("; "):
            points = [tuple(float(part) / 100 * pixels for part in point.split(",")) for point in stroke.split()]
            line = [((origin + x) * finer, (margin + y) * finer) for x, y in points]
            pen.line(line, fill=255, width=thick, joint="curve")
            for x, y in (line[0], line[-1]):  # round ends
                pen.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=255)
    return np.asarray(canvas.reduce(finer))
