"""Pictures of creatures for one run: the training set as GRAIN's pipeline annotates it, and test sets."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.data.record import Sample
from foveal.data.transforms import to_tensor
from foveal.lab import Run
from foveal.pretrain.grain_data import annotate, grain_batch
from foveal.pretrain.grain_sources import NoisyTruth, RegionNoise
from foveal.recipes._creatures import SEEN, VOCABULARY, Parts, creature, tokenize

DESCRIPTIONS = 5


def pictures(run: Run, classes: tuple[Parts, ...], n: int, purpose: str) -> tuple[list[Sample], Tensor]:
    """``n`` pictures and their classes."""
    rng = run.rng(purpose)
    labels = torch.arange(run.size(n)) % len(classes)
    return [creature(classes[int(label)], rng) for label in labels], labels


def training(run: Run, n: int) -> list[Tensor]:
    """Pixels, and what `GrainObjective` takes beside them, of ``n`` annotated pictures of named classes."""
    samples, _ = pictures(run, SEEN, n, "train")
    rng, noise = run.rng("noise"), RegionNoise()
    make: Any = partial(NoisyTruth, noise=noise, vocabulary=VOCABULARY, rng=rng)
    annotated = [annotate(sample, source := make(sample), source, k=DESCRIPTIONS) for sample in samples]
    batch = grain_batch(annotated, tokenize, run.generator("captions"), DESCRIPTIONS)
    return [pixels(samples), *batch.values()]


def pixels(samples: list[Sample]) -> Tensor:
    return to_tensor(np.stack([sample.image for sample in samples]))
