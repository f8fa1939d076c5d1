"""GRAIN: predict where each description of an image lives, and a vector there that picks this description.

Beside image and caption, a decoder in the manner of DETR (`GrainDecoder`) gives Q boxes b̂ with vectors r, and the
vector v of the image. A frozen language model that sees wrote descriptions d of its parts, a frozen detector found
boxes b for them (`foveal.pretrain.grain_data`). σ is the cheapest one-to-one assignment of boxes to targets:

    σ     = argmin Σ 5·‖b̂_q − b_σ(q)‖₁ − 2·GIoU(b̂_q, b_σ(q))                  within each image, no gradient
    L_box = Σ_matched ( ‖b̂ − b‖₁ + 1 − GIoU ) / number of valid targets in the batch
    L_rd  = mean_matched CE( s · r̂_q D̂ᵀ, own )                                D: all valid descriptions of the batch
    L_ic  = symmetric InfoNCE of v and captions;        L = L_ic + L_box + L_rd;        s = exp(p), one for all

Images without boxes train L_ic alone. For zero-shot classification only v is used, against `class_prototypes`.

Shaunak Halbe, Junjiao Tian, K J Joseph, James Seale Smith, Katherine Stevo, Vineeth N Balasubramanian, Zsolt Kira:
Grounding Descriptions in Images informs Zero-Shot Visual Recognition. WACV 2026, arXiv 2412.04429.

Departures from the released code, all towards the paper: a plain sum of the losses (it weights L_box by 1.5), the exact
GIoU (it adds 1e-4 to the union), 0 where nothing is matched (it gives NaN), and one mask for boxes and descriptions (it
shifts descriptions after a box without area). In a distributed run D and the counts are those of all processes, so that
the loss does not depend on how the batch is cut; the released code contrasts the descriptions of its own device.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.nn import zero_shot
from foveal.nn.cosine import unit_rows
from foveal.pretrain.base import (
    LogitScale,
    alike,
    finite_loss,
    full_precision,
    gather_features,
    gathered_pairs,
    mean_over_processes,
    pair_loss,
    positive_scale,
    unit_pairs,
)
from foveal.pretrain.base_towers import text_features, vision_tokens
from foveal.pretrain.grain_data import clean_descriptions as clean_descriptions
from foveal.pretrain.grain_data import descriptor_suffix as descriptor_suffix
from foveal.pretrain.grain_data import pick_caption as pick_caption
from foveal.pretrain.grain_data import select_regions as select_regions
from foveal.pretrain.grain_decoder import GrainDecoder as GrainDecoder
from foveal.pretrain.grain_decoder import GrainDecoderOutput as GrainDecoderOutput
from foveal.pretrain.grain_matching import box_losses as box_losses
from foveal.pretrain.grain_matching import box_sums, check_mask, check_match, check_pairs_of_boxes, with_area
from foveal.pretrain.grain_matching import match_boxes as match_boxes

# Losses ---------------------------------------------------------------------------------------------------------------


def region_description_loss(
    region: Float[Tensor, "b q e"],
    desc: Float[Tensor, "b t e"],
    mask: Bool[Tensor, "b t"],
    match: Int[Tensor, "b q"],
    logit_scale: float | Tensor,
) -> Float[Tensor, ""]:
    """Cross-entropy of each matched region over all valid descriptions of the batch; the mean over matched regions.

    Args:
        region, desc: any scale, normalised here; ``desc[b, t]`` belongs to target t of image b.
        mask: True where a description is one.
        logit_scale: positive multiplier of the cosines, not its logarithm.

    0 with gradient 0 where nothing is matched. Raises ValueError for shapes or matches that do not fit.
    """
    if region.ndim != 3 or desc.ndim != 3 or (len(region), region.shape[2]) != (len(desc), desc.shape[2]):
        shapes = f"region {tuple(region.shape)}, desc {tuple(desc.shape)}"
        raise ValueError(f"{shapes}: must be (B, Q, E) and (B, T, E) of the same B and E")
    mask = check_mask(mask, desc)
    check_match(match, region, mask)
    region, desc = alike(region, desc)
    rows, valid = _description_rows(desc, mask)
    scale = positive_scale(logit_scale, like=rows, name="logit_scale")
    starts = desc.shape[1] * torch.arange(len(desc), device=rows.device)
    total = _description_sum(region, match, rows, valid, scale, starts)
    return finite_loss(total / (match >= 0).sum().clamp(min=1), region=region, desc=rows)


def image_caption_loss(
    image: Float[Tensor, "b e"], caption: Float[Tensor, "b e"], logit_scale: float | Tensor
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE of the image queries and the captions: ½ (image → text) + ½ (text → image)."""
    own = unit_pairs(image, caption)
    scale = positive_scale(logit_scale, like=own[0], name="logit_scale")
    return finite_loss(pair_loss(*own, scale, 0), image=image, caption=caption)


def _description_rows(desc: Tensor, mask: Tensor) -> tuple[Float[Tensor, "bt e"], Bool[Tensor, " bt"]]:
    """Unit rows, 0 where there is no description, whatever stood there."""
    return unit_rows(desc.masked_fill(~mask[..., None], 0).flatten(0, 1)), mask.flatten()


def _description_sum(
    region: Float[Tensor, "b q e"],
    match: Int[Tensor, "b q"],
    rows: Float[Tensor, "n e"],
    valid: Bool[Tensor, " n"],
    scale: Float[Tensor, ""],
    starts: Int[Tensor, " b"],
) -> Float[Tensor, ""]:
    """Sum of the cross-entropies; ``starts`` is the row of the first description of each image."""
    image, query = (match >= 0).nonzero(as_tuple=True)
    if len(image) == 0:
        return 0 * (region.to(rows).sum() + rows.sum() + scale)
    with full_precision(rows):
        scores = scale * unit_rows(region[image, query]) @ rows.T
        own = starts[image] + match[image, query]
        return F.cross_entropy(scores.masked_fill(~valid, float("-inf")), own, reduction="sum")


# Objective ------------------------------------------------------------------------------------------------------------


@dataclass
class GrainOutput:
    """The loss, its parts before they are weighted, the predicted boxes and the target of each (−1: none)."""

    loss: Float[Tensor, ""]
    caption: Float[Tensor, ""]
    l1: Float[Tensor, ""]
    giou: Float[Tensor, ""]
    description: Float[Tensor, ""]
    boxes: Float[Tensor, "b q 4"]
    match: Int[Tensor, "b q"]


def grain_loss(
    found: GrainDecoderOutput,
    caption: Float[Tensor, "b e"],
    desc: Float[Tensor, "b t e"],
    boxes: Float[Tensor, "b t 4"],
    valid: Bool[Tensor, "b t"],
    scale: float | Tensor,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    group: Any = None,
) -> GrainOutput:
    """The whole loss from features.

    Args:
        found: what the decoder gives.
        desc, boxes, valid: descriptions, where they are (cx, cy, w, h in [0, 1]), and True where there is one. Boxes
            without area count as missing.
        weights: of L_ic, L_box and L_rd.
        group: processes whose captions and descriptions are contrasted; each must call this with the same B and T.

    Raises ValueError for shapes that do not fit, boxes outside [0, 1] and non-finite input.
    """
    valid = with_area(boxes, check_pairs_of_boxes(found.boxes, boxes, valid))
    if desc.shape[:2] != boxes.shape[:2] or found.regions.shape[:2] != found.boxes.shape[:2]:
        shapes = f"desc {tuple(desc.shape)}, boxes {tuple(boxes.shape)}, regions {tuple(found.regions.shape)}"
        raise ValueError(f"{shapes}: must be (B, T, E), (B, T, 4) and (B, Q, E)")
    if not bool(found.regions.isfinite().all()):  # also where nothing matches, which the loss would not show
        raise ValueError("regions holds NaN or infinity")
    match = match_boxes(found.boxes, boxes, valid)
    image, text, all_image, all_text, rank = gathered_pairs(found.image, caption, group)
    scale = positive_scale(scale, like=image)
    per_caption = pair_loss(image, text, all_image, all_text, scale, rank)
    rows, kept = _description_rows(desc, valid)
    starts = boxes.shape[1] * torch.arange(len(boxes), device=rows.device) + rank * len(rows)
    rows, kept = gather_features(rows, group), gather_features(kept.to(rows), group) > 0
    counts = torch.stack([valid.sum(), (match >= 0).sum()]).to(rows)
    targets, matched = mean_over_processes(counts, group).clamp(min=torch.finfo(rows.dtype).tiny).unbind()
    description = _description_sum(found.regions, match, rows, kept, scale, starts) / matched
    l1, overlap = (part / targets for part in box_sums(found.boxes, boxes, match))
    loss = weights[0] * per_caption + weights[1] * (l1 + overlap) + weights[2] * description
    loss = finite_loss(loss, image=found.image, caption=caption, regions=found.regions, desc=rows)
    return GrainOutput(loss, per_caption, l1, overlap, description, found.boxes, match)


class GrainObjective(nn.Module):
    """GRAIN's training step on two towers and a decoder. After every optimiser step call ``logit_scale.clamp_()``.

    Args:
        vision: images -> tokens, such as `CLIPVisionModel` or `ViTModel` (see `vision_tokens`).
        text: (ids, mask) -> vectors, such as `CLIPTextModelWithProjection` (see `text_features`); it encodes captions
            and descriptions.
        decoder: `GrainDecoder`, whose ``embed_dim`` is the width of the text vectors.
        weights: of L_ic, L_box and L_rd.
        group: see `grain_loss`.
    """

    def __init__(
        self,
        vision: nn.Module,
        text: nn.Module,
        decoder: nn.Module,
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        group: Any = None,
    ) -> None:
        super().__init__()
        if len(weights) != 3 or not all(0 <= weight < float("inf") for weight in weights):
            raise ValueError(f"weights={weights}: must be three numbers of at least 0, of L_ic, L_box and L_rd")
        self.vision, self.text, self.decoder = vision, text, decoder
        self.weights, self.group = weights, group
        self.logit_scale = LogitScale()

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        caption_ids: Int[Tensor, "b l"],
        caption_mask: Int[Tensor, "b l"],
        desc_ids: Int[Tensor, "b t m"],
        desc_mask: Int[Tensor, "b t m"],
        boxes: Float[Tensor, "b t 4"],
        valid: Bool[Tensor, "b t"],
    ) -> GrainOutput:
        """See `grain_loss`; ids and masks are a tokenizer's, with T rows of descriptions for each image."""
        if desc_ids.ndim != 3 or desc_ids.shape[:2] != valid.shape or desc_mask.shape != desc_ids.shape:
            shapes = f"desc_ids {tuple(desc_ids.shape)}, desc_mask {tuple(desc_mask.shape)}, valid {tuple(valid.shape)}"
            raise ValueError(f"{shapes}: must be (B, T, L), (B, T, L) and (B, T)")
        found = self.decoder(vision_tokens(self.vision, images))
        caption = text_features(self.text, caption_ids, caption_mask)
        desc = caption.new_zeros(*valid.shape, caption.shape[1])
        real = valid.bool()
        if bool(real.any()):  # padding is never encoded
            desc = desc.index_put((real,), text_features(self.text, desc_ids[real], desc_mask[real]))
        return grain_loss(found, caption, desc, boxes, valid, self.logit_scale(), self.weights, self.group)

    @torch.no_grad()
    def encode_image(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        """The vectors of the image query, for `zero_shot_logits` and retrieval; not normalised, no gradient."""
        return self.decoder(vision_tokens(self.vision, images)).image


# Zero-shot ------------------------------------------------------------------------------------------------------------


def class_prototypes(text: Float[Tensor, "n e"], cls: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, "k e"]:
    """Mean of the unit vectors of all prompts of each class, not normalised again: prompts that disagree weigh less.

    Args:
        text: vectors of the prompts, one for each pair of template and descriptor (see `descriptor_suffix`).
        cls: the class of each prompt, 0 to ``num_classes`` − 1.

    Raises ValueError for a class without a prompt, one out of range, and non-finite vectors.
    """
    if text.ndim != 2 or cls.shape != text.shape[:1]:
        raise ValueError(f"text {tuple(text.shape)}, cls {tuple(cls.shape)}: must be (N, E) and (N,)")
    if not bool(text.isfinite().all()):
        raise ValueError("text holds NaN or infinity: check the text encoder's output")
    if len(cls) and not 0 <= int(cls.min()) <= int(cls.max()) < num_classes:
        raise ValueError(
            f"cls holds {int(cls.min())} to {int(cls.max())}: must be 0 to num_classes − 1 = {num_classes - 1}"
        )
    counts = torch.bincount(cls, minlength=num_classes)
    if num_classes < 1 or not bool(counts.all()):
        missing = counts.argmin().item() if num_classes > 0 else 0
        raise ValueError(
            f"cls names no prompt for class {missing} of num_classes={num_classes}: give each at least one"
        )
    rows = unit_rows(text)
    return rows.new_zeros(num_classes, rows.shape[1]).index_add(0, cls, rows) / counts[:, None]


def zero_shot_logits(image: Float[Tensor, "b e"], prototypes: Float[Tensor, "k e"]) -> Float[Tensor, "b k"]:
    """Unit image vectors times prototypes, which are taken as they are."""
    return zero_shot.zero_shot_logits(image, prototypes, scale=1.0)
