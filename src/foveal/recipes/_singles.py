"""Scenes of one emoji at 32 px, with captions that name its size, what it is, and the colour behind it."""

import numpy as np
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


def other_texts(run: Run, n: int) -> Int[Tensor, "n l"]:
    """Ids of short texts about scenes that nobody sees: what a language model may read.

    A text says the same four times, its phrases in different orders. Like real text it is about one thing from its
    first word to its last, so that the model learns to go on with what it has been told.
    """
    others = world.World(SCENES, 20_000 + run.seed, run.size(n))
    rng, texts = run.rng("texts"), []
    for i in range(len(others)):
        noun, behind = others.scene(i).things[0], others.scene(i).background.name
        phrases = np.array(["a", noun.size, noun.noun, f"on {behind}"])
        orders = [*(rng.permutation(4) for _ in range(3)), np.arange(4)]
        texts.append(" ".join(" ".join(phrases[order]) for order in orders))
    return torch.from_numpy(WORDS.encode(texts))


def captions(drawn: list[world.Scene]) -> tuple[list[str], Int[Tensor, "n l"]]:
    """Words and ids."""
    texts = [f"a {scene.things[0].size} {scene.things[0].noun} on {scene.background.name}" for scene in drawn]
    return texts, torch.from_numpy(WORDS.encode(texts, LENGTH))
