"""DITO on CLIP's towers: a detector's pyramid and head learn from captions; see `foveal.recipes._clip_learners`."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from foveal.nn.cosine import unit_rows
from foveal.pretrain.dito import DitoObjective, DitoRegionHead, SimpleFeaturePyramid, roi_align
from foveal.pretrain.dito_windows import patch_map
from foveal.recipes._clip_learners import Batch, Learner, caption_of, draws

REGIONS, ROI, WIDTH, LEVELS = 8, 7, 256, (3, 4)
"""Random boxes of a picture and level; places of a region; width of pyramid and head, unless the model has less."""


class Dito(Learner):
    """CLIP's loss for half of the steps; then the towers rest, and pyramid and head learn from random boxes."""

    def build(self) -> None:
        super().build()
        visual, joint = self.model.vision_embed_dim, self.model.projection_dim
        width = min(WIDTH, visual)
        pyramid, head = SimpleFeaturePyramid(visual, width, LEVELS), DitoRegionHead(width, ROI, 4 * width, joint)
        self.regional = DitoObjective(self.model.vision_model, self.text, pyramid, head, REGIONS, train_backbone=True)
        self.share(self.regional.logit_scale)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        if int(self.finished) < self.steps / 2:
            return super().loss(batch)
        if self.regional.train_backbone:
            self.regional.train_backbone = False
            self.regional.train(self.training)  # towers without dropout from here on
        ids, mask = self.tokenized([caption_of(sample) for sample in batch["samples"]])
        return {"loss": self.regional(batch["pixels"], ids, mask, draws()).loss}

    def regions(self, pixels: Float[Tensor, "b 3 h w"], boxes: Float[Tensor, "b m 4"]) -> Float[Tensor, "b m e"]:
        """By the head; the mean over the pyramid's levels of unit vectors."""
        levels = self.regional.pyramid(patch_map(self.model.vision_model, pixels)).values()
        found = [self.regional.head(roi_align(level, boxes, ROI)).embed for level in levels]
        return torch.stack([unit_rows(one) for one in found]).mean(0)
