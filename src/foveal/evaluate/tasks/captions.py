"""Describe a picture: which of its objects are named, and which are invented (CHAIR).

    CHAIR_i = invented mentions / all mentions of objects        CHAIR_s = captions with one / all captions

Rohrbach et al., Object Hallucination in Image Captioning, EMNLP 2018, arXiv 1809.02156. Chance is what the same
captions get when each is held against the next picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foveal.data.world.config import WorldConfig
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.phrases import ALIKE
from foveal.data.world.vocabulary import COMPANIONS
from foveal.evaluate.base import Better, Item, Json, Metric, Scored, Setting, Task, ratio, share
from foveal.evaluate.tasks.asking import asker
from foveal.evaluate.tasks.mentions import Lexicon, world_lexicon
from foveal.evaluate.tasks.worlds import LLAVA_WORLD, held_out, picture

PROMPT = "Please describe this image in detail."
LONGEST = 192
Alike = Callable[[str], frozenset[str]]


_SUMS: tuple[tuple[str, Better], ...] = (
    ("object precision", "higher"),
    ("object recall", "higher"),
    ("object F1", "higher"),
    ("CHAIR_i", "lower"),
)


def world_items(setting: Setting, world: WorldConfig = LLAVA_WORLD) -> list[Item]:
    """n held-out scenes, to be described."""
    seed = held_out(setting.seed, 30)
    items = []
    for index in range(setting.n):
        scene = lay_out(world, seed, index)
        truth = {"objects": list(dict.fromkeys(thing.noun for thing in scene.things))}
        items.append(Item(scene.key, (PROMPT,), picture(scene, world), truth))
    return items


def caption_metrics(
    captions: Sequence[str], objects: Sequence[Sequence[str]], lexicon: Lexicon, alike: Alike | None = None
) -> tuple[list[Metric], list[Json]]:
    """Object precision, recall and F1, CHAIR_i, CHAIR_s and the mean length, with one row for each caption.

    Args:
        captions: as the model wrote them.
        objects: the names of what each picture holds.
        lexicon: finds names in captions.
        alike: names that would do for an object just as well; by default its own only.
    """
    same = alike or (lambda name: frozenset())
    rows = [_judged(lexicon.mentions(caption), truth, same) for caption, truth in zip(captions, objects)]
    shifted = [*objects[1:], *objects[:1]]
    others = [_judged(row["mentions"], truth, same) for row, truth in zip(rows, shifted)]
    metrics = []
    for (name, better), (top, bottom), (top_by_chance, bottom_by_chance) in zip(_SUMS, _sums(rows), _sums(others)):
        chance = sum(top_by_chance) / sum(bottom_by_chance) if sum(bottom_by_chance) else None
        metrics.append(ratio(name, top, bottom, chance, better))
    by_chance = sum(bool(row["invented"]) for row in others) / len(others)
    metrics.append(share("CHAIR_s", [bool(row["invented"]) for row in rows], by_chance, "lower"))
    words = [float(len(caption.split())) for caption in captions]
    metrics.append(ratio("mean length", words, better="neither", unit="words"))
    return metrics, [{"caption": caption, **row} for caption, row in zip(captions, rows)]


def _sums(rows: Sequence[Mapping[str, Any]]) -> list[tuple[list[float], list[float]]]:
    """Numerators and denominators of `_SUMS`."""
    named = [float(len(set(row["mentions"]))) for row in rows]
    there = [float(len(row["objects"])) for row in rows]
    right = [n - len(set(row["invented"])) for n, row in zip(named, rows)]
    found = [t - len(row["missed"]) for t, row in zip(there, rows)]
    invented = [float(len(row["invented"])) for row in rows]
    mentions = [float(len(row["mentions"])) for row in rows]
    both = ([a + b for a, b in zip(right, found)], [a + b for a, b in zip(named, there)])
    return [(right, named), (found, there), both, (invented, mentions)]


def _judged(mentions: Sequence[str], objects: Sequence[str], alike: Alike) -> Json:
    allowed = {*objects, *(name for noun in objects for name in alike(noun))}
    said = {*mentions, *(name for noun in set(mentions) for name in alike(noun))}
    return {
        "objects": list(dict.fromkeys(objects)),
        "mentions": list(mentions),
        "invented": [name for name in mentions if name not in allowed],
        "missed": [name for name in dict.fromkeys(objects) if name not in said],
    }


def world_scores(items: Sequence[Item], outputs: Sequence[Json]) -> Scored:
    """Nouns that some people would use for the same thing count as named; then, what is invented."""
    truths = [item.truth["objects"] for item in items]
    captions = [output["answer"] for output in outputs]
    metrics, rows = caption_metrics(captions, truths, world_lexicon(), lambda noun: ALIKE[noun])
    usual, chances = [], []
    for row in rows:
        beside = {other for noun in row["objects"] for other in COMPANIONS.get(noun, ())}
        absent = [noun for noun in LLAVA_WORLD.noun_shares if noun not in row["objects"]]
        for name in set(row["invented"]):
            usual.append(name in beside)
            chances.append(sum(noun in beside for noun in absent) / len(absent))
    if usual:
        chance = sum(chances) / len(chances)
        metrics.append(share("of invented objects, usual companions", usual, chance, "neither"))
    return Scored(metrics, [{"key": item.key, **row} for item, row in zip(items, rows)])


TASKS = (
    Task(
        name="world-caption",
        kind="vision-language",
        summary="n held-out scenes described in detail: objects found, and objects invented (CHAIR)",
        size=300,
        scorer="nouns, plurals and synonyms of the world in the caption against the nouns of the scene",
        make=world_items,
        ask=asker(LONGEST),
        score=world_scores,
    ),
)
