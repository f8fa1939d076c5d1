"""Learners that see where in the picture a text belongs; see `foveal.recipes._clip_learners`."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from foveal.data.record import Sample
from foveal.pretrain.base_towers import vision_tokens
from foveal.pretrain.cloc import ClocObjective, region_batch
from foveal.pretrain.cloc_towers import PatchTower
from foveal.pretrain.grain import GrainDecoder, GrainObjective
from foveal.pretrain.grain_data import Tokenize, grain_batch
from foveal.recipes._clip_learners import Batch, Learner, caption_of, draws

REGIONS, LAYERS, WIDTH = 5, 6, 512
"""Regions of a picture at most; layers and width of GRAIN's decoder, unless the image tower has less."""


class Cloc(Learner):
    """CLOC's Prompter on the patch tokens; pictures without regions train CLIP's loss alone."""

    def build(self) -> None:
        widths = self.model.vision_embed_dim, self.model.projection_dim
        self.objective = ClocObjective(PatchTower(self.model.vision_model), self.text, *widths, num_regions=REGIONS)
        self.objective.image_projection = self.model.visual_projection
        self.share(self.objective.logit_scale)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        parts = region_batch(with_captions(batch["samples"]), padded(self), regions=REGIONS)
        out = self.objective(batch["pixels"], **on(parts, batch["pixels"].device), generator=draws())
        return {"loss": out.loss, "clip": out.clip, "region_text": out.region_text, "grounding": out.grounding}

    def after_step(self) -> None:
        super().after_step()
        self.objective.clamp_()

    def regions(self, pixels: Float[Tensor, "b 3 h w"], boxes: Float[Tensor, "b m 4"]) -> Float[Tensor, "b m e"]:
        """By the Prompter."""
        return self.objective.region_features(self.objective.image_encoder(pixels)[0], boxes)


class Grain(Learner):
    """GRAIN's decoder on the tokens; its vector of the image stands in the place of the class token's."""

    def build(self) -> None:
        width, layers = min(WIDTH, self.model.vision_embed_dim), self.model.config.vision_config.num_hidden_layers
        sizes: Any = {"d_model": width, "num_heads": max(width // 64, 1), "dim_ff": 4 * width}
        visual, joint = self.model.vision_embed_dim, self.model.projection_dim
        decoder = GrainDecoder(visual, joint, REGIONS, num_layers=min(LAYERS, layers), **sizes)
        self.objective = GrainObjective(self.model.vision_model, self.text, decoder)
        self.share(self.objective.logit_scale)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        parts = grain_batch(with_captions(batch["samples"]), padded(self), draws(), REGIONS)
        out = self.objective(batch["pixels"], **on(parts, batch["pixels"].device))
        return {"loss": out.loss, "caption": out.caption, "l1": out.l1, "giou": out.giou, "text": out.description}

    def image_features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        return self.found(pixels).image

    def found(self, pixels: Float[Tensor, "b 3 h w"]) -> Any:
        """What the decoder's queries find."""
        return self.objective.decoder(vision_tokens(self.model.vision_model, pixels))


def with_captions(samples: list[Sample]) -> list[Sample]:
    """A class in a sentence for those that have none."""
    return [sample if sample.captions else sample.with_(captions=(caption_of(sample),)) for sample in samples]


def padded(learner: Learner) -> Tokenize:
    """Its tokenizer, with every text as long as the model reads: the parts of a batch are tokenized one by one."""

    def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
        ids, mask = learner.tokenize(texts)
        more = learner.model.config.text_config.max_position_embeddings - ids.shape[1]
        return F.pad(ids, (0, more)), F.pad(mask, (0, more))

    return tokenize


def on(parts: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: part.to(device) for name, part in parts.items()}
