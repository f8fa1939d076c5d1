"""M3I's targets with a meaning, texts and categories; and how likelihoods of samples become the loss.

See `foveal.pretrain.m3i`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.pretrain.base import LogitScale, finite_loss, gather_features
from foveal.pretrain.base_towers import text_vectors
from foveal.pretrain.m3i_terms import mean_where, unchecked_boltzmann, weighted_sum

Terms = dict[str, Float[Tensor, " b"]]
Valid = dict[str, Bool[Tensor, " b"]]


@dataclass
class M3IOutput:
    """The loss, −Σ λ_k · terms[k]; ``terms`` are mean log-likelihoods in nats, of the samples that have the target."""

    loss: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]


class SemanticTargets(nn.Module):
    """Log-likelihoods of a sample's text among all texts, and of its category among all categories; one learned τ."""

    def __init__(self, text_encoder: nn.Module | None, embed_dim: int, num_classes: int | None) -> None:
        super().__init__()
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: must be at least 2, or None")
        self.text_encoder = text_encoder
        self.classes = None if num_classes is None else nn.Embedding(num_classes, embed_dim)
        self.logit_scale = LogitScale()

    def check(self, text: Any, labels: Tensor | None) -> None:
        """ValueError for targets that there is no part for."""
        if text is not None and self.text_encoder is None:
            raise ValueError("text given, but text_encoder=None: give the objective one")
        if labels is not None and self.classes is None:
            raise ValueError("labels given, but num_classes=None: give the objective the number")

    def of_texts(
        self,
        pred: Float[Tensor, "n e"],
        sources: Int[Tensor, " n"],
        batch: int,
        text: Any,
        has_text: Bool[Tensor, " b"] | None,
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        """Prediction i is about image ``sources[i]`` of the ``batch``. The bank are the texts of all processes."""
        encoder: Any = self.text_encoder
        output = encoder(**text) if isinstance(text, Mapping) else encoder(text)
        found = text_vectors(output)
        if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] != pred.shape[1]:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(output).__name__
            wanted = f"(B, {pred.shape[1]}), or an output with such text_embeds or pooler_output"
            raise ValueError(f"text_encoder returned {shape}: must be {wanted}")
        if len(found) != batch:
            raise ValueError(f"text has {len(found)} rows for {batch} images: give one for each, has_text hides some")
        has_text = _flags("has_text", has_text, found)
        everywhere = gather_features(has_text.long()).bool()
        bank = gather_features(found)[everywhere]
        if len(bank) == 0:
            return 0 * pred.sum(1) + 0 * found.sum() + 0 * self.logit_scale(), has_text[sources]
        row = everywhere.long().cumsum(0) - 1  # of a text in the bank
        index = row[rank_rows(len(found), pred.device)[sources]].clamp_min(0)
        return unchecked_boltzmann(pred, bank, 1 / self.logit_scale(), index), has_text[sources]

    def of_labels(
        self,
        pred: Float[Tensor, "n e"],
        sources: Int[Tensor, " n"],
        batch: int,
        labels: Int[Tensor, " b"],
        has_label: Bool[Tensor, " b"] | None,
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        """As `of_texts`, for categories; the bank are all classes."""
        if labels.shape != (batch,):
            raise ValueError(f"labels {tuple(labels.shape)} must be ({batch},), one for each image")
        has_label = _flags("has_label", has_label, labels)
        classes: Any = self.classes
        if bool(((labels < 0) | (labels >= len(classes.weight)))[has_label].any()):
            raise ValueError(f"labels must be in [0, {len(classes.weight)}) where has_label is True")
        index = labels.masked_fill(~has_label, 0)[sources]
        return unchecked_boltzmann(pred, classes.weight, 1 / self.logit_scale(), index), has_label[sources]


def summed(terms: Terms, valid: Valid, weights: Mapping[str, float], **inputs: Tensor) -> M3IOutput:
    """The joint objective of the samples of all processes. ValueError names the non-finite one of ``inputs``."""
    terms = {name: gather_features(value) for name, value in terms.items()}
    valid = {name: gather_features(value.long()).bool() for name, value in valid.items()}
    means = {name: mean_where(value, valid.get(name)) for name, value in terms.items()}
    return M3IOutput(finite_loss(weighted_sum(means, weights), **inputs), means)


def check_views(view1: Tensor, view2: Tensor, relative: Tensor | None) -> Float[Tensor, "b 4"]:
    """Where view 2 lies in units of view 1. ValueError unless views are (B, 3, H, W) alike and the boxes fit."""
    if view1.ndim != 4 or view1.shape != view2.shape or view1.shape[1] != 3 or 0 in view1.shape:
        raise ValueError(f"view1 {tuple(view1.shape)} and view2 {tuple(view2.shape)} must be (B, 3, H, W) alike")
    if relative is None:
        return torch.tensor([0.0, 0.0, 1.0, 1.0], device=view1.device).expand(len(view1), 4)
    if relative.shape != (len(view1), 4) or not bool(relative.isfinite().all()):
        raise ValueError(f"relative {tuple(relative.shape)} must be ({len(view1)}, 4) and finite: x1, y1, x2, y2")
    return relative.float()


def rank_rows(rows: int, device: torch.device) -> Int[Tensor, " rows"]:
    """Where this process's rows stand among the gathered ones."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return rank * rows + torch.arange(rows, device=device)


def _flags(name: str, given: Tensor | None, like: Tensor) -> Bool[Tensor, " b"]:
    if given is None:
        return torch.ones(len(like), dtype=torch.bool, device=like.device)
    if given.shape != like.shape[:1]:
        raise ValueError(f"{name} {tuple(given.shape)} must be ({len(like)},), one for each sample")
    return given.bool()
