"""Scenes of one to three things for open-vocabulary detection: all nouns are in captions, base ones alone in boxes."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.data.word_ids import WordIds
from foveal.data.world.phrases import article
from foveal.lab import Run
from foveal.pretrain.dito_detector import LabelledBoxes

BASE = ("dog", "car", "apple", "tree", "star", "guitar", "chair", "bus", "duck", "cake", "boat", "book")
NOVEL = ("pear", "donut", "zebra", "kite", "cactus", "castle")
NOUNS = (*BASE, *NOVEL)
SIZE, LONGEST = 64, 32
SCENES = world.WorldConfig(
    size=SIZE,
    things=(1, 3),
    nouns=NOUNS,
    min_visible=0.8,
    radius=(0.14, 0.24),
    tint=0.0,
    repeats=0.0,
    companions=0.0,
    backgrounds=("plain", "gradient"),
)
BACKGROUND = ""
"""The text of class 0: nothing is said."""


@dataclass(frozen=True)
class OpenScenes:
    """Pictures with captions as ids and boxes; the label of a box is 1 + the place of its noun in `NOUNS`.

    Pixels are in [−2, 2]: from all-positive ones the small towers of the recipe learn much more slowly.
    """

    pixels: Float[Tensor, "n 3 s s"]
    ids: Int[Tensor, "n l"]
    truth: list[LabelledBoxes]

    def base_only(self) -> list[LabelledBoxes]:
        """Boxes that a detector may be trained on."""
        kept = [one.labels <= len(BASE) for one in self.truth]
        return [LabelledBoxes(one.boxes[keep], one.labels[keep]) for one, keep in zip(self.truth, kept, strict=True)]


def words(run: Run) -> WordIds:
    """The words of the training captions."""
    return WordIds.of([*world.pairs(run.seed, run.size(3000), SCENES).captions, *map(named, NOUNS)])


def scenes(run: Run, first: int, n: int) -> OpenScenes:
    """``n`` scenes of world ``first`` + seed."""
    drawn = list(world.World(SCENES, first + run.seed, run.size(n), ()))
    ids = torch.from_numpy(run.shared(words).encode([sample.caption for sample in drawn], LONGEST))
    truth = [
        LabelledBoxes(
            torch.tensor([region.box for region in sample.regions]).reshape(-1, 4) / SIZE,
            torch.tensor([1 + NOUNS.index(region.label or "") for region in sample.regions], dtype=torch.int64),
        )
        for sample in drawn
    ]
    return OpenScenes(4 * (to_tensor(np.stack([sample.image for sample in drawn])) - 0.5), ids, truth)


def named(noun: str) -> str:
    return f"{article(noun)} {noun}"


def class_ids(run: Run) -> Int[Tensor, "k l"]:
    """The background and all nouns as texts."""
    return torch.from_numpy(run.shared(words).encode([BACKGROUND, *map(named, NOUNS)], LONGEST))
