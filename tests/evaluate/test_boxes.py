"""Boxes as text and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.evaluate.boxes import box_text, iou, parse_box


def test_text_of_a_box():
    assert box_text((0, 0, 96, 96), 96, 96) == "0 0 99 99"
    assert box_text((24, 48, 72, 60), 96, 120) == "25 40 75 50"


@pytest.mark.parametrize(
    "text",
    [
        "25 40 75 50",
        "[25, 40, 75, 50]",
        "The box is (25,40),(75,50).",
        "<25><40><75><50>",
        "0.25 0.40 0.75 0.50",
        "75 40 25 50",
    ],
)
def test_ways_to_write_the_same_box(text):
    assert parse_box(text) == pytest.approx((0.25, 0.4, 0.75, 0.5))


@pytest.mark.parametrize("text", ["", "no box", "1 2 3", "2 dogs and 3 cats and 4 5", "10 20 30 400", "1, 2 and 3, 4"])
def test_no_box(text):
    assert parse_box(text) is None


def test_a_number_in_the_sentence_is_not_part_of_the_box():
    assert parse_box("2 dogs: 10 20 30 40") == pytest.approx((0.1, 0.2, 0.3, 0.4))


@given(st.tuples(*[st.integers(0, 96)] * 4))
def test_there_and_back(corners):
    x0, x1 = sorted(corners[:2])
    y0, y1 = sorted(corners[2:])
    if x1 - x0 < 8 or y1 - y0 < 8:
        return
    back = parse_box(box_text((x0, y0, x1, y1), 96, 96))
    assert np.allclose(np.array(back) * 96, (x0, y0, x1, y1), atol=1.0)
    assert iou(np.array(back) * 96, (x0, y0, x1, y1)) > 0.7


def test_iou():
    assert iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 1, 1), (1, 1, 2, 2)) == 0
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_bad_boxes():
    for box in ((0, 0, 97, 5), (5, 0, 5, 5), (-1, 0, 5, 5)):
        with pytest.raises(ValueError, match="box="):
            box_text(box, 96, 96)
    with pytest.raises(ValueError, match="width=0"):
        box_text((0, 0, 1, 1), 0, 4)
