"""Things that differ in colour, texture and shape, under names that say so or that nobody has heard."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import UInt8

from foveal.data.world.batches import images_of
from foveal.data.world.config import WorldConfig
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.phrases import article
from foveal.data.world.vocabulary import BASE_NOUNS, COLOURS, SHAPES, TEXTURES
from foveal.lab import Run

CLASSES = 30
SEED = 1_000_000
"""Worlds from here on are for evaluation: nano-clip has not seen them."""


@dataclass(frozen=True)
class Kind:
    """What all things of a class have in common."""

    colour: str
    shape: str
    texture: str
    invented: str
    """A name that says nothing."""

    @property
    def common(self) -> str:
        """What people would call it; of the pattern it says nothing."""
        return f"{self.colour} {self.shape}"

    @property
    def features(self) -> list[str]:
        """What a language model that knows the renderer's table would list, in words that nano-clip knows."""
        parts = ((self.colour, self.texture), (self.colour,), (self.texture,))
        phrases = [" ".join([*(word for word in words if word != "plain"), self.shape]) for words in parts]
        return [f"{article(phrase)} {phrase}" for phrase in dict.fromkeys(phrases)]


def kinds(run: Run, n: int = CLASSES) -> list[Kind]:
    """``n`` classes of this seed, no two of one colour and shape."""
    rng = run.rng(f"{n} kinds")
    pairs = list(product(COLOURS, [noun for noun in SHAPES if noun in BASE_NOUNS]))
    syllables = ["".join(letters) for letters in product("bdfgklmnprstvz", "aeiou")]
    names = ["".join(syllables[i] for i in rng.choice(len(syllables), 2)) + "x" for _ in range(3 * n)]
    chosen = [pairs[row] for row in rng.choice(len(pairs), n, replace=False)]
    textures = [TEXTURES[i] for i in rng.integers(len(TEXTURES), size=n)]
    distinct = list(dict.fromkeys(names))[:n]
    rows = zip(chosen, textures, distinct, strict=True)
    return [Kind(colour, shape, texture, name) for (colour, shape), texture, name in rows]


def pictures(
    found: Sequence[Kind], labels: Sequence[int], first: int, places: Sequence[str] | None = None
) -> UInt8[np.ndarray, "n h w 3"]:
    """One thing of class ``labels[i]`` each, on any ground that has not its colour, or in ``places[i]``."""
    scenes = []
    for number, label in enumerate(labels):
        kind = found[label]
        others = tuple(colour for colour in COLOURS if colour != kind.colour)
        ground = (
            {"backgrounds": ("place",), "places": (places[number],)}
            if places
            else {"backgrounds": ("plain", "gradient")}
        )
        world = WorldConfig(
            96, (1, 1), (kind.shape,), colours=others, textures=(kind.texture,), sizes=("medium", "large"), **ground
        )
        scene = lay_out(world, SEED + first, number)
        scenes.append(scene.with_(things=(scene.things[0].with_(colour=kind.colour),)))
    return images_of(scenes, WorldConfig(96))
