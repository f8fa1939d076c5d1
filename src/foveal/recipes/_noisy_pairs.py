"""Scenes of two emoji with captions of which many are wrong or half true, as features of a frozen image encoder."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import TensorDataset

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.data.word_ids import WordIds
from foveal.lab import Run
from foveal.recipes._encoders import TinyEncoder
from foveal.recipes._singles import NOUNS, SIZES
from foveal.train import FitConfig, fit

SCENES = world.WorldConfig(
    size=32, things=(2, 2), nouns=NOUNS, tint=0.0, sizes=SIZES, depth=(2.0, 2.5), backgrounds=("plain",),
    min_visible=0.7
)  # fmt: skip
WORDS = WordIds.of([" ".join(("a and on", *NOUNS, *SIZES, *world.COLOURS))])
START, VOCABULARY, LENGTH, WIDTH = len(WORDS), len(WORDS) + 1, 11, 64
SWAPPED, TRUNCATED, WRONG_NAMES = 0.4, 0.3, 0.2


@dataclass(frozen=True)
class Pairs:
    """``noisy``: the caption is of another scene. ``names``: what a detector would call the two things."""

    features: Float[Tensor, "n p d"]
    ids: Int[Tensor, "n l"]
    names: Int[Tensor, "n 2"]
    noisy: Bool[Tensor, " n"]
    nouns: list[set[str]]


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
    features = run.shared(encoder).patch_features(to_tensor(drawn.images))
    words = torch.from_numpy(WORDS.encode(NOUNS)[:, 0])
    return Pairs(features, ids, words[names], torch.from_numpy(noisy), [set(nouns) for nouns in drawn.nouns])


def _caption(scene: world.Scene, things: int) -> str:
    said = " and ".join(f"a {thing.size} {thing.noun}" for thing in scene.things[:things])
    return f"{said} on {scene.background.name}" if things == 2 else said


def encoder(run: Run) -> TinyEncoder:
    """A ViT that learned to name single emoji, then frozen."""
    config = world.WorldConfig(size=32, tint=0.0, sizes=SIZES, backgrounds=("plain",), depth=(2.0, 2.6))
    shown = world.classify(20_000 + run.seed, run.size(2000), NOUNS, config)
    model = run.build(TinyEncoder, "category", 32, 8, WIDTH, len(NOUNS), len(WORDS), LENGTH)
    labels = torch.from_numpy(shown.labels)
    data = TensorDataset(to_tensor(shown.images), torch.zeros(len(labels), 1, dtype=torch.long), labels)
    fit(model, data, steps=run.steps(150), config=FitConfig(lr=1e-3, batch_size=128), on=run)
    return model
