"""Pictures of creatures for one run: the training set as GRAIN's pipeline annotates it, and test sets."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveal.data.record import Sample
from foveal.lab import Run
from foveal.pretrain.grain_data import annotate, grain_batch
from foveal.pretrain.grain_sources import NoisyTruth, RegionNoise
from foveal.recipes._creatures import SEEN, VOCABULARY, Parts, creature, tokenize
from foveal.recipes._listed_tokens import tokens_of

DESCRIPTIONS = 5
Pictures = tuple[list[Sample], Float[Tensor, "n p d"], Int[Tensor, " n"]]
"""With frozen tokens and the number of the class."""


def pictures(run: Run, classes: tuple[Parts, ...], n: int, purpose: str) -> Pictures:
    rng = run.rng(purpose)
    labels = torch.arange(run.size(n)) % len(classes)
    samples = [creature(classes[int(label)], rng) for label in labels]
    return samples, tokens_of([sample.image for sample in samples]), labels


def training(run: Run, n: int) -> list[tuple[Tensor, Sample]]:
    """Tokens and annotations of ``n`` pictures of named classes."""
    samples, tokens, _ = pictures(run, SEEN, n, "train")
    rng, noise = run.rng("noise"), RegionNoise()
    make: Any = partial(NoisyTruth, noise=noise, vocabulary=VOCABULARY, rng=rng)
    annotated = [annotate(sample, source := make(sample), source, k=DESCRIPTIONS) for sample in samples]
    return list(zip(tokens, annotated, strict=True))


def collator(generator: torch.Generator) -> Callable[[Sequence[tuple[Tensor, Sample]]], dict[str, Tensor]]:
    """What `GrainObjective` takes; each time a picture is seen one of its two captions is chosen."""

    def collate(batch: Sequence[tuple[Tensor, Sample]]) -> dict[str, Tensor]:
        rest = grain_batch([sample for _, sample in batch], tokenize, generator, DESCRIPTIONS)
        return {"images": torch.stack([tokens for tokens, _ in batch]), **rest}

    return collate
