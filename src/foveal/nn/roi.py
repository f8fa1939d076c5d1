"""RoIAlign: a grid of averages of a feature map inside a box, without rounding the box to whole cells.

Each of the o × o bins of a box is the mean of s × s bilinear samples at regular places in it. He et al., Mask R-CNN,
ICCV 2017, arXiv 1703.06870; with the half-pixel shift that later releases added (``aligned``).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from foveal.nn.boxes import area

CANONICAL = 224 / 1024
"""Side of a box, as a share of the picture, that is read from level 4: 224 pixels of the usual 1,024."""


def roi_align(
    features: Float[Tensor, "b c h w"],
    boxes: Float[Tensor, "b r 4"],
    output_size: int = 7,
    sampling_ratio: int = 2,
) -> Float[Tensor, "b r c o o"]:
    """What R boxes of each image hold. Gradient flows to the features and to the boxes.

    Args:
        features: of any type; whole numbers are averaged, and returned, in float32.
        boxes: x0, y0, x1, y1 as shares of the picture's width and height, 0 to 1; what lies outside shows the border.
        output_size: bins along each side.
        sampling_ratio: samples along each side of a bin.

    Raises ValueError for shapes that do not fit and sizes below 1.
    """
    if features.ndim != 4 or boxes.ndim != 3 or boxes.shape[2] != 4 or len(boxes) != len(features):
        shapes = f"features {tuple(features.shape)}, boxes {tuple(boxes.shape)}"
        raise ValueError(f"{shapes}: must be (B, C, H, W) and (B, R, 4) of the same B")
    if 0 in features.shape:
        raise ValueError(f"features {tuple(features.shape)} must not be empty")
    if output_size < 1 or sampling_ratio < 1:
        raise ValueError(f"output_size={output_size}, sampling_ratio={sampling_ratio}: both must be at least 1")
    batch, channels = features.shape[:2]
    regions, samples = boxes.shape[1], output_size * sampling_ratio
    features = _floating(features)
    maps = features.to(torch.promote_types(features.dtype, torch.float32))
    steps = (torch.arange(samples, device=boxes.device, dtype=maps.dtype) + 0.5) / samples
    low, high = boxes.to(maps)[..., None].split(2, 2)
    places = 2 * (low + (high - low) * steps) - 1  # (B, R, 2, samples); −1 and 1 are the outer edges of border cells
    x = places[:, :, 0, None, :].expand(-1, -1, samples, -1)
    y = places[:, :, 1, :, None].expand(-1, -1, -1, samples)
    grid = torch.stack([x, y], -1).flatten(1, 2)
    found = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    bins = found.unflatten(2, (regions, output_size, sampling_ratio))
    bins = bins.unflatten(5, (output_size, sampling_ratio)).mean((4, 6))
    return bins.transpose(1, 2).reshape(batch, regions, channels, output_size, output_size).to(features.dtype)


def multilevel_roi_align(
    maps: Mapping[int, Float[Tensor, "b c _ _"]],
    boxes: Float[Tensor, "b r 4"],
    output_size: int = 7,
    sampling_ratio: int = 2,
) -> Float[Tensor, "b r c o o"]:
    """`roi_align` of each box on the level of a feature pyramid that suits its size.

    Level 4 + log2(√area / `CANONICAL`), rounded down, or the nearest there is: twice the side, one level up. Lin et
    al., Feature Pyramid Networks for Object Detection, CVPR 2017, arXiv 1612.03144, equation 1.

    Args:
        maps: level -> map; all of the same B and C.

    Raises ValueError for no maps, and see `roi_align`.
    """
    if not maps:
        raise ValueError("maps is empty: give at least one level")
    levels = torch.tensor(sorted(maps), device=boxes.device)
    wanted = (4 + (area(boxes).sqrt() / CANONICAL).clamp(min=1e-6).log2()).floor()
    place = (wanted[..., None] - levels).abs().argmin(-1)
    some = _floating(maps[int(levels[0])])
    found = some.new_zeros(*boxes.shape[:2], some.shape[1], output_size, output_size)
    for index, level in enumerate(levels.tolist()):
        for image in range(len(boxes)):
            here = place[image] == index
            if bool(here.any()):
                one, chosen = maps[level][image : image + 1], boxes[image : image + 1, here]
                found[image, here] = roi_align(one, chosen, output_size, sampling_ratio)[0]
    return found


def _floating(features: Tensor) -> Tensor:
    return features if features.is_floating_point() else features.float()
