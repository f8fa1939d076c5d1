"""Scenes of one emoji at 32 px, with captions that name its size, what it is, and the colour behind it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.data.word_ids import WordIds
from foveal.lab import Run

NOUNS = ("dog", "frog", "parrot", "fish", "apple", "banana", "carrot", "pizza", "car", "bus", "tree", "clock")
SIZES = ("small", "large")
SCENES = world.WorldConfig(
    size=32, things=(1, 1), nouns=NOUNS, tint=0.0, sizes=SIZES, depth=(2.2, 2.6), backgrounds=("plain",)
)
WORDS = WordIds.of([" ".join(("a on", *NOUNS, *world.COLOURS, *SIZES))])
LENGTH = 6
"""Tokens of a caption: "a small dog on blue", and the end token."""


def scenes(
    run: Run, first: int, n: int
) -> tuple[Float[Tensor, "n 3 32 32"], list[str], Int[Tensor, "n l"], Int[Tensor, " n"]]:
    """Pixels, captions, their ids and the nouns of ``n`` scenes of world ``first`` + seed."""
    pairs = world.pairs(first + run.seed, run.size(n), SCENES)
    nouns = torch.tensor([NOUNS.index(scene.things[0].noun) for scene in pairs.scenes])
    return to_tensor(pairs.images), *captions(pairs.scenes), nouns


def other_captions(run: Run, n: int) -> Int[Tensor, "n l"]:
    """Ids of captions of scenes that nobody sees: what a language model may read."""
    others = world.World(SCENES, 20_000 + run.seed, run.size(n))
    return captions([others.scene(i) for i in range(len(others))])[1]


def captions(drawn: list[world.Scene]) -> tuple[list[str], Int[Tensor, "n l"]]:
    """Words and ids."""
    texts = [f"a {scene.things[0].size} {scene.things[0].noun} on {scene.background.name}" for scene in drawn]
    return texts, torch.from_numpy(WORDS.encode(texts, LENGTH))
