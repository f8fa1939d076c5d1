"""DITO's detector parts that pretraining shares with detection: the feature pyramid and the head on regions.

The pyramid is ViTDet's: Li et al., Exploring Plain Vision Transformer Backbones for Object Detection, ECCV 2022,
arXiv 2203.16527. The head is that of Faster R-CNN with layer norms, and a text-wide vector in place of class scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

BASE_LEVEL = 4
"""Level l has a stride of 2^l pixels; a plain ViT of patch 16 gives level 4."""


@dataclass
class RegionHeadOutput:
    """Vectors in the width of the text, not normalised, and class-agnostic box offsets."""

    embed: Float[Tensor, "b r e"]
    box: Float[Tensor, "b r 4"]


class DitoRegionHead(nn.Module):
    """RoI features -> Linear, LayerNorm, ReLU, twice -> `embed` and `box`.

    Args:
        in_channels, roi_size: C and o of the features (B, R, C, o, o).
        hidden: width of the two layers, 1024 in the paper.
        embed_dim: width E of the text vectors.
    """

    def __init__(self, in_channels: int, roi_size: int, hidden: int, embed_dim: int) -> None:
        super().__init__()
        for name, value in (
            ("in_channels", in_channels),
            ("roi_size", roi_size),
            ("hidden", hidden),
            ("embed_dim", embed_dim),
        ):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.shape = (in_channels, roi_size, roi_size)
        self.roi_size = roi_size
        self.fc1 = nn.Linear(in_channels * roi_size**2, hidden)
        self.ln1 = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.ln2 = nn.LayerNorm(hidden)
        self.embed = nn.Linear(hidden, embed_dim)
        self.box = nn.Linear(hidden, 4)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer, std in ((self.embed, 0.01), (self.box, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, roi_features: Float[Tensor, "b r c o o"]) -> RegionHeadOutput:
        """ValueError for features of another shape."""
        if roi_features.ndim != 5 or roi_features.shape[2:] != self.shape:
            raise ValueError(
                f"roi_features {tuple(roi_features.shape)} must be (B, R, {', '.join(map(str, self.shape))})"
            )
        x = F.relu(self.ln1(self.fc1(roi_features.flatten(2))))
        x = F.relu(self.ln2(self.fc2(x)))
        return RegionHeadOutput(self.embed(x), self.box(x))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place of a map (B, C, H, W)."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimpleFeaturePyramid(nn.Module):
    """One map of level 4 -> maps of several levels, each with ``out_channels``.

    Level 2 comes from two transposed convolutions, level 3 from one, level 5 from max-pooling; a 1×1 and a 3×3
    convolution follow at each. Maps of other strides work alike: levels then count from theirs.

    Args:
        dim: channels of the map; a multiple of 4 where level 2 is wanted, else of 2 where level 3 is.
        levels: out of 2 to 5, each once.
    """

    def __init__(self, dim: int, out_channels: int, levels: Sequence[int] = (2, 3, 4, 5)) -> None:
        super().__init__()
        if not levels or len(set(levels)) < len(levels) or not set(levels) <= {2, 3, 4, 5}:
            raise ValueError(f"levels={tuple(levels)}: must be some of 2, 3, 4, 5, each once")
        divisor = {2: 4, 3: 2}.get(min(levels), 1)
        if dim % divisor or dim < 1:
            raise ValueError(f"dim={dim}: must be a multiple of {divisor}, which level {min(levels)} divides it by")
        self.levels = tuple(levels)
        self.stages = nn.ModuleDict({str(level): _stage(level, dim, out_channels) for level in levels})

    def forward(self, features: Float[Tensor, "b d h w"]) -> dict[int, Float[Tensor, "b c _ _"]]:
        """Level -> its map, in the order of ``levels``."""
        return {level: self.stages[str(level)](features) for level in self.levels}


def _stage(level: int, dim: int, out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    if level == 2:
        layers += [nn.ConvTranspose2d(dim, dim // 2, 2, stride=2, bias=False), ChannelNorm(dim // 2), nn.GELU()]
        layers += [nn.ConvTranspose2d(dim // 2, dim // 4, 2, stride=2, bias=False)]
    elif level == 3:
        layers += [nn.ConvTranspose2d(dim, dim // 2, 2, stride=2, bias=False)]
    elif level == 5:
        layers += [nn.MaxPool2d(2, ceil_mode=True)]  # a map of one place stays one
    channels = {2: dim // 4, 3: dim // 2}.get(level, dim)
    layers += [nn.Conv2d(channels, out, 1, bias=False), ChannelNorm(out)]
    layers += [nn.Conv2d(out, out, 3, padding=1, bias=False), ChannelNorm(out)]
    return nn.Sequential(*layers)
