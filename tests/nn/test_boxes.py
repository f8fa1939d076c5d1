import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.nn.boxes import area, centres, corners, giou, iou, nms

torch.set_num_threads(1)


def some_boxes(n, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    low = torch.rand(n, 2, generator=rng, dtype=dtype)
    return torch.cat([low, low + 0.5 * torch.rand(n, 2, generator=rng, dtype=dtype)], 1)


def painted(box, size=100):
    """The cells of a fine raster that a box covers: the slow way to measure areas."""
    canvas = np.zeros((2 * size, 2 * size), bool)
    x0, y0, x1, y1 = (round(float(value) * size) for value in box)
    canvas[y0:y1, x0:x1] = True
    return canvas


def test_overlap_equals_counting_cells():
    a, b = (some_boxes(6, seed).mul(100).round().div(100) for seed in (0, 1))
    for i, first in enumerate(a):
        for j, second in enumerate(b):
            one, two = painted(first), painted(second)
            hull = painted(torch.cat([torch.minimum(first, second)[:2], torch.maximum(first, second)[2:]]))
            union = (one | two).sum()
            assert float(iou(first, second)) == pytest.approx((one & two).sum() / union)
            expected = (one & two).sum() / union - (hull.sum() - union) / hull.sum()
            assert float(giou(first, second)) == pytest.approx(expected)
            assert float(giou(a[:, None], b)[i, j]) == pytest.approx(expected)


def test_conversions_are_inverse():
    boxes = some_boxes(5)
    torch.testing.assert_close(corners(centres(boxes)), boxes)
    torch.testing.assert_close(centres(torch.tensor([1.0, 2.0, 5.0, 4.0])), torch.tensor([3.0, 3.0, 4.0, 2.0]))
    assert area(torch.tensor([0.0, 0.0, 2.0, 3.0])) == 6
    assert area(torch.tensor([2.0, 0.0, 0.0, 3.0])) == 0


def test_boxes_without_area():
    point, unit = torch.tensor([0.5, 0.5, 0.5, 0.5]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    for first, second in ((point, point), (point, unit), (point, point + 1)):
        first = first.clone().requires_grad_()
        value = giou(first, second)
        value.backward()
        assert value.isfinite()
        assert first.grad.isfinite().all()
    assert iou(point, point) == 0
    assert iou(unit, unit) == giou(unit, unit) == 1


def test_half_precision_is_compared_in_float32():
    boxes = some_boxes(4, dtype=torch.bfloat16)
    assert iou(boxes, boxes).dtype == torch.float32


def greedy(boxes, scores, threshold, classes=None):
    """Non-maximum suppression as it is usually written."""
    left, kept = sorted(range(len(scores)), key=lambda i: -float(scores[i])), []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [
            i
            for i in left
            if not (iou(boxes[best], boxes[i]) > threshold and (classes is None or bool(classes[best] == classes[i])))
        ]
    return kept


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]), classed=st.booleans())
def test_nms_equals_the_greedy_loop(seed, threshold, classed):
    rng = torch.Generator().manual_seed(seed)
    boxes, scores = some_boxes(25, seed), (torch.rand(25, generator=rng) * 10).round()  # with ties
    classes = torch.randint(3, (25,), generator=rng) if classed else None
    assert nms(boxes, scores, threshold, classes).tolist() == greedy(boxes, scores, threshold, classes)


def test_nms_of_nothing():
    assert nms(torch.zeros(0, 4), torch.zeros(0)).shape == (0,)


def test_bad_input():
    with pytest.raises(ValueError, match="boxes"):
        corners(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="scores"):
        nms(torch.zeros(3, 4), torch.zeros(2))
    with pytest.raises(ValueError, match="classes"):
        nms(torch.zeros(3, 4), torch.zeros(3), classes=torch.zeros(2))
    with pytest.raises(ValueError, match=r"threshold=1\.5"):
        nms(torch.zeros(3, 4), torch.zeros(3), 1.5)
