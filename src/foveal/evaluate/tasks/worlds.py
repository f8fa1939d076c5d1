"""Which scenes evaluation draws: worlds of held-out seeds, of the distribution that the reference models learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from foveal.data.world.config import WorldConfig
from foveal.data.world.draw import draw
from foveal.data.world.scene import Scene
from foveal.zoo.nano.scenes import CLIP_WORLD, HELD_OUT_SEED, LLAVA_WORLD, SD_WORLD

__all__ = ["CLIP_WORLD", "LLAVA_WORLD", "SD_WORLD", "held_out", "picture", "single"]


def held_out(seed: int, task: int = 0) -> int:
    """The world that evaluation seed ``seed`` stands for: never trained on, and another one for each task number."""
    return HELD_OUT_SEED + 1000 * seed + task


def single(config: WorldConfig, noun: str) -> WorldConfig:
    """The same world with scenes of one thing, which is this."""
    return replace(config, things=(1, 1), nouns=(noun,))


def picture(scene: Scene, config: WorldConfig) -> Callable[[], list[UInt8[np.ndarray, "_ _ 3"]]]:
    """What draws the scene at the size of its world, when it is called."""
    return lambda: [draw(scene, config.size).image]
