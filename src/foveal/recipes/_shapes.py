"""Scenes of one shape at 32 px, with captions that name its size, its colour and what it is."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.data.word_ids import WordIds
from foveal.lab import Run

SHAPES = tuple(world.SHAPES)
SCENES = world.WorldConfig(size=32, things=(1, 1), nouns=SHAPES, textures=("plain",), backgrounds=("plain",))
WORDS = WordIds.of([" ".join(("a", *SHAPES, *world.COLOURS, *world.SIZES))])
LENGTH = 5
"""Tokens of a caption: "a small red star", and the end token."""


def scenes(
    run: Run, first: int, n: int
) -> tuple[Float[Tensor, "n 3 32 32"], list[str], Int[Tensor, "n l"], Int[Tensor, " n"]]:
    """Pixels, captions, their ids and the shapes of ``n`` scenes of world ``first`` + seed."""
    pairs = world.pairs(first + run.seed, run.size(n), SCENES)
    nouns = torch.tensor([SHAPES.index(scene.things[0].noun) for scene in pairs.scenes])
    return to_tensor(pairs.images), *captions(pairs.scenes), nouns


def other_captions(run: Run, n: int) -> Int[Tensor, "n l"]:
    """Ids of captions of scenes that nobody sees: what a language model may read."""
    others = world.World(SCENES, 20_000 + run.seed, run.size(n))
    return captions([others.scene(i) for i in range(len(others))])[1]


def captions(drawn: list[world.Scene]) -> tuple[list[str], Int[Tensor, "n l"]]:
    """Words and ids."""
    texts = [f"a {thing.size} {thing.colour} {thing.noun}" for thing in (scene.things[0] for scene in drawn)]
    return texts, torch.from_numpy(WORDS.encode(texts, LENGTH))
