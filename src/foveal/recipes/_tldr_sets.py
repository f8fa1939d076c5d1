"""A redundant, noisy, long-tailed set of scenes, and a small clean one."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.data.word_ids import WordIds
from foveal.lab import Run
from foveal.nn.text import TextTransformer
from foveal.recipes._caption_towers import LONGEST, CaptionTowers
from foveal.recipes._prefix_data import features
from foveal.recipes._prefix_towers import FEATURES

COMMON = ("dog", "apple", "car", "tree", "fish", "clock", "frog", "pizza")
RARE = ("parrot", "bus", "carrot", "guitar", "owl", "banana", "book", "cactus")
SCENES = world.WorldConfig(
    size=32, things=(1, 2), nouns=COMMON + RARE, imbalance=1.0, companions=0.0, repeats=0.0, min_visible=0.8,
    radius=(0.22, 0.34), tint=0.0,
)  # fmt: skip
DRAWN = replace(SCENES, size=96)
"""The same scenes as nano-clip takes them."""
SIZE, CLEAN = 3000, 500


class SmallTowers(CaptionTowers):
    """A head on nano-clip's frozen features, and a text tower of one layer."""

    def __init__(self, words: WordIds) -> None:
        super().__init__(words, contrastive=True)
        self.image = nn.Sequential(nn.Linear(FEATURES, 128), nn.GELU(), nn.Linear(128, 64))
        text = TextTransformer(LONGEST, len(words), 64, 1, 4, output_dim=64)
        nn.init.normal_(text.token_embedding.weight)  # CLIP's 0.02 suits a width of 512
        self.text = text


@dataclass(frozen=True)
class Dirty:
    """n pairs: half of the pictures are near-duplicates (``copy``), three in ten captions another's (``swapped``).

    ``pixels`` are for the captioner, ``features`` nano-clip's for the dual encoders.
    """

    scenes: list[world.Scene]
    captions: list[str]
    copy: Bool[np.ndarray, " n"]
    swapped: Bool[np.ndarray, " n"]
    pixels: Float[Tensor, "n 3 32 32"]
    features: Float[Tensor, "n 128"]


def dirty(run: Run) -> Dirty:
    laid = world.World(SCENES, run.seed, run.size(SIZE), extras=())
    scenes, source = world.near_duplicates([laid.scene(i) for i in range(len(laid))], 0.5, run.seed)
    true = [world.short_caption(scene, world.word_rng(run.seed, i, "caption")) for i, scene in enumerate(scenes)]
    spoilt = world.swap_captions(true, 0.3, run.seed)
    copy = source != np.arange(len(source))
    pixels, seen = to_tensor(world.images_of(scenes, SCENES)), features(world.images_of(scenes, DRAWN))
    return Dirty(scenes, spoilt.captions, copy, spoilt.changed, pixels, seen)


def clean(run: Run, config: world.WorldConfig = SCENES) -> world.Pairs:
    return world.pairs(30_000 + run.seed, run.size(CLEAN), config)
