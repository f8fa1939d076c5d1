"""A redundant, noisy, long-tailed set of scenes, and a small clean one."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.data.word_ids import WordIds
from foveal.lab import Run
from foveal.nn.text import TextTransformer
from foveal.nn.vit import VisionTransformer
from foveal.recipes._caption_towers import LONGEST, CaptionTowers

COMMON = ("dog", "apple", "car", "tree", "fish", "clock", "frog", "pizza")
RARE = ("parrot", "bus", "carrot", "guitar", "owl", "banana", "book", "cactus")
SCENES = world.WorldConfig(
    size=32, things=(1, 2), nouns=COMMON + RARE, imbalance=1.0, companions=0.0, repeats=0.0, min_visible=0.8,
    radius=(0.22, 0.34), tint=0.0,
)  # fmt: skip
SIZE, CLEAN = 3000, 500


class SmallTowers(CaptionTowers):
    """A third of the size of CLIP's recipe, because many of them are trained."""

    def __init__(self, words: WordIds) -> None:
        super().__init__(words, contrastive=True)
        self.image = VisionTransformer(32, 8, 64, 3, 4, output_dim=64)
        self.text = TextTransformer(LONGEST, len(words), 64, 1, 4, output_dim=64)


@dataclass(frozen=True)
class Dirty:
    """n pairs: half of the pictures are near-duplicates (``copy``), three in ten captions another's (``swapped``)."""

    scenes: list[world.Scene]
    captions: list[str]
    copy: Bool[np.ndarray, " n"]
    swapped: Bool[np.ndarray, " n"]
    pixels: Float[Tensor, "n 3 32 32"]


def dirty(run: Run) -> Dirty:
    laid = world.World(SCENES, run.seed, run.size(SIZE), extras=())
    scenes, source = world.near_duplicates([laid.scene(i) for i in range(len(laid))], 0.5, run.seed)
    true = [world.short_caption(scene, world.word_rng(run.seed, i, "caption")) for i, scene in enumerate(scenes)]
    spoilt = world.swap_captions(true, 0.3, run.seed)
    copy = source != np.arange(len(source))
    return Dirty(scenes, spoilt.captions, copy, spoilt.changed, to_tensor(world.images_of(scenes, SCENES)))


def clean(run: Run) -> world.Pairs:
    return world.pairs(30_000 + run.seed, run.size(CLEAN), SCENES)
