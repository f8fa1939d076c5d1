"""Boxes as text: "x0 y0 x1 y1", four whole numbers from 0 to 99, in hundredths of the picture's width and height.

Two digits are enough for any picture: what reaches the right or lower edge ends at 99, which is read as the edge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]

_NUMBER = r"(\d+(?:\.\d+)?)"
_FOUR = re.compile(r"(?<![\d.-])" + r"[\s,;()\[\]<>]+".join([_NUMBER] * 4))
_LAST = 99


def format_box(box: Sequence[float], width: int, height: int) -> str:
    """Text of a box in pixels: x0, y0, x1, y1 with exclusive ends, within a picture of ``width`` × ``height``.

    Raises:
        ValueError: when the picture has no pixels, or the box is empty or reaches out of it.
    """
    if width < 1 or height < 1:
        raise ValueError(f"width={width}, height={height}: both must be at least 1 pixel")
    x0, y0, x1, y1 = (float(value) for value in box)
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"box={(x0, y0, x1, y1)}: needs x0 < x1 and y0 < y1 within {width} × {height} pixels")
    shares = (x0 / width, y0 / height, x1 / width, y1 / height)
    return " ".join(str(min(_LAST, round(100 * share))) for share in shares)


def parse_box(text: str) -> Box | None:
    """The first box of a text as shares of width and height, 0 to 1; None where there is none.

    Words around it do not matter, nor do brackets and commas; corners in the wrong order are swapped. Four numbers up
    to 1 of which one has a point are shares already, which is how many models write boxes.
    """
    found = _FOUR.search(text)
    if found is None:
        return None
    numbers = [float(number) for number in found.groups()]
    if not (any("." in number for number in found.groups()) and max(numbers) <= 1):
        if max(numbers) > 100:
            return None
        numbers = [1.0 if number >= _LAST else number / 100 for number in numbers]
    (x0, x1), (y0, y1) = sorted(numbers[0::2]), sorted(numbers[1::2])
    return x0, y0, x1, y1
