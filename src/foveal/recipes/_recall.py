"""Pairs that can be told apart by their captions, and how often each side finds the other."""

import torch
from jaxtyping import Float
from torch import Tensor

from foveal.data import world
from foveal.nn.cosine import unit_rows


def distinct_pairs(seed: int, n: int, config: world.WorldConfig) -> tuple[list[world.Scene], list[str]]:
    """``n`` scenes of a world no two of which have the same caption."""
    found: dict[str, world.Scene] = {}
    scenes = world.World(config, seed, 20 * n, extras=())
    for index in range(len(scenes)):
        scene = scenes.scene(index)
        found.setdefault(world.short_caption(scene, world.word_rng(seed, index, "caption")), scene)
        if len(found) == n:
            return list(found.values()), list(found)
    raise ValueError(f"n={n}: this world has only {len(found)} different captions")


def recall_at_1(images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> float:
    """In percent: how often the own partner comes first, the mean of both directions."""
    scores, own = unit_rows(images) @ unit_rows(texts).T, torch.arange(len(images))
    return 50 * sum((best.argmax(1) == own).float().mean().item() for best in (scores, scores.T))
