import math

import pytest
import torch

from foveal.nn.roi import multilevel_roi_align, roi_align

torch.set_num_threads(1)


def by_hand(features, boxes, bins, samples):
    """One number at a time: the mean of bilinear samples at the middles of samples × samples cells of each bin."""
    batch, channels, height, width = features.shape
    out = torch.zeros(batch, boxes.shape[1], channels, bins, bins, dtype=features.dtype)
    for b in range(batch):
        for r, (x0, y0, x1, y1) in enumerate(boxes[b].tolist()):
            for i in range(bins * samples):
                for j in range(bins * samples):
                    y = (y0 + (y1 - y0) * (i + 0.5) / (bins * samples)) * height - 0.5
                    x = (x0 + (x1 - x0) * (j + 0.5) / (bins * samples)) * width - 0.5
                    out[b, r, :, i // samples, j // samples] += bilinear(features[b], y, x) / samples**2
    return out


def bilinear(image, y, x):
    height, width = image.shape[1:]
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = image[:, top, left] * (1 - x + left) + image[:, top, right] * (x - left)
    lower = image[:, bottom, left] * (1 - x + left) + image[:, bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


@pytest.mark.parametrize(("height", "width", "bins", "samples"), [(5, 7, 3, 2), (1, 4, 2, 1), (6, 1, 1, 3)])
def test_equals_single_samples(height, width, bins, samples):
    rng = torch.Generator().manual_seed(height)
    features = torch.randn(2, 3, height, width, generator=rng, dtype=torch.float64)
    low = torch.rand(2, 4, 2, generator=rng, dtype=torch.float64) * 0.6
    boxes = torch.cat([low, low + 0.4 * torch.rand(2, 4, 2, generator=rng, dtype=torch.float64)], 2)
    boxes[0, 0] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    torch.testing.assert_close(roi_align(features, boxes, bins, samples), by_hand(features, boxes, bins, samples))


def test_a_ramp_is_read_at_the_middles_of_the_bins():
    ramp = (torch.arange(8.0) + 0.5)[None, None, None].expand(1, 1, 8, 8) / 8  # its value at x is x
    found = roi_align(ramp, torch.tensor([[[0.25, 0.25, 0.75, 0.75]]]), 2)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([[0.375, 0.625]]).expand(2, 2))


def test_gradients_of_features_and_boxes():
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(1, 2, 5, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[[0.13, 0.21, 0.66, 0.81]]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, b: roi_align(f, b, 2), (features, boxes))


def test_half_precision_keeps_its_type():
    features = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[[0.1, 0.2, 0.8, 0.9]]])
    half = roi_align(features.bfloat16(), box)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), roi_align(features, box), atol=0.03, rtol=0.03)


def test_whole_numbers_are_averaged_as_numbers():
    features, box = torch.arange(16).view(1, 1, 4, 4), torch.tensor([[[0.1, 0.2, 0.8, 0.9]]])
    assert torch.equal(roi_align(features, box), roi_align(features.float(), box))
    assert torch.equal(multilevel_roi_align({4: features}, box), multilevel_roi_align({4: features.float()}, box))


def test_no_boxes():
    assert roi_align(torch.zeros(2, 3, 4, 4), torch.zeros(2, 0, 4), 2).shape == (2, 0, 3, 2, 2)


def test_bad_input():
    with pytest.raises(ValueError, match="boxes"):
        roi_align(torch.zeros(2, 3, 4, 4), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="features"):
        roi_align(torch.zeros(3, 4, 4), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="empty"):
        roi_align(torch.zeros(1, 3, 0, 4), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="output_size=0"):
        roi_align(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4), 0)


def test_boxes_are_read_from_the_level_of_their_size():
    maps = {level: torch.full((2, 1, 4, 4), float(level)) for level in (2, 3, 5)}
    sides = torch.tensor([0.05, 0.12, 0.25, 0.5, 1.0])  # levels 1, 3, 4, 5, 6 by the rule
    boxes = torch.stack([torch.zeros(5), torch.zeros(5), sides, sides], 1).expand(2, -1, -1)
    assert multilevel_roi_align(maps, boxes, 1).flatten(1)[1].tolist() == [2, 3, 3, 5, 5]
    rng = torch.Generator().manual_seed(0)
    maps = {level: torch.randn(2, 3, size, size, generator=rng) for level, size in ((3, 8), (4, 4))}
    mixed = multilevel_roi_align(maps, boxes[:, 1:3], 2)
    torch.testing.assert_close(mixed[:, :1], roi_align(maps[3], boxes[:, 1:2], 2))
    torch.testing.assert_close(mixed[:, 1:], roi_align(maps[4], boxes[:, 2:3], 2))
    with pytest.raises(ValueError, match="maps"):
        multilevel_roi_align({}, boxes)
