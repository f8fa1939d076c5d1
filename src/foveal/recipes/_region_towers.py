"""Towers whose regions are averages of patches, for comparison with CLOC's."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.nn.text import TextTransformer
from foveal.pretrain.base import ContrastiveOutput, LogitScale
from foveal.pretrain.clip import clip_loss
from foveal.pretrain.cloc import region_text_contrastive
from foveal.recipes import _listed as data
from foveal.recipes._listed_tokens import JOINT, WIDTH, Looks

REGIONS, LENGTH = 3, 8
IGNORE_ABOVE = 0.99
"""Only texts that are the same. With 0.9, text towers that drew all texts together in their first steps had no
negatives left to drive them apart again."""


class Eyes(nn.Module):
    """Patch tokens and their mean; ``extra``: one more layer, as large as CLOC's Prompter."""

    def __init__(self, extra: bool = False) -> None:
        super().__init__()
        self.looks = Looks(4, 1) if extra else Looks(4)

    def forward(self, frozen: Float[Tensor, "b n f"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b d"]]:
        tokens = self.looks(frozen)
        return tokens, tokens.mean(1)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text = TextTransformer(LENGTH, len(data.WORDS), WIDTH, 1, 4, output_dim=JOINT)

    def forward(self, ids: Int[Tensor, "n l"], mask: Tensor) -> Float[Tensor, "n e"]:
        return self.text(ids)  # causal, read at the end token: padding does not matter


class RoiTowers(nn.Module):
    """CLIP, with the texts of regions as further captions or, with ``boxes``, as texts of the patches in them."""

    def __init__(self, boxes: bool) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder, self.boxes = Eyes(extra=True), Reader(), boxes
        self.image_projection = nn.Linear(WIDTH, JOINT)
        self.region_projection = nn.Linear(WIDTH, JOINT) if boxes else self.image_projection
        self.logit_scale, self.region_scale = LogitScale(), LogitScale()

    def forward(self, images: Tensor, **batch: Tensor) -> ContrastiveOutput:
        tokens, pooled = self.image_encoder(images)
        image = self.image_projection(pooled)
        caption = self.text_encoder(batch["caption_ids"], batch["caption_mask"])
        text = self.text_encoder(batch["region_ids"].flatten(0, 1), batch["region_mask"].flatten(0, 1))
        scale, valid = self.region_scale(), batch["valid"]
        if self.boxes:
            region = self.region_features(tokens, batch["boxes"]).flatten(0, 1)
            extra = region_text_contrastive(region, text, scale, valid.flatten(), IGNORE_ABOVE).loss
        else:
            texts = text.unflatten(0, valid.shape)
            slots = [(image, texts[:, k], scale, valid[:, k], IGNORE_ABOVE) for k in range(REGIONS)]
            extra = torch.stack([region_text_contrastive(*slot).loss for slot in slots]).mean()
        out = clip_loss(image, caption, self.logit_scale())
        return replace(out, loss=out.loss + extra)

    def region_features(self, tokens: Float[Tensor, "b n d"], boxes: Float[Tensor, "b m 4"]) -> Float[Tensor, "b m e"]:
        """The mean of the patches, each by how much of it is in the box."""
        edges = torch.arange(data.GRID + 1) / data.GRID
        x, y = (
            (boxes[..., far, None].minimum(edges[1:]) - boxes[..., near, None].maximum(edges[:-1])).clamp(min=0)
            for near, far in ((0, 2), (1, 3))
        )
        inside = (y[..., :, None] * x[..., None, :]).flatten(2)
        return self.region_projection(inside / inside.sum(-1, keepdim=True).clamp(min=1e-6) @ tokens)

    def clamp_(self) -> None:
        self.logit_scale.clamp_()
        self.region_scale.clamp_()
