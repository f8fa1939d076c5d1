"""Pictures of two things with short and long captions, and captions of the same words that are wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from foveal.data import world
from foveal.data.world.phrases import article, attribute_words, listed
from foveal.data.world.referring import unique_phrase
from foveal.data.world.relations import SPATIAL, relations
from foveal.evaluate.tasks.worlds import CLIP_WORLD, held_out
from foveal.lab import Run
from foveal.recipes._recall import distinct_pairs

SCENES = replace(
    CLIP_WORLD,
    things=(2, 2),
    sprites=0.0,
    colours=("red", "green", "blue", "yellow", "black", "white"),
    textures=("plain", "striped"),
    backgrounds=("plain",),
    styles=("flat",),
    writing=0.0,
    min_visible=0.7,
    repeats=0.0,
)
"""Shapes of which few words are said: some hundred steps have to do."""
TRAIN = 7000
"""Plus the seed: a world that neither host has seen."""
LESSONS, TESTS = 480, 150


@dataclass(frozen=True)
class Told:
    """Pictures, with two captions each."""

    scenes: list[world.Scene]
    images: UInt8[np.ndarray, "n h w 3"]
    short: list[str]
    long: list[str]


def told(run: Run, test: bool) -> Told:
    """For `Run.shared`."""
    return tests(run) if test else lessons(run)


def lessons(run: Run) -> Told:
    seed, n = TRAIN + run.seed, 24 if run.smoke else LESSONS
    scenes = [world.World(SCENES, seed, n, extras=()).scene(i) for i in range(n)]
    short = [world.short_caption(scene, world.word_rng(seed, i, "caption")) for i, scene in enumerate(scenes)]
    return _told(run, scenes, short)


def tests(run: Run) -> Told:
    """Held-out scenes of which no two have the same short caption."""
    return _told(run, *distinct_pairs(held_out(run.seed), 16 if run.smoke else TESTS, SCENES))


def _told(run: Run, scenes: list[world.Scene], short: list[str]) -> Told:
    rng = run.rng("long captions")
    long = [" ".join(sentence.text for sentence in world.long_caption(scene, rng)) for scene in scenes]
    return Told(scenes, world.images_of(scenes, SCENES), short, long)


class Swap(NamedTuple):
    """Of ``scenes[scene]`` one text is true; the other has the same words in another order."""

    scene: int
    kind: str
    true: str
    false: str


def swaps(scenes: Sequence[world.Scene]) -> list[Swap]:
    """At most one exchange of attributes and one of the places in a relation for each scene."""
    found = []
    for index, scene in enumerate(scenes):
        one, other = scene.things
        said = [attribute_words(scene, thing, ("size", "colour", "texture")) for thing in (one, other)]
        if said[0] != said[1] and one.noun != other.noun:
            true, false = (
                listed([f"{article(p)} {p}" for p in (" ".join([*a, one.noun]), " ".join([*b, other.noun]))])
                for a, b in (said, said[::-1])
            )
            found.append(Swap(index, "attributes", true, false))
        names = [unique_phrase(scene, place) for place in (0, 1)]
        facts = relations(scene, SPATIAL)
        if all(names) and facts:
            fact = facts[0]
            a, b = names[fact.subject], names[fact.object]
            found.append(Swap(index, "relations", f"{a} is {fact.name} {b}", f"{b} is {fact.name} {a}"))
    return found
