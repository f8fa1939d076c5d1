"""The world as arrays: pairs of image and caption, labelled pictures, questions and answers, made in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int, UInt8

from foveal.data.world.absent import Negatives
from foveal.data.world.captions import short_caption
from foveal.data.world.config import WorldConfig
from foveal.data.world.dataset import word_rng
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.questions import KINDS, questions
from foveal.data.world.scene import Scene


@dataclass(frozen=True)
class Pairs:
    """Images with their short captions; all fields have one entry for each of n samples.

    Attributes:
        images: RGB.
        captions: one line each.
        nouns: the nouns present in each, nearest first.
        scenes: from which everything else follows.
    """

    images: UInt8[np.ndarray, "n h w 3"]
    captions: list[str]
    nouns: list[tuple[str, ...]]
    scenes: list[Scene]

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class Labelled:
    """Pictures of one thing each. ``names[labels[i]]`` is the noun of picture i."""

    images: UInt8[np.ndarray, "n h w 3"]
    labels: Int[np.ndarray, " n"]
    names: tuple[str, ...]
    scenes: list[Scene]


@dataclass(frozen=True)
class Asked:
    """Questions in one flat list: question i is about ``images[image[i]]``.

    ``answers`` holds the most common answer of each, ``accepted`` all of them.
    """

    images: UInt8[np.ndarray, "n h w 3"]
    image: Int[np.ndarray, " q"]
    questions: list[str]
    answers: list[str]
    accepted: list[tuple[str, ...]]
    kinds: list[str]
    scenes: list[Scene]


def pairs(seed: int, n: int, config: WorldConfig | None = None, first: int = 0) -> Pairs:
    """Samples ``first`` to ``first + n`` of the world ``seed``: the same images and captions as `World` gives.

    Raises:
        ValueError: seed, n or first is negative.
    """
    config = config or WorldConfig()
    scenes = _scenes(config, seed, n, first)
    captions = [short_caption(scene, word_rng(seed, first + i, "caption")) for i, scene in enumerate(scenes)]
    nouns = [tuple(dict.fromkeys(thing.noun for thing in scene.things)) for scene in scenes]
    return Pairs(images_of(scenes, config), captions, nouns, scenes)


def images_of(scenes: Sequence[Scene], config: WorldConfig) -> UInt8[np.ndarray, "n h w 3"]:
    """All scenes drawn at the size of the config."""
    images = np.empty((len(scenes), *config.shape, 3), np.uint8)
    for image, scene in zip(images, scenes):
        image[:] = draw(scene, config.size).image
    return images


def classify(seed: int, n: int, nouns: Sequence[str], config: WorldConfig | None = None, first: int = 0) -> Labelled:
    """Pictures of a single thing, as many of every noun as can be (sizes of classes differ by one at most), shuffled.

    Args:
        seed: of the world.
        n: number of pictures.
        nouns: the classes; label k stands for ``nouns[k]``.
        config: everything but number and nouns of the things.
        first: number of the first picture; give the test set another range or another seed.

    Raises:
        ValueError: no nouns, one that occurs twice, one that is unknown, or a negative number.
    """
    if not nouns or len(set(nouns)) < len(nouns):
        raise ValueError(f"nouns={tuple(nouns)!r}: give at least one, and each of them once")
    config = config or WorldConfig()
    of = [
        replace(config, things=(1, 1), nouns=(noun,), spurious={k: v for k, v in config.spurious.items() if k == noun})
        for noun in nouns
    ]
    _check(seed, n, first)
    labels = np.random.default_rng((seed, first)).permutation(np.arange(n) % len(nouns))
    scenes = [lay_out(of[label], seed, first + i) for i, label in enumerate(labels)]
    return Labelled(images_of(scenes, config), labels, tuple(nouns), scenes)


def vqa(
    seed: int,
    n: int,
    kinds: Sequence[str] = KINDS,
    config: WorldConfig | None = None,
    each: int = 1,
    negatives: str = "random",
    first: int = 0,
) -> Asked:
    """Up to ``each`` questions of every kind about each of ``n`` scenes.

    Args:
        seed: of the world.
        n: number of scenes. Not every scene allows a question of every kind.
        kinds: of `foveal.data.world.questions.KINDS`.
        config: what scenes are made of; "ocr" needs one with ``writing`` above 0.
        each: most questions of a kind about one scene.
        negatives: how absent nouns are chosen: "random", "popular" or "adversarial".
        first: number of the first scene.

    Raises:
        ValueError: an unknown kind or negatives, or a number that makes no sense.
    """
    config = config or WorldConfig()
    scenes = _scenes(config, seed, n, first)
    chooser = Negatives(negatives, config)
    asked = [
        (i, question)
        for i, scene in enumerate(scenes)
        for question in questions(scene, word_rng(seed, first + i, "questions"), kinds, each, chooser)
    ]
    return Asked(
        images_of(scenes, config),
        np.array([i for i, _ in asked], dtype=np.int64),
        [question.text for _, question in asked],
        [question.answers[0] for _, question in asked],
        [question.answers for _, question in asked],
        [question.kind for _, question in asked],
        scenes,
    )


def _check(seed: int, n: int, first: int) -> None:
    for name, value in (("seed", seed), ("n", n), ("first", first)):
        if value < 0:
            raise ValueError(f"{name}={value}: must not be negative")


def _scenes(config: WorldConfig, seed: int, n: int, first: int) -> list[Scene]:
    _check(seed, n, first)
    return [lay_out(config, seed, first + i) for i in range(n)]
