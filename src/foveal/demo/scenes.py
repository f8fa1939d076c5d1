"""Which drawn scenes the demo shows to nano-llava and what it asks of them: all held out from its training.

Scenes to look at are the first of their world that are drawn in the plain style, hold three things or more and allow
the questions, whatever is answered. What is counted takes the tasks of ``foveal eval``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foveal.data.record import Question
from foveal.data.world.absent import Negatives
from foveal.data.world.dataset import word_rng
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.questions import ask, questions
from foveal.data.world.scene import Scene
from foveal.demo.eyes import Image
from foveal.evaluate.base import Item, Setting
from foveal.evaluate.tasks.answers import question_items
from foveal.evaluate.tasks.worlds import LLAVA_WORLD, held_out

QUIZ = ("colour", "object")
"""Kinds of question that are counted: the patches of one thing answer them, and a guess seldom does."""
FIRST, SECOND = "colour", ("object", "count", "existence")
"""What a scene to look at is asked; the second in turn."""
ENLARGED = 4
"""People see a scene this much larger than the model does."""
_WORLD = 60  # beside those that evaluation tasks take
_THINGS = 3


@dataclass(frozen=True)
class View:
    """A scene to look at: as the model sees it, as people do, and what it is asked."""

    key: str
    small: Image
    large: Image
    objects: tuple[str, ...]
    questions: tuple[Question, ...]


def views(seed: int, count: int) -> list[View]:
    """The first ``count`` scenes that do, each with two questions."""
    world, index = held_out(seed, _WORLD), 0
    found: list[View] = []
    while len(found) < count:
        scene, rng = lay_out(LLAVA_WORLD, world, index), word_rng(world, index, "questions")
        index += 1
        kinds = (FIRST, SECOND[len(found) % len(SECOND)])
        asked = tuple(question for kind in kinds if (question := _question(scene, kind, rng)))
        if scene.style == "flat" and len(scene.things) >= _THINGS and len(asked) == len(kinds):
            size = LLAVA_WORLD.shape[0]
            small, large = (draw(scene, scale * size).image for scale in (1, ENLARGED))
            objects = tuple(dict.fromkeys(thing.noun for thing in scene.things))
            found.append(View(scene.key, small, large, objects, asked))
    return found


def quiz(seed: int, each: int) -> list[Item]:
    """``each`` questions of each kind of `QUIZ`, about as many scenes, as ``foveal eval`` asks them."""
    return [item for kind in QUIZ for item in question_items(kind, Setting(each, seed))]


def _question(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """One question of the kind, or None; counting begins at two, and what is absent is a usual companion."""
    if kind == "count":
        several = [question for question in ask(scene, kind, rng) if question.answers[0] not in ("0", "1")]
        return several[0] if several else None
    return next(iter(questions(scene, rng, (kind,), 1, Negatives("adversarial", LLAVA_WORLD))), None)
