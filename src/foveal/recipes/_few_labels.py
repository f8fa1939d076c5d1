"""Pictures of twelve things in a long tail, to be labelled, as features of nano-clip, which knows nine of the names."""

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveal import zoo
from foveal.data.world.batches import classify
from foveal.data.world.captions import prompts
from foveal.data.world.config import WorldConfig
from foveal.data.world.phrases import article
from foveal.data.world.vocabulary import CATEGORY, COMPANIONS, HOMES
from foveal.lab import Run
from foveal.nn.zero_shot import ensemble_text_features
from foveal.zoo.dual_encoder import DualEncoder
from foveal.zoo.nano.scenes import HELD_OUT_SEED

KNOWN = ("dog", "cat", "cow", "apple", "banana", "pizza", "car", "bus", "guitar")
UNKNOWN = ("owl", "fox", "lobster")
NAMES = (*KNOWN, *UNKNOWN)
SCENES = WorldConfig(size=96, things=(1, 1), tint=0.0, sizes=("medium", "large"), depth=(2.1, 3.5))
DESCRIPTIONS = {
    name: [
        f"{article(CATEGORY[name])} {CATEGORY[name]}",
        f"seen on {HOMES[name][0]}",
        f"often beside {article(COMPANIONS[name][0])} {COMPANIONS[name][0]}",
    ]
    for name in NAMES
}
"""What a language model would be asked for, taken from the world's own vocabulary."""


@dataclass(frozen=True)
class FewLabels:
    """Features, not normalised, and true classes of the pool and of a balanced test set."""

    pool: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    test: Float[Tensor, "m d"]
    truth: Int[Tensor, " m"]


@cache
def encoder() -> DualEncoder:
    nano = zoo.load("nano-clip")
    return DualEncoder(nano.model, nano.processor)


def few_labels(run: Run) -> FewLabels:
    """600 pictures, of the class of rank r in a random order a share ∝ 1/r, and 30 of each class for the test."""
    ranks = run.rng("ranks").permutation(len(NAMES)) + 1
    shares = 1 / ranks / (1 / ranks).sum()
    counts = [max(1, round(run.size(600) * share)) for share in shares]
    seed = HELD_OUT_SEED + 1000 * run.seed + 600
    pool, labels = _shown(seed, counts)
    test, truth = _shown(seed + 1, [run.size(360) // len(NAMES)] * len(NAMES))
    return FewLabels(pool, labels, test, truth)


def class_features() -> Float[Tensor, "k d"]:
    """By the world's own prompts."""
    texts = [text for name in NAMES for text in prompts(name)]
    return ensemble_text_features(encoder().text_features(texts).unflatten(0, (len(NAMES), -1)))


def _shown(seed: int, counts: list[int]) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    features = [
        encoder().image_features(list(classify(seed, count, (name,), SCENES, first=1000 * k).images))
        for k, (name, count) in enumerate(zip(NAMES, counts, strict=True))
    ]
    return torch.cat(features), torch.arange(len(NAMES)).repeat_interleave(torch.tensor(counts))
