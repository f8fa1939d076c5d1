"""Scenes in which nano-llava makes things up: more and smaller things, farther away, than those that it knows.

Otherwise it is its own world: the same nouns among the same companions. Chosen on seed 100: in scenes of its own world
the shipped host invents so little that no method could show what it does about that.
"""

from dataclasses import replace

from foveal.evaluate.base import Item, Json, Setting
from foveal.evaluate.tasks import captions, existence
from foveal.evaluate.tasks.worlds import LLAVA_WORLD
from foveal.lab import Run
from foveal.recipes._lvlm import CAPTIONS, Options, drawn_once, said, told
from foveal.zoo.nano import Nano

HARD_WORLD = replace(LLAVA_WORLD, things=(2, 5), sizes=("small", "medium"), depth=(3.0, 5.0), min_visible=0.5)
_MAKE = {"existence": existence.world_items, "caption": captions.world_items}


def asked(run: Run, kind: str, scenes: int) -> list[Item]:
    """Questions of a seed whose pictures are drawn once, for `Run.shared`."""
    return drawn_once(_MAKE[kind](Setting(1 if run.smoke else scenes, run.seed), HARD_WORLD))


def answered(
    run: Run, nano: Nano, kind: str, scenes: int, options: Options | None = None
) -> tuple[list[Item], list[Json]]:
    """Questions of the kind "existence" or "caption" about hard scenes, and what the model says to each."""
    items = run.shared(asked, kind, scenes)
    return items, said(run, nano, kind, items, options)


def described(run: Run, nano: Nano, options: Options | None = None) -> dict[str, float]:
    """Long captions of hard scenes, judged as by `foveal.recipes._lvlm.described`."""
    return told(*answered(run, nano, "caption", CAPTIONS, options))
