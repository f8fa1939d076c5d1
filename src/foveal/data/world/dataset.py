"""The world as a data set: drawn scenes with everything that is true of them, as `Sample`s or as arrays for training.

Sample ``index`` of world ``seed`` is a function of (config, seed, index) alone: the same in every process and order.
Worlds of different seeds share no scene, because the positions in a scene are continuous; so draw the training and
the test set from two seeds, or from two ranges of one.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from jaxtyping import UInt8

from foveal.data.record import Question, Region, Sample
from foveal.data.world.absent import Negatives
from foveal.data.world.captions import attributes, long_caption, paraphrases, region_caption, short_caption
from foveal.data.world.config import WorldConfig
from foveal.data.world.draw import Drawing, draw
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.phrases import position
from foveal.data.world.questions import questions
from foveal.data.world.relations import relations
from foveal.data.world.scene import Scene
from foveal.data.world.vocabulary import NOUNS, NOVEL_NOUNS

EXTRAS = ("long", "paraphrases", "regions", "relations", "questions")
"""What costs more time than it takes to draw a small picture, and can be left out of the samples."""

SEMANTIC = {noun: 1 + index for index, noun in enumerate(NOUNS)}
"""Noun -> its value in a semantic mask, in which 0 is the background."""

_PURPOSES = ("caption", "long", "paraphrases", "regions", "questions", "story", "view")
_STREAMS = {name: 16 + i for i, name in enumerate(_PURPOSES)}  # the layout and the clips take their own below 16


def word_rng(seed: int, index: int, purpose: str) -> np.random.Generator:
    """The numbers that choose the words of one scene: a stream for each purpose, so that none depends on another."""
    return np.random.default_rng((seed, index, _STREAMS[purpose]))


@dataclass(frozen=True)
class World(Sequence[Sample]):
    """``length`` scenes; ``world[index]`` draws and describes one.

    Every sample has

    - ``images``: one RGB image of ``config.size``;
    - ``captions``: the short caption first, then (extras "long" and "paraphrases") the long one and two paraphrases;
    - ``labels``: the nouns that are present;
    - ``regions``: box and label of every thing, and (extra "regions") its caption and mask;
    - ``questions`` (extra "questions"): two of every kind that the scene allows;
    - ``semantic``: values of `SEMANTIC`; ``depth``: metres;
    - ``meta``: ``scene``; ``instance`` (uint8: 0 is the background, 1 + i is ``scene.things[i]``); for every thing its
      ``visible`` share, ``attributes``, ``position`` and ``novel`` (is its noun in `NOVEL_NOUNS`); ``counts`` by noun;
      ``style``; ``place``; with their extras ``long`` (sentences with the indices of their things) and ``relations``.

    Attributes:
        config: what scenes are made of.
        seed: of the world, at least 0.
        length: number of scenes.
        extras: of `EXTRAS`; ``()`` is fastest.
        negatives: how absent nouns are chosen for existence questions: "random", "popular" or "adversarial".
    """

    config: WorldConfig = field(default_factory=WorldConfig)
    seed: int = 0
    length: int = 10_000
    extras: tuple[str, ...] = EXTRAS
    negatives: str = "random"
    _negatives: Negatives = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.seed < 0 or self.length < 0:
            raise ValueError(f"seed={self.seed}, length={self.length}: neither can be negative")
        if unknown := [extra for extra in self.extras if extra not in EXTRAS]:
            raise ValueError(f"extras holds {unknown[0]!r}: choose from {', '.join(EXTRAS)}")
        object.__setattr__(self, "_negatives", Negatives(self.negatives, self.config))

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.length))]
        place = checked_index(index, self.length)
        scene = self.scene(place)
        return self.describe(scene, draw(scene, self.config.size), place)

    def scene(self, index: int) -> Scene:
        """Scene ``index`` without drawing it: some twenty times faster."""
        return lay_out(self.config, self.seed, checked_index(index, self.length))

    def describe(self, scene: Scene, drawing: Drawing, index: int) -> Sample:
        """The sample of a drawn scene; ``index`` numbers the random choice of words."""
        caption = short_caption(scene, word_rng(self.seed, index, "caption"))
        meta = _meta(scene, drawing)
        captions = [caption]
        if "long" in self.extras:
            meta["long"] = long_caption(scene, word_rng(self.seed, index, "long"))
            captions.append(" ".join(sentence.text for sentence in meta["long"]))
        if "paraphrases" in self.extras:
            captions += paraphrases(scene, word_rng(self.seed, index, "paraphrases"), 2)
        if "relations" in self.extras:
            meta["relations"] = relations(scene)
        asked: tuple[Question, ...] = ()
        if "questions" in self.extras:
            asked = questions(scene, word_rng(self.seed, index, "questions"), negatives=self._negatives)
        return Sample(
            key=scene.key,
            images=(drawing.image,),
            captions=tuple(captions),
            labels=tuple(meta["counts"]),
            regions=tuple(self._regions(scene, drawing, index)),
            questions=asked,
            semantic=semantic_mask(scene, drawing.instance),
            depth=drawing.depth,
            meta=meta,
        )

    def _regions(self, scene: Scene, drawing: Drawing, index: int) -> Iterator[Region]:
        boxes = [(float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in drawing.boxes]
        if "regions" not in self.extras:
            yield from (Region(box, thing.noun) for box, thing in zip(boxes, scene.things))
            return
        rng = word_rng(self.seed, index, "regions")
        for i, (box, thing) in enumerate(zip(boxes, scene.things)):
            yield Region(box, thing.noun, region_caption(scene, i, rng), drawing.instance == i + 1)


def checked_index(index: int, length: int) -> int:
    """Python's rules for indices: negative ones count from the end, IndexError beyond them."""
    place = operator.index(index)
    place += length if place < 0 else 0
    if not 0 <= place < length:
        raise IndexError(f"index {index} is out of range for length {length}")
    return place


def semantic_mask(scene: Scene, instance: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Class of every pixel (a value of `SEMANTIC`) from the thing of every pixel."""
    table = np.zeros(256, np.uint8)
    table[1 : 1 + len(scene.things)] = [SEMANTIC[thing.noun] for thing in scene.things]
    return table[instance]


def _meta(scene: Scene, drawing: Drawing) -> dict[str, Any]:
    return {
        "scene": scene,
        "instance": drawing.instance,
        "visible": drawing.visible,
        "attributes": tuple(attributes(thing) for thing in scene.things),
        "position": tuple(position(thing) for thing in scene.things),
        "novel": tuple(thing.noun in NOVEL_NOUNS for thing in scene.things),
        "counts": dict(Counter(thing.noun for thing in scene.things)),
        "style": scene.style,
        "place": scene.background.name if scene.background.kind == "place" else None,
    }
