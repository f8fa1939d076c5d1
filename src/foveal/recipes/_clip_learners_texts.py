"""Learners that differ from CLIP in what they do with texts; see `foveal.recipes._clip_learners`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foveal.data.record import Sample
from foveal.pretrain.align import ALIGNModel, align_loss
from foveal.pretrain.base import gathered_pairs
from foveal.pretrain.base_towers import vision_tokens
from foveal.pretrain.dreamlip import DreamLIPObjective, sample_subcaptions
from foveal.pretrain.filip import FILIPObjective, token_similarity
from foveal.recipes._clip_learners import TEMPLATES, Batch, Learner, caption_of, draws

SUBCAPTIONS = 3


class Align(Learner):
    """ALIGN's loss on CLIP's towers: the sum of both directions, with smoothed targets."""

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        texts = self.text_features([caption_of(sample) for sample in batch["samples"]])
        image, text, *everyone, rank = gathered_pairs(self.image_features(batch["pixels"]), texts)
        named: dict[str, Any] = dict(zip(("all_image_features", "all_text_features"), everyone, strict=True))
        return {"loss": align_loss(image, text, 1 / self.model.logit_scale.exp(), **named, rank=rank).loss}


class AlignTowers(Learner):
    """ALIGN on its own towers, those of transformers' `AlignModel`."""

    def build(self) -> None:
        self.objective = ALIGNModel.from_transformers(self.model)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        texts = self.tokenized([caption_of(sample) for sample in batch["samples"]])
        return {"loss": self.objective(batch["pixels"], *texts).loss}

    def after_step(self) -> None:
        self.objective.objective.clamp_()
        self.finished += 1


class Filip(Learner):
    """Patches and words are compared one by one, after CLIP's own projections; the class token learns nothing."""

    def build(self) -> None:
        model = self.model
        self.objective = FILIPObjective(model.vision_embed_dim, model.text_embed_dim, model.projection_dim)
        self.objective.image_projection, self.objective.text_projection = model.visual_projection, model.text_projection
        self.share(self.objective.logit_scale)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        words, real = self.words([caption_of(sample) for sample in batch["samples"]])
        return {
            "loss": self.objective(vision_tokens(self.model.vision_model, batch["pixels"])[:, 1:], words, real).loss
        }

    def similarity(self, pixels: Float[Tensor, "b 3 h w"], texts: Sequence[str]) -> Float[Tensor, "b n"]:
        words, real = self.words(texts)
        sides = token_similarity(self.patches(pixels), self.model.text_projection(words), text_mask=real)
        return (sides[0] + sides[1]) / 2

    def words(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Hidden states of the text tower, and which of them are real."""
        ids, mask = self.tokenized(texts)
        return self.model.text_model(input_ids=ids, attention_mask=mask).last_hidden_state, mask.bool()


class DreamLip(Learner):
    """Three sentences of all captions of a picture at every step, each of which also groups its own patches."""

    def build(self) -> None:
        self.objective = DreamLIPObjective()
        self.share(self.objective.logit_scale)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        rng = draws()
        texts = self.text_features([text for sample in batch["samples"] for text in self._sentences(sample, rng)])
        patches, texts = self.patches(batch["pixels"]), texts.unflatten(0, (-1, SUBCAPTIONS))
        out = self.objective(self.image_features(batch["pixels"]), patches, texts)
        return {"loss": out.loss, "multi_positive": out.multi_positive, "grouping": out.grouping}

    def _sentences(self, sample: Sample, rng: torch.Generator) -> list[str]:
        if not sample.captions:
            return [template.format(sample.labels[0]) for template in TEMPLATES][:SUBCAPTIONS]
        more = "\n".join(sample.captions[1:] or sample.captions)
        return sample_subcaptions(sample.caption, [], more, SUBCAPTIONS, rng, always_raw=len(sample.captions) > 1)

    def after_step(self) -> None:
        super().after_step()
        self.objective.clamp_()
