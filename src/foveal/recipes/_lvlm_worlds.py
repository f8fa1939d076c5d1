"""Held-out questions for nano-llava: about its own world, about a clearer and about a harder one.

The harder one has more, smaller and farther things, of which it makes up a good deal: in its own world it invents so
little that no decoder could show what it does about that. In the clearer one, one or two big things in no style, it
gets four in five right, as a host must of whose visual tokens some are dropped. Both were chosen on seed 100.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

from foveal.evaluate.base import Item, Setting
from foveal.evaluate.tasks import answers, captions, existence, grounding
from foveal.evaluate.tasks.worlds import LLAVA_WORLD
from foveal.lab import Run

HARD_WORLD = replace(LLAVA_WORLD, things=(2, 5), sizes=("small", "medium"), depth=(3.0, 5.0), min_visible=0.5)
CLEAR_WORLD = replace(LLAVA_WORLD, things=(1, 2), sizes=("large",), depth=(2.1, 2.8), styles=("flat",))
WORLDS = {"own": LLAVA_WORLD, "clear": CLEAR_WORLD, "hard": HARD_WORLD}
_MAKE: dict[str, Callable[..., list[Item]]] = {
    "existence": existence.world_items,
    "caption": captions.world_items,
    "rec": grounding.world_items,
}


def items_of(kind: str, setting: Setting, world: str) -> list[Item]:
    """Questions of a kind about scenes of one of `WORLDS`."""
    make = _MAKE.get(kind) or partial(answers.question_items, kind)
    return make(setting, world=WORLDS[world])


def asked(run: Run, kind: str, scenes: int, world: str = "own") -> list[Item]:
    """Questions of a seed whose pictures are drawn once, for `Run.shared`."""
    items = items_of(kind, Setting(1 if run.smoke else scenes, run.seed), world)
    return [replace(item, pictures=cache(item.pictures)) if item.pictures else item for item in items]
