"""Features of small CNNs that were pretrained on classes of which a share is wrong."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from foveal.adapt.nmtune import flip_labels
from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.lab import Run
from foveal.train import FitConfig, fit

SHAPES = ("circle", "square", "triangle", "star", "ring", "heart", "diamond", "cross")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
TEXTURES = ("plain", "striped", "dotted", "checked")
NOISE, STYLES = (0, 5, 10, 30), ("cartoon", "fog", "noise")
"""Percent of wrong classes in pretraining; looks that are out of the domain, which is the style flat."""
DIM = 256


class SmallCNN(nn.Module):
    """Three convolutions and a mean over places: features of `DIM` numbers; a head of 64 classes on them."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 48, DIM)
        blocks = [
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)
        ]
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(DIM, len(SHAPES) * len(COLOURS))

    def features(self, pixels: Float[Tensor, "b 3 32 32"]) -> Float[Tensor, "b 256"]:
        return self.body(pixels).mean((2, 3))

    def forward(self, pixels: Float[Tensor, "b 3 32 32"], classes: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        return F.cross_entropy(self.head(self.features(pixels)), classes)


def drawn(run: Run, first: int, n: int, style: str) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, classes (shape and colour) and textures of ``n`` pictures of one shape."""
    config = world.WorldConfig(
        size=32,
        things=(1, 1),
        sprites=0.0,
        nouns=SHAPES,
        colours=COLOURS,
        textures=TEXTURES,
        sizes=("large",),
        depth=(2.2, 2.6),
        backgrounds=("plain",),
        styles=(style,),
    )
    pairs = world.pairs(first + run.seed, run.size(n), config)
    things = [scene.things[0] for scene in pairs.scenes]
    classes = [SHAPES.index(t.noun) * len(COLOURS) + COLOURS.index(t.colour or "") for t in things]
    textures = [TEXTURES.index(thing.texture) for thing in things]
    return 2 * to_tensor(pairs.images) - 1, torch.tensor(classes), torch.tensor(textures)


Sets = dict[str, tuple[Float[Tensor, "n 256"], Int[Tensor, " n"]]]


def features(run: Run, percent: int | None) -> Sets:
    """Features and textures of pictures that pretraining never saw: train (200), validation, test, and each style.

    Of the CNN that was pretrained with so many percent of wrong classes; None: not at all.
    """
    model = run.build(SmallCNN).eval()
    if percent is not None:
        pixels, classes, _ = run.shared(drawn, 0, 3000, "flat")
        wrong = flip_labels(classes, percent / 100, len(SHAPES) * len(COLOURS), run.generator("noise"))
        config = FitConfig(lr=2e-3, batch_size=64)
        fit(model, TensorDataset(pixels, wrong), steps=run.steps(375), config=config, on=run)
    asked = {"train": (10_000, 200), "validation": (20_000, 400), "test": (30_000, 1500)}
    sets = {name: run.shared(drawn, *size, "flat") for name, size in asked.items()}
    sets |= {style: run.shared(drawn, 40_000, 600, style) for style in STYLES}
    return {name: (encoded(model, data[0]), data[2]) for name, data in sets.items()}


@torch.no_grad()
def encoded(model: SmallCNN, pixels: Tensor) -> Float[Tensor, "n 256"]:
    return torch.cat([model.features(part) for part in pixels.split(500)])


def percent_right(classifier: Any, sets: Sets, names: Sequence[str]) -> float:
    """Mean accuracy over the named sets."""
    scores = [(classifier.predict(sets[n][0]) == sets[n][1]).float().mean() for n in names]
    return 100 * float(torch.stack(scores).mean())
