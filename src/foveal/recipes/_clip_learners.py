"""Objectives on `transformers.CLIPModel`: what each learns beside the model, and how samples become its loss.

`foveal train clip-like` fits these learners to the user's model and files, the matrix of pre-training to small towers.
Heads that an objective and CLIP both have are CLIP's own, so that ``save_pretrained`` keeps what they learn.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.data.record import Sample
from foveal.nn.cosine import unit_rows
from foveal.pretrain.base import LogitScale
from foveal.pretrain.base_towers import vision_tokens
from foveal.pretrain.clip import CLIPObjective
from foveal.pretrain.grain_data import Tokenize

Batch = Mapping[str, Any]
"""``pixels`` (B, 3, H, W), ready for the model, and ``samples``, a list of B."""
TEMPLATES = ("a photo of a {}", "a picture of a {}", "a drawing of a {}")


class TextHalf(nn.Module):
    """Ids and mask -> features; the tower and the projection are those of the model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower, self.projection = model.text_model, model.text_projection

    def forward(self, input_ids: Int[Tensor, "n l"], attention_mask: Tensor) -> Float[Tensor, "n e"]:
        return self.projection(self.tower(input_ids=input_ids, attention_mask=attention_mask).pooler_output)


class Learner(nn.Module):
    """A `CLIPModel` with what its objective learns beside it. This one has CLIP's loss, the others say what they do.

    ``tokenize``: texts -> ids and mask, padded on the right. ``steps``: of the whole training.
    """

    finished: Tensor

    def __init__(self, model: Any, tokenize: Tokenize, steps: int) -> None:
        super().__init__()
        self.model, self.tokenize, self.steps = model, tokenize, steps
        self.text: nn.Module = TextHalf(model)
        self.register_buffer("finished", torch.zeros((), dtype=torch.int64))  # steps; travels with the checkpoints
        self.build()

    def build(self) -> None:
        self.objective: Any = CLIPObjective()
        self.share(self.objective.logit_scale)

    def share(self, scale: LogitScale) -> None:
        """The scale is the model's own from now on."""
        scale.log_scale = self.model.logit_scale

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        texts = [caption_of(sample) for sample in batch["samples"]]
        return {"loss": self.objective(self.image_features(batch["pixels"]), self.text_features(texts)).loss}

    def after_step(self) -> None:
        self.model.logit_scale.clamp_(0, math.log(100))
        self.finished += 1

    def tokenized(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, mask = self.tokenize(list(texts))
        return ids.to(self.model.device), mask.to(self.model.device)

    def image_features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        return self.model.get_image_features(pixels).pooler_output

    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "n e"]:
        return self.text(*self.tokenized(texts))

    def patch_tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p d"]:
        return vision_tokens(self.model.vision_model, pixels)[:, 1:]

    def patches(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p e"]:
        """Patches row by row, as `patch_tokens`, but in the space of the texts."""
        return self.model.visual_projection(self.patch_tokens(pixels))

    def similarity(self, pixels: Float[Tensor, "b 3 h w"], texts: Sequence[str]) -> Float[Tensor, "b n"]:
        """How well pictures and texts fit."""
        return unit_rows(self.image_features(pixels)) @ unit_rows(self.text_features(texts)).mT


def caption_of(sample: Sample) -> str:
    """The first caption; of a picture that has none, its class in a sentence. ValueError where it has neither."""
    if sample.captions or not sample.labels:
        return sample.caption
    return TEMPLATES[0].format(sample.labels[0])


def draws() -> torch.Generator:
    """Its numbers follow from the step, because `fit` seeds torch at every one: a resumed run draws the same."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))
