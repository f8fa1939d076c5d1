"""A redundant, noisy, long-tailed set of scenes, and a small clean one."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from foveal.data import world
from foveal.data.word_ids import WordIds
from foveal.lab import Run
from foveal.nn.text import TextTransformer
from foveal.recipes._caption_towers import LONGEST, CaptionTowers
from foveal.recipes._noisy_pairs import tokens
from foveal.recipes._prefix_data import features
from foveal.recipes._prefix_towers import FEATURES

COMMON = ("dog", "apple", "car", "tree", "fish", "clock", "frog", "pizza")
RARE = ("parrot", "bus", "carrot", "guitar", "owl", "banana", "book", "cactus")
SCENES = world.WorldConfig(
    size=96, things=(1, 2), nouns=COMMON + RARE, imbalance=1.0, companions=0.0, repeats=0.0, min_visible=0.8,
    radius=(0.22, 0.34), tint=0.0,
)  # fmt: skip
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

    ``tokens`` are nano-clip's for the captioner, ``features`` its for the dual encoders.
    """

    scenes: list[world.Scene]
    captions: list[str]
    copy: Bool[np.ndarray, " n"]
    swapped: Bool[np.ndarray, " n"]
    images: UInt8[np.ndarray, "n 96 96 3"]
    tokens: Float[Tensor, "n 16 d"]
    features: Float[Tensor, "n 128"]


def dirty(run: Run) -> Dirty:
    laid = world.World(SCENES, run.seed, run.size(SIZE), extras=())
    scenes, source = world.near_duplicates([laid.scene(i) for i in range(len(laid))], 0.5, run.seed)
    true = [world.short_caption(scene, world.word_rng(run.seed, i, "caption")) for i, scene in enumerate(scenes)]
    spoilt = world.swap_captions(true, 0.3, run.seed)
    copy = source != np.arange(len(source))
    images = world.images_of(scenes, SCENES)
    return Dirty(scenes, spoilt.captions, copy, spoilt.changed, images, tokens(images), features(images))


def clean(run: Run) -> world.Pairs:
    return world.pairs(30_000 + run.seed, run.size(CLEAN), SCENES)
