"""Boxes as text and back."""

import numpy as np
import pytest

from foveal.data.box_text import format_box, parse_box


def test_hundredths_of_width_and_height():
    assert format_box((24, 0, 48, 50), 96, 100) == "25 0 50 50"
    assert format_box((0, 0, 96, 100), 96, 100) == "0 0 99 99"


def test_reading_gives_the_box_back_to_a_hundredth():
    rng = np.random.default_rng(0)
    for _ in range(200):
        x0, y0 = rng.integers(0, 80, 2).tolist()
        box = (x0, y0, x0 + int(rng.integers(2, 97 - x0)), y0 + int(rng.integers(2, 97 - y0)))
        read = parse_box(f"The box is [{format_box(box, 96, 96).replace(' ', ', ')}].")
        assert read == pytest.approx([value / 96 for value in box], abs=0.0151)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("10 20 30 40", (0.1, 0.2, 0.3, 0.4)),
        ("it is at (30,40) and (10, 20)", None),
        ("(30, 40), (10, 20)", (0.1, 0.2, 0.3, 0.4)),
        ("0.1 0.25 0.5 1.0", (0.1, 0.25, 0.5, 1.0)),
        ("0 0 99 99", (0.0, 0.0, 1.0, 1.0)),
        ("1 1 1 1", (0.01, 0.01, 0.01, 0.01)),
        ("12 345 20 30", None),
        ("1 2 3", None),
        ("", None),
    ],
)
def test_tolerant_reading(text, box):
    assert parse_box(text) == (None if box is None else pytest.approx(box))


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (-1, 0, 5, 5), (0, 0, 97, 5), (float("nan"), 0, 5, 5)])
def test_a_box_that_is_none_is_refused(box):
    with pytest.raises(ValueError, match="within 96 × 96 pixels"):
        format_box(box, 96, 96)
    with pytest.raises(ValueError, match="at least 1"):
        format_box((0, 0, 1, 1), 0, 96)
