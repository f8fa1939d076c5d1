"""Scenes of two emoji with captions of which many are wrong or half true, as patch tokens of the frozen nano-clip."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from foveal import zoo
from foveal.data import world
from foveal.data.word_ids import WordIds
from foveal.lab import Run
from foveal.recipes._singles import NOUNS

SCENES = world.WorldConfig(
    size=96, things=(2, 2), nouns=NOUNS, tint=0.0, sizes=("large",), depth=(2.0, 2.5), backgrounds=("plain",),
    min_visible=0.7, repeats=0.0
)  # fmt: skip
WORDS = WordIds.of([" ".join(("a and on", *NOUNS, *world.COLOURS))])
START, VOCABULARY, LENGTH = len(WORDS), len(WORDS) + 1, 9
SWAPPED, TRUNCATED, WRONG_NAMES = 0.4, 0.3, 0.2


@dataclass(frozen=True)
class Pairs:
    """``noisy``: the caption is of another scene. ``names``: what a detector would call the two things."""

    features: Float[Tensor, "n p d"]
    ids: Int[Tensor, "n l"]
    names: Int[Tensor, "n 2"]
    noisy: Bool[Tensor, " n"]
    nouns: list[set[str]]


def splits(run: Run) -> tuple[Pairs, Pairs]:
    """Noisy pairs to learn from and clean ones to test on. The training set's channels have mean 0 and deviation 1."""
    train, test = pairs(run, 0, 1536, False), pairs(run, 10_000, 300, True)
    mean, deviation = train.features.mean((0, 1)), train.features.std((0, 1))
    first, second = (replace(part, features=(part.features - mean) / deviation) for part in (train, test))
    return first, second


def pairs(run: Run, first: int, n: int, clean: bool) -> Pairs:
    """``n`` scenes of world ``first`` + seed; a fifth of the names is wrong, in clean pairs too."""
    drawn = world.pairs(first + run.seed, run.size(n), SCENES)
    rng = run.rng(f"noise {first}")
    texts = [_caption(scene, 2) for scene in drawn.scenes]
    noisy = np.zeros(len(texts), bool)
    if not clean:
        cut = rng.random(len(texts)) < TRUNCATED
        texts = [_caption(scene, 1 if short else 2) for scene, short in zip(drawn.scenes, cut, strict=True)]
        swapped = world.corrupt.swap_captions(texts, SWAPPED, run.seed)
        texts, noisy = swapped.captions, swapped.changed
    names = torch.tensor([[NOUNS.index(thing.noun) for thing in scene.things] for scene in drawn.scenes])
    wrong = torch.from_numpy(rng.random(names.shape) < WRONG_NAMES)
    names = torch.where(wrong, torch.from_numpy(rng.integers(len(NOUNS), size=names.shape)), names)
    ids = F.pad(torch.from_numpy(WORDS.encode(texts, LENGTH - 1)), (1, 0), value=START)
    words = torch.from_numpy(WORDS.encode(NOUNS)[:, 0])
    return Pairs(
        tokens(drawn.images), ids, words[names], torch.from_numpy(noisy), [set(nouns) for nouns in drawn.nouns]
    )


def _caption(scene: world.Scene, things: int) -> str:
    said = " and ".join(f"a {thing.noun}" for thing in scene.things[:things])
    return f"{said} on {scene.background.name}" if things == 2 else said


@torch.no_grad()
def tokens(images: UInt8[np.ndarray, "n 96 96 3"]) -> Float[Tensor, "n 16 d"]:
    """Patch tokens of nano-clip's image tower, means of 3 × 3."""
    nano = zoo.load("nano-clip")
    tower, found = nano.model.vision_model, []
    for start in range(0, len(images), 64):
        pixels = nano.processor.image_processor(images=list(images[start : start + 64]), return_tensors="pt")
        hidden = tower.post_layernorm(tower(**pixels).last_hidden_state[:, 1:])
        found.append(F.avg_pool2d(hidden.mT.unflatten(2, (12, 12)), 3).flatten(2).mT)
    return torch.cat(found)
