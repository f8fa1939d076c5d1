"""Scenes in which nano-llava makes things up: more and smaller things, farther away, than those that it knows.

Otherwise it is its own world: the same nouns among the same companions. Chosen on seed 100: in scenes of its own world
the shipped host invents so little that no method could show what it does about that.
"""

from dataclasses import replace
from functools import cache

from foveal.evaluate.base import Item, Json, Setting
from foveal.evaluate.models.vision_language import VisionLanguage
from foveal.evaluate.tasks import TASKS, captions, existence
from foveal.evaluate.tasks.asking import asker
from foveal.evaluate.tasks.worlds import LLAVA_WORLD
from foveal.lab import Run
from foveal.recipes._lvlm import BATCH, CAPTIONS, Options, told
from foveal.zoo.nano import Nano

HARD_WORLD = replace(LLAVA_WORLD, things=(2, 5), sizes=("small", "medium"), depth=(3.0, 5.0), min_visible=0.5)
_MAKE = {"existence": existence.world_items, "caption": captions.world_items}


def asked(run: Run, kind: str, scenes: int) -> list[Item]:
    """Questions of a seed whose pictures are drawn once, for `Run.shared`."""
    found = _MAKE[kind](Setting(1 if run.smoke else scenes, run.seed), HARD_WORLD)
    return [replace(item, pictures=cache(item.pictures)) if item.pictures else item for item in found]


def answered(
    run: Run, nano: Nano, kind: str, scenes: int, options: Options | None = None
) -> tuple[list[Item], list[Json]]:
    """Questions of the kind "existence" or "caption" about hard scenes, and what the model says to each."""
    items = run.shared(asked, kind, scenes)
    ask = asker(2) if run.smoke else TASKS[f"world-{kind}"].ask
    return items, ask(VisionLanguage(nano.model, nano.processor, BATCH, options), items)


def described(run: Run, nano: Nano, options: Options | None = None) -> dict[str, float]:
    """Long captions of hard scenes, judged as by `foveal.recipes._lvlm.described`."""
    return told(*answered(run, nano, "caption", CAPTIONS, options))
