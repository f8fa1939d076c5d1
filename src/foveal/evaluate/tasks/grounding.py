"""Referring expressions: the box of the one thing that a phrase means, read from the model's text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foveal.data.box_text import Box, parse_box
from foveal.data.world.config import WorldConfig
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.referring import referring_expression
from foveal.evaluate.base import Item, Json, Scored, Setting, Task, ratio, share
from foveal.evaluate.tasks.asking import asker
from foveal.evaluate.tasks.worlds import LLAVA_WORLD, held_out, picture

PROMPT = "Provide the bounding box of {}."
THRESHOLD = 0.5


def world_items(setting: Setting, world: WorldConfig = LLAVA_WORLD) -> list[Item]:
    """One thing of each of the first n scenes in which some thing can be referred to; boxes in shares of the sides."""
    seed = held_out(setting.seed, 40)
    height, width = world.shape
    items: list[Item] = []
    index = 0
    while len(items) < setting.n:
        scene, rng = lay_out(world, seed, index), np.random.default_rng((seed, index, 1))
        index += 1
        phrases = [(i, phrase) for i in range(len(scene.things)) if (phrase := referring_expression(scene, i))]
        if not phrases:
            continue
        i, phrase = phrases[int(rng.integers(len(phrases)))]
        x0, y0, x1, y1 = draw(scene, world.size).boxes[i]
        truth = {"phrase": phrase, "box": [x0 / width, y0 / height, x1 / width, y1 / height]}
        items.append(Item(scene.key, (PROMPT.format(phrase),), picture(scene, world), truth))
    return items


def box_scores(items: Sequence[Item], outputs: Sequence[Json]) -> Scored:
    """A text without a box is an IoU of 0. Chance: every answer is compared with the next item's box."""
    said = [parse_box(output["answer"]) for output in outputs]
    boxes = [item.truth["box"] for item in items]
    overlaps, others = _overlaps(said, boxes), _overlaps(said, boxes[1:] + boxes[:1])
    by_chance = [value >= THRESHOLD for value in others]
    metrics = [
        share(f"accuracy@{THRESHOLD}", [value >= THRESHOLD for value in overlaps], sum(by_chance) / len(items)),
        ratio("mean IoU", overlaps, chance=sum(others) / len(items)),
        share("no box", [box is None for box in said], None, "lower"),
    ]
    rows = [
        {"key": item.key, **item.truth, "said": output["answer"], "read": box and list(box), "iou": value}
        for item, output, box, value in zip(items, outputs, said, overlaps)
    ]
    return Scored(metrics, rows)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Area that two boxes (x0, y0, x1, y1) share over the area that they cover together, 0 to 1, in any unit."""
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(across, 0.0) * max(down, 0.0)
    together = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / together if together > 0 else 0.0


def _overlaps(said: Sequence[Box | None], boxes: Sequence[Sequence[float]]) -> list[float]:
    return [0.0 if box is None else iou(box, truth) for box, truth in zip(said, boxes)]


TASKS = (
    Task(
        name="world-rec",
        kind="vision-language",
        summary="n held-out scenes, each with a phrase that means one thing: its box as text, in hundredths",
        size=400,
        scorer="IoU of the first four numbers in the answer, read as hundredths of width and height",
        make=world_items,
        ask=asker(24),
        score=box_scores,
    ),
)
