"""Boxes as text: "x0 y0 x1 y1" in hundredths of the picture's width and height, four whole numbers from 0 to 99.

Two digits a number keep the text short, whatever the size of the picture. The last hundredth is 99, so that no number
needs a third digit: a box up to the edge ends at 99, which is read back as the edge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]
STEPS = 100
_NUMBER, _BETWEEN = r"(\d+(?:\.\d+)?)", r"[\s,;()\[\]<>]+"
_BOX = re.compile(rf"(?<![\d.-]){_BETWEEN.join([_NUMBER] * 4)}")


def box_text(box: Sequence[float], width: int, height: int) -> str:
    """Text of a box given in pixels: x0, y0, x1, y1, the ends exclusive.

    Raises:
        ValueError: when the box is empty or reaches out of the picture, or the picture has no pixels.
    """
    if width < 1 or height < 1:
        raise ValueError(f"width={width}, height={height}: a picture has at least one pixel a side")
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"box={tuple(box)} must lie within {width} × {height} pixels with x0 < x1 and y0 < y1")
    shares = (x0 / width, y0 / height, x1 / width, y1 / height)
    return " ".join(str(min(round(share * STEPS), STEPS - 1)) for share in shares)


def parse_box(text: str) -> Box | None:
    """The first box in a text, as shares of width and height (0 to 1), or None where there is none.

    Words around the four numbers, brackets and commas between them do not matter. Corners in the wrong order are
    swapped. Numbers that all lie within 0 to 1 and have a decimal point are taken as shares, as many models write them.
    """
    found = _BOX.search(text)
    if found is None:
        return None
    written = found.groups()
    numbers = [float(number) for number in written]
    if any("." in number for number in written) and all(0 <= number <= 1 for number in numbers):
        shares = numbers
    elif all(0 <= number <= STEPS for number in numbers):
        shares = [1.0 if number >= STEPS - 1 else number / STEPS for number in numbers]
    else:
        return None
    x0, x1 = sorted(shares[0::2])
    y0, y1 = sorted(shares[1::2])
    return x0, y0, x1, y1


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Area that two boxes share over the area that they cover together, 0 to 1, in any unit."""
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(across, 0.0) * max(down, 0.0)
    together = _area(a) + _area(b) - shared
    return shared / together if together > 0 else 0.0


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
