"""nano-clip on pictures of species, its vision tower run once: what is trained is all behind it, and the text tower."""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from foveal import zoo
from foveal.adapt.adaptclipzs import base_novel_split, few_shot_indices, harmonic_mean
from foveal.adapt.adaptclipzs_tuner import class_probabilities
from foveal.lab import Run, figures
from foveal.recipes._species import SPECIES, Species, captions, pictures, species
from foveal.zoo.dual_encoder import DualEncoder

Sources = tuple[str, ...]
BOTH: Sources = ("looks", "places")
SHOTS, BASE_TEST, NOVEL_TEST = 16, 400, 800


class Cached(nn.Module):
    """In the place of a vision tower: its pooled outputs are given instead of pixels."""

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(pooler_output=pixel_values)


class Side(NamedTuple):
    """Pictures of one half of the species. ``pixels`` are kept of a few, to be shown."""

    classes: list[Species]
    rows: Float[Tensor, "n d"]
    labels: Tensor
    shown: list[UInt8[np.ndarray, "s s 3"]]


class Task(NamedTuple):
    """One seed's species and the encoder to be tuned; its images are rows of features."""

    encoder: DualEncoder
    train: Side
    base: Side
    novel: Side


def task(run: Run) -> Task:
    shipped = zoo.load("nano-clip")
    known = {one.name: one for one in species(run)}
    halves = [[known[name] for name in half] for half in base_novel_split(list(known))]
    tower = shipped.model.vision_model

    @torch.no_grad()
    def side(classes: list[Species], n: int, purpose: str) -> Side:
        images, labels = pictures(run, classes, n, purpose)
        pixels = shipped.processor(images=images, return_tensors="pt")["pixel_values"]
        rows = torch.cat([tower(pixel_values=batch).pooler_output for batch in pixels.split(64)])
        return Side(classes, rows, torch.tensor(labels), images[:8])

    train = side(halves[0], SHOTS * SPECIES // 2, "train")
    kept = few_shot_indices(train.labels, SHOTS)
    tests = side(halves[0], BASE_TEST, "base"), side(halves[1], NOVEL_TEST, "novel")
    model = copy.deepcopy(shipped.model)
    model.vision_model = Cached()
    return Task(
        DualEncoder(model, shipped.processor), train._replace(rows=train.rows[kept], labels=train.labels[kept]), *tests
    )


def probabilities(encoder: DualEncoder, side: Side, texts: list[list[str]]) -> Float[Tensor, "n k"]:
    """Of the species, one list of texts for each."""
    return class_probabilities(encoder, side.rows, dict(enumerate(texts)))


def measured(run: Run, encoder: DualEncoder, data: Task, sources: Sources) -> dict[str, float]:
    """Accuracies in percent, with the right descriptions from these sources."""
    run.cost(encoder.model)
    right = {}
    for name, side in (("novel", data.novel), ("base", data.base)):
        found = probabilities(encoder, side, [captions(one, sources) for one in side.classes]).argmax(1)
        right[name] = 100 * (found == side.labels).float().mean().item()
        if name == "novel" and run.arm == "adaptclipzs":
            show(run, side, found[: len(side.shown)].tolist())
    return right | {"harmonic": harmonic_mean(right["base"], right["novel"])}


def show(run: Run, side: Side, found: list[int]) -> None:
    said = []
    for k, label in zip(found, side.labels.tolist(), strict=False):
        text = captions(side.classes[k], ("looks",))[0].removeprefix("a photo of a ")
        said.append(f"{'right' if k == label else 'wrong'}: {text}")
    run.figure("novel.png", figures.picture_grid(side.shown, said), "Novel species, named from descriptions")
