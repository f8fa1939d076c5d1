"""DITO: pretrain the detector itself on images and captions, and let captions find their regions.

The feature pyramid and the head of a detector look at R random boxes of each image, on each level of the pyramid. The
largest value over the boxes, channel by channel, makes the vector of the image, which is contrasted with the caption:

    r_lbk = head( RoIAlign(F_l, box_lbk) )          v_lb = max_k r_lbk          before any normalisation
    loss  = mean_l InfoNCE( v̂_l, t̂ )                                            both directions

so words pull at the box that shows them, without box labels. The backbone sees each image twice, plain and rolled
(`shifted_window_features`). Detection (`DitoDetector`) ensembles the detector's class probabilities p with those z of
a frozen copy of the pretrained model (class 0 is the background; w = α for base classes, β for novel ones):

    e_k ∝ p_k^(1−w_k) · z_k^(w_k),   e_0 ∝ p_0          score = objectness^γ · e

Dahun Kim, Anelia Angelova, Weicheng Kuo: Region-centric Image-Language Pretraining for Open-Vocabulary Detection
(first: Detection-Oriented Image-Text Pretraining …). ECCV 2024, arXiv 2310.00161.

The release holds detection only. The ranges of the random boxes and what is frozen while the detector's parts learn
are read from the paper. Heights are uniform, shapes log-uniform among those that keep the width in range. Departures
from the released configuration: it shrinks regions to 0.7 of their sides before it reads the frozen model's features,
and weights the IoU loss of the proposals by 8; here regions stay as they are, and all four losses weigh 1.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveal.nn.roi import roi_align as roi_align
from foveal.pretrain.base import (
    LogitScale,
    at_least_float32,
    finite_loss,
    gathered_pairs,
    pair_loss,
    positive_scale,
    unit_pairs,
)
from foveal.pretrain.base_towers import text_features
from foveal.pretrain.dito_detector import DitoDetector as DitoDetector
from foveal.pretrain.dito_model import DitoRegionHead as DitoRegionHead
from foveal.pretrain.dito_model import RegionHeadOutput as RegionHeadOutput
from foveal.pretrain.dito_model import SimpleFeaturePyramid as SimpleFeaturePyramid
from foveal.pretrain.dito_proposals import centerness as centerness
from foveal.pretrain.dito_scores import ensemble_scores as ensemble_scores
from foveal.pretrain.dito_scores import region_text_logits as region_text_logits
from foveal.pretrain.dito_windows import WindowViT as WindowViT
from foveal.pretrain.dito_windows import patch_map
from foveal.pretrain.dito_windows import shifted_window_features as shifted_window_features
from foveal.pretrain.dito_windows import window_merge as window_merge
from foveal.pretrain.dito_windows import window_partition as window_partition

POOLING = ("max", "mean")

# Pretraining ----------------------------------------------------------------------------------------------------------


def sample_region_boxes(
    batch: int,
    num: int,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.2, 1.0),
    aspect: tuple[float, float] = (0.5, 2.0),
) -> Float[Tensor, "b r 4"]:
    """Random boxes x0, y0, x1, y1 inside the image, in shares of its sides; on the device of ``generator``.

    Args:
        scale: range of widths and of heights.
        aspect: range of width / height, both in shares.

    Raises ValueError for ranges that are not 0 < low ≤ high (≤ 1 for the scale), or that exclude each other.
    """
    low, high = scale
    narrow, wide = aspect
    if not 0 < low <= high <= 1:
        raise ValueError(f"scale={scale}: must be 0 < low ≤ high ≤ 1")
    if not 0 < narrow <= wide < math.inf:
        raise ValueError(f"aspect={aspect}: must be 0 < low ≤ high")
    if batch < 0 or num < 1:
        raise ValueError(f"batch={batch}, num={num}: must be at least 0 and at least 1")
    shortest, highest = max(low, low / wide), min(high, high / narrow)
    if shortest > highest:
        raise ValueError(f"aspect={aspect}: no box of scale={scale} has such a shape")
    draw = torch.rand(4, batch, num, generator=generator, device=generator.device, dtype=torch.float64)
    height = shortest + (highest - shortest) * draw[0]
    least, most = (low / height).clamp(min=narrow).log(), (high / height).clamp(max=wide).log()
    width = (height * (least + (most - least) * draw[1]).exp()).clamp(low, high)
    x, y = draw[2] * (1 - width), draw[3] * (1 - height)
    return torch.stack([x, y, x + width, y + height], -1).clamp(0, 1).float()


def pool_regions(
    x: Float[Tensor, "b r d"], mask: Bool[Tensor, "b r"] | None = None, mode: str = "max"
) -> Float[Tensor, "b d"]:
    """Maximum ("max") or mean over the regions that ``mask`` shows, channel by channel; 0 where it shows none.

    Raises ValueError for another mode, shapes that do not fit, and non-finite values that are not masked.
    """
    if mode not in POOLING:
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(POOLING)}")
    if x.ndim != 3 or (mask is not None and mask.shape != x.shape[:2]):
        given = None if mask is None else tuple(mask.shape)
        raise ValueError(f"x {tuple(x.shape)}, mask {given}: must be (B, R, D) and (B, R)")
    if x.shape[1] == 0:
        raise ValueError(f"x {tuple(x.shape)} has no region to pool: sample at least one box")
    seen = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask.bool()
    shown = x.masked_fill(~seen[..., None], 0)
    if not bool(shown.isfinite().all()):  # a maximum would swallow −∞
        raise ValueError("x holds NaN or infinity in a region that counts")
    if mode == "mean":
        return (at_least_float32(shown).sum(1) / seen.sum(1, keepdim=True).clamp(min=1)).to(x.dtype)
    highest = x.masked_fill(~seen[..., None], -math.inf).amax(1)
    return highest.masked_fill(~seen.any(1, keepdim=True), 0)


def region_contrastive_loss(
    regions: Float[Tensor, "l b r d"],
    text: Float[Tensor, "b d"],
    logit_scale: float | Tensor,
    mask: Bool[Tensor, "b r"] | None = None,
    mode: str = "max",
) -> Float[Tensor, ""]:
    """Mean over L levels of the symmetric InfoNCE between pooled regions and captions, of one process.

    Args:
        regions: vectors as the head gives them; the pooled ones are normalised here.
        logit_scale: positive multiplier of the cosines, not its logarithm.
    """
    losses = []
    for level in _levels(regions):
        image, own, *_ = unit_pairs(pool_regions(level, mask, mode), text)
        scale = positive_scale(logit_scale, like=image, name="logit_scale")
        losses.append(pair_loss(image, own, image, own, scale, 0))
    return finite_loss(torch.stack(losses).mean(), regions=regions, text=text)


@dataclass
class DitoOutput:
    """The loss, that of each level, and one vector for each image: the mean over levels of its unit vectors."""

    loss: Float[Tensor, ""]
    per_level: Float[Tensor, " l"]
    image_embed: Float[Tensor, "b d"]


def region_contrast(
    regions: Float[Tensor, "l b r d"],
    text: Float[Tensor, "b d"],
    scale: Float[Tensor, ""],
    mask: Bool[Tensor, "b r"] | None = None,
    mode: str = "max",
    group: Any = None,
) -> DitoOutput:
    """`region_contrastive_loss` against the captions of all processes of ``group``; each needs the same B and L."""
    losses, images = [], []
    for level in _levels(regions):
        image, own, all_image, all_text, rank = gathered_pairs(pool_regions(level, mask, mode), text, group)
        losses.append(pair_loss(image, own, all_image, all_text, positive_scale(scale, like=image), rank))
        images.append(image)
    per_level = torch.stack(losses)
    loss = finite_loss(per_level.mean(), regions=regions, text=text)
    return DitoOutput(loss, per_level, torch.stack(images).mean(0))


class DitoObjective(nn.Module):
    """The second phase: pyramid and head learn from images and captions, on top of a contrastively pretrained model.

    After every optimiser step call ``logit_scale.clamp_()``.

    Args:
        backbone: images -> a map or tokens (see `patch_map`), such as `WindowViT`, `CLIPVisionModel` or `ViTModel`.
        text: (ids, mask) -> vectors (see `text_features`), such as `CLIPTextModelWithProjection`.
        pyramid: map -> level -> map, such as `SimpleFeaturePyramid`.
        head: RoI features -> `RegionHeadOutput`; its ``roi_size`` is that of the features, 7 in the paper.
        num_regions: R, random boxes for each image and level, drawn anew in every step.
        train_backbone: also train backbone and text tower; otherwise both are frozen and stay in evaluation mode.
        group: processes whose captions are contrasted.
        scale: range of the boxes' sides; (1, 1) is always the whole image.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text: nn.Module,
        pyramid: nn.Module,
        head: DitoRegionHead,
        num_regions: int = 32,
        train_backbone: bool = False,
        group: Any = None,
        scale: tuple[float, float] = (0.2, 1.0),
    ) -> None:
        super().__init__()
        if num_regions < 1:
            raise ValueError(f"num_regions={num_regions}: must be at least 1")
        self.backbone, self.text, self.pyramid, self.head = backbone, text, pyramid, head
        self.num_regions, self.train_backbone, self.group = num_regions, train_backbone, group
        self.scale = scale
        self.logit_scale = LogitScale()
        if not train_backbone:
            backbone.requires_grad_(False)
            text.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "DitoObjective":
        """As usual, but frozen towers stay in evaluation mode: their dropout must not come back."""
        super().train(mode)
        if not self.train_backbone:
            self.backbone.eval()
            self.text.eval()
        return self

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        ids: Tensor,
        mask: Tensor,
        generator: torch.Generator,
    ) -> DitoOutput:
        """``ids`` and ``mask`` (B, L) are a tokenizer's; ``generator`` draws the boxes."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_backbone):
            features = patch_map(self.backbone, images)
            captions = text_features(self.text, ids, mask)
        regions = []
        for level in self.pyramid(features).values():
            boxes = sample_region_boxes(len(images), self.num_regions, generator, self.scale).to(level.device)
            regions.append(self.head(roi_align(level, boxes, self.head.roi_size)).embed)
        return region_contrast(torch.stack(regions), captions, self.logit_scale(), group=self.group)


def _levels(regions: Tensor) -> Tensor:
    if regions.ndim != 4 or len(regions) == 0:
        raise ValueError(f"regions {tuple(regions.shape)} must be (levels, B, R, D) with at least one level")
    return regions
