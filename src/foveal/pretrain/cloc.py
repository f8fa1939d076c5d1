"""CLOC: an image encoder whose patch tokens become the vector of any region, by one cheap layer and a box as prompt.

CLIP's loss stays. The Prompter (`foveal.pretrain.cloc_prompter`) makes a region's vector z from the tokens V of its
image and a box, which must find the region's text; and it makes a box from V and a text, which must be the region's.

    z = W · prompter(V, box),     box' = head(prompter(V, text))
    L_rt = ½ (r→t + t→r) over all regions of the batch, without negatives that say nearly the same
    L = L_clip + λ_r · L_rt + λ_g · |box' − box|²

Labels come from VESL (`foveal.pretrain.cloc_vesl`): describe, extract phrases, place them with an open-vocabulary
detector. After training, z classifies regions; as the eyes of a language model the encoder is used as it is.

Hong-You Chen, Zhengfeng Lai, Haotian Zhang, et al.: Contrastive Localized Language-Image Pre-Training. ICML 2025,
arXiv 2410.02746.

Departures: no code is public. Loss weights, the distance of grounding, the rule for texts that repeat and the
frequencies of the box encoding are not certain from the paper, nor is its weighting of batches whose images have
different numbers of regions: here every region counts the same. ``pool="prompt"`` is ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.data.record import Sample
from foveal.nn.boxes import corners
from foveal.pretrain.base import (
    LogitScale,
    finite_on_all,
    gather_features,
    gathered_pairs,
    mean_over_processes,
    pair_loss,
)
from foveal.pretrain.cloc_prompter import Prompter as Prompter
from foveal.pretrain.cloc_prompter import are_shares
from foveal.pretrain.cloc_prompter import encode_boxes as encode_boxes
from foveal.pretrain.cloc_regions import BOX_LOSSES, RegionRows, box_errors, contrast_regions, gathered_regions
from foveal.pretrain.cloc_regions import RegionTextLoss as RegionTextLoss
from foveal.pretrain.cloc_regions import grounding_loss as grounding_loss
from foveal.pretrain.cloc_regions import region_recall as region_recall
from foveal.pretrain.cloc_regions import region_text_contrastive as region_text_contrastive
from foveal.pretrain.cloc_regions import sample_regions as sample_regions
from foveal.pretrain.cloc_vesl import VeslRegions as VeslRegions
from foveal.pretrain.cloc_vesl import annotate_regions as annotate_regions
from foveal.pretrain.cloc_vesl import extract_phrases as extract_phrases
from foveal.pretrain.cloc_vesl import vesl_select as vesl_select


@dataclass
class ClocOutput:
    """The weighted sum and its three parts before weighting."""

    loss: Float[Tensor, ""]
    clip: Float[Tensor, ""]
    region_text: Float[Tensor, ""]
    grounding: Float[Tensor, ""]


class ClocObjective(nn.Module):
    """Images, captions and labelled regions -> loss; everything trains, in one stage.

    In a distributed run captions and regions of all processes of ``group`` are negatives. After every optimiser step
    call ``objective.clamp_()``.

    Args:
        image_encoder: images -> (tokens (B, N, D), pooled (B, D)); positions are in the tokens. `PatchTower` makes one
            of a vision model of transformers.
        text_encoder: ids (n, L), mask (n, L) -> (n, E), e.g. `TextTower`.
        dim, embed_dim: D and E.
        num_regions: regions of every image that take part in a step, at most.
        lambda_region, lambda_ground: weights of the two losses of regions.
        ignore_above: see `region_text_contrastive`.
        box_loss: see `grounding_loss`.
        pool: see `Prompter`.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        dim: int,
        embed_dim: int,
        num_regions: int = 4,
        lambda_region: float = 1.0,
        lambda_ground: float = 1.0,
        ignore_above: float | None = 0.9,
        box_loss: str = "l2",
        pool: str = "mean",
        *,
        group: Any = None,
    ) -> None:
        super().__init__()
        if num_regions < 1:
            raise ValueError(f"num_regions={num_regions}: must be at least 1")
        if box_loss not in BOX_LOSSES:
            raise ValueError(f"box_loss={box_loss!r} is unknown: choose one of {', '.join(BOX_LOSSES)}")
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.prompter = Prompter(dim, embed_dim, pool=pool)
        self.image_projection, self.region_projection = nn.Linear(dim, embed_dim), nn.Linear(dim, embed_dim)
        self.box_head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 4))
        self.logit_scale, self.region_scale = LogitScale(), LogitScale()
        self.num_regions, self.lambda_region, self.lambda_ground = num_regions, lambda_region, lambda_ground
        self.ignore_above, self.box_loss, self.group = ignore_above, box_loss, group

    def region_features(self, tokens: Float[Tensor, "b n d"], boxes: Float[Tensor, "b m 4"]) -> Float[Tensor, "b m e"]:
        """The vector of every box, not normalised; its cosine with class names classifies the region."""
        return self.region_projection(self.prompter(tokens, self.prompter.embed_boxes(boxes)))

    def ground(self, tokens: Float[Tensor, "b n d"], text: Float[Tensor, "b m e"]) -> Float[Tensor, "b m 4"]:
        """Where every text is in its image: x1, y1, x2, y2 in shares of it."""
        found = self.box_head(self.prompter(tokens, self.prompter.embed_text(text)))
        return corners(found.float().sigmoid())

    def forward(
        self,
        images: Tensor,
        caption_ids: Int[Tensor, "b l"],
        caption_mask: Tensor,
        region_ids: Int[Tensor, "b r l2"],
        region_mask: Tensor,
        boxes: Float[Tensor, "b r 4"],
        valid: Bool[Tensor, "b r"],
        generator: torch.Generator | None = None,
    ) -> ClocOutput:
        """One step. What stands in regions that are not valid is ignored.

        Args:
            caption_mask, region_mask: of the tokenizer, shaped like the ids.
            boxes: corners in shares of the picture.
            generator: chooses ``num_regions`` of the valid regions; None takes the first ones.

        Raises ValueError for shapes that do not fit, boxes in pixels, and a loss that is not finite.
        """
        _check_batch(caption_ids, region_ids, region_mask, boxes, valid)
        self._check_boxes(boxes, valid)
        tokens, pooled = self.image_encoder(images)
        image, caption = self.image_projection(pooled), self.text_encoder(caption_ids, caption_mask)
        clip = self._clip(image, caption)
        index, mask = sample_regions(valid, self.num_regions, generator)
        row, place = mask.nonzero()[:, 0], index[mask]
        boxes = boxes.new_zeros(*mask.shape, 4).masked_scatter(mask[..., None], boxes[row, place])
        text = boxes.new_zeros(*mask.shape, self.prompter.text_dim, dtype=tokens.dtype)
        if bool(mask.any()):  # padding would cost time, and an all-padding text may be NaN
            chosen = self.text_encoder(region_ids[row, place], region_mask[row, place])
            text = text.masked_scatter(mask[..., None], chosen.to(text.dtype))
        count = mean_over_processes(mask.sum().to(torch.float32), self.group)
        found = RegionRows.of(self.region_features(tokens, boxes).flatten(0, 1), text.flatten(0, 1), mask.flatten())
        region_text = self._contrast(found, count)
        errors = box_errors(self.ground(tokens, text)[mask], boxes[mask], self.box_loss)
        grounding = errors.sum() / count.clamp(min=1e-6)
        loss = clip + self.lambda_region * region_text + self.lambda_ground * grounding
        inputs = {"images": images, "tokens": tokens, "image_features": image, "caption_features": caption}
        finite_on_all(loss, self.group, **inputs, region_texts=text)
        return ClocOutput(loss, clip, region_text, grounding)

    def _clip(self, image: Float[Tensor, "b e"], text: Float[Tensor, "b e"]) -> Float[Tensor, ""]:
        """CLIP's loss."""
        image, text, all_image, all_text, rank = gathered_pairs(image, text, self.group)
        return pair_loss(image, text, all_image, all_text, self.logit_scale(), rank)

    def _contrast(self, rows: RegionRows, count: Tensor) -> Float[Tensor, ""]:
        """The regions of this process against those of all."""
        everything, rank = rows, 0
        if dist.is_available() and dist.is_initialized():
            everything = gathered_regions(rows, lambda x: gather_features(x, self.group))
            rank = dist.get_rank(self.group)
        first = rank * len(rows.mask)
        return contrast_regions(rows, everything, first, self.region_scale(), self.ignore_above, count).loss

    def _check_boxes(self, boxes: Tensor, valid: Tensor) -> None:
        """ValueError on all processes when one of them has bad boxes: none may be left waiting for the others."""
        bad = torch.tensor(float(not are_shares(boxes[valid])), device=boxes.device)
        if float(mean_over_processes(bad, self.group)):
            wanted = "finite x1 ≤ x2, y1 ≤ y2 from 0 to 1, shares of width and height, not pixels"
            raise ValueError(f"boxes of valid regions must be {wanted}; here or on another process they are not")

    def clamp_(self) -> None:
        """Bring both scales back into [1, 100], in place."""
        self.logit_scale.clamp_()
        self.region_scale.clamp_()


def _check_batch(caption_ids: Tensor, region_ids: Tensor, region_mask: Tensor, boxes: Tensor, valid: Tensor) -> None:
    if valid.ndim != 2 or valid.dtype != torch.bool or len(valid) != len(caption_ids):
        found = f"{tuple(valid.shape)} of {valid.dtype}"
        raise ValueError(f"valid {found} must be (B, R) of torch.bool for {len(caption_ids)} captions")
    if boxes.shape != (*valid.shape, 4):
        raise ValueError(f"boxes {tuple(boxes.shape)} must be {(*valid.shape, 4)}, as valid has it")
    if region_ids.ndim != 3 or region_ids.shape[:2] != valid.shape or region_mask.shape != region_ids.shape:
        shapes = f"region_ids {tuple(region_ids.shape)} and region_mask {tuple(region_mask.shape)}"
        raise ValueError(f"{shapes} must be {tuple(valid.shape)} and the length of a text")


def region_batch(
    samples: Sequence[Sample], tokenize: Callable[[list[str]], tuple[Tensor, Tensor]], regions: int = 20
) -> dict[str, Tensor]:
    """Everything but the images and the generator that `ClocObjective` takes, from samples with labelled regions.

    The first caption of a sample is taken, which VESL has written, and the first ``regions`` of its regions that say
    something.

    Args:
        tokenize: n texts -> ids and mask (n, L), padded to one L that is the same for every call.

    Raises ValueError for no samples, and one without a caption.
    """
    if not samples or regions < 1:
        raise ValueError(f"{len(samples)} samples, regions={regions}: both must be at least 1")
    caption_ids, caption_mask = tokenize([sample.caption for sample in samples])
    shape = len(samples), regions
    boxes, valid = torch.zeros(*shape, 4), torch.zeros(shape, dtype=torch.bool)
    texts: list[str] = []
    for row, sample in enumerate(samples):
        height, width = sample.image.shape[:2]
        said = [region for region in sample.regions if region.caption or region.label][:regions]
        texts += [region.caption or region.label or "" for region in said]
        if said:
            pixels = torch.tensor([region.box for region in said], dtype=torch.float32)
            boxes[row, : len(said)] = (pixels / torch.tensor([width, height, width, height])).clamp(0, 1)
        valid[row, : len(said)] = True
    region_ids = caption_ids.new_zeros(*shape, caption_ids.shape[1])
    region_mask = caption_mask.new_zeros(*shape, caption_mask.shape[1])
    if texts:
        region_ids[valid], region_mask[valid] = tokenize(texts)
    found = {"caption_ids": caption_ids, "caption_mask": caption_mask, "boxes": boxes, "valid": valid}
    return {**found, "region_ids": region_ids, "region_mask": region_mask}
