"""Classify pictures by the names of their classes alone, each name averaged over an ensemble of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from foveal.data.folder import ImageFolder
from foveal.data.world.captions import prompts
from foveal.data.world.config import WorldConfig
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.vocabulary import BASE_NOUNS, NOVEL_NOUNS, SPRITE
from foveal.evaluate.base import Item, Json, Scored, Setting, Task, share
from foveal.evaluate.tasks.embedding import class_rows, cosines, embed, image_rows, ranks
from foveal.evaluate.tasks.worlds import CLIP_WORLD, held_out, picture, single

BASE = tuple(noun for noun in SPRITE if noun in BASE_NOUNS)
NOVEL = tuple(noun for noun in SPRITE if noun in NOVEL_NOUNS)
_SCORER = "rank of the right class by cosine with the mean of its prompts' unit features; ties count against the model"


def class_items(names: Sequence[str]) -> list[Item]:
    """One item for each class: the prompts of its name."""
    return [Item(f"class {name}", prompts(name), truth={"class": name}) for name in names]


def one_thing_items(setting: Setting, nouns: Sequence[str], world: int, config: WorldConfig = CLIP_WORLD) -> list[Item]:
    """Scenes of one thing, as many of every noun as can be, in random order.

    Where n is too small for all nouns, the seed chooses them, the same ones in every world.
    """
    seed = held_out(setting.seed, world)
    order = np.random.default_rng(setting.seed).permutation(len(nouns))
    labels = np.random.default_rng(seed).permutation(order[np.arange(setting.n) % len(nouns)])
    items = []
    for i, label in enumerate(labels):
        config_of_one = single(config, nouns[label])
        scene = lay_out(config_of_one, seed, i)
        items.append(Item(scene.key, pictures=picture(scene, config), truth={"label": nouns[label]}))
    return items


def base_items(setting: Setting) -> list[Item]:
    """Classes and pictures are the sprites whose nouns the reference models were taught."""
    return class_items(BASE) + one_thing_items(setting, BASE, world=1)


def novel_items(setting: Setting) -> list[Item]:
    """Classes are all sprites, pictures those that the reference models were never shown nor told of."""
    return class_items((*BASE, *NOVEL)) + one_thing_items(setting, NOVEL, world=2)


def folder_items(setting: Setting) -> list[Item]:
    """The user's pictures, labelled by the sub-folder they are in; of more than n those that the seed chooses.

    ValueError: the folder has fewer than two sub-folders with pictures.
    """
    reader = ImageFolder(Path(str(setting.data)))
    if len(reader.classes) < 2:
        raise ValueError(f"data={str(setting.data)!r} has {len(reader.classes)} class folders; give one for each class")
    labelled = [i for i, key in enumerate(reader.keys) if "/" in key]
    chosen = sorted(np.random.default_rng(setting.seed).permutation(labelled)[: setting.n].tolist())
    names = {folder: folder.replace("_", " ") for folder in reader.classes}
    if len(set(names.values())) < len(names):
        raise ValueError(f"data={str(setting.data)!r} has two folders that differ by _ and space alone; rename one")
    pictures = [
        Item(
            reader.keys[i],
            pictures=partial(_read, reader, i),
            truth={"label": names[reader.keys[i].split("/")[0]]},
        )
        for i in chosen
    ]
    return class_items(tuple(names.values())) + pictures


def _read(reader: ImageFolder, index: int) -> list[Any]:
    return list(reader.load(index).images)


def accuracy(items: Sequence[Item], outputs: Sequence[Json]) -> Scored:
    """Top-1 and top-5 over the classes among the items."""
    names = [str(item.truth["class"]) for item in items if "class" in item.truth]
    shown = [item for item in items if "label" in item.truth]
    scores = cosines(image_rows(outputs), class_rows(outputs))
    places = ranks(scores, [names.index(item.truth["label"]) for item in shown])
    metrics = [share(f"top-{k}", (places <= k).tolist(), min(k / len(names), 1.0)) for k in (1, 5)]
    best = scores.argmax(1).tolist()
    rows = [
        {"key": item.key, "label": item.truth["label"], "predicted": names[best[i]], "rank": int(places[i])}
        for i, item in enumerate(shown)
    ]
    return Scored(metrics, rows)


TASKS = (
    Task(
        name="world-classes",
        kind="dual encoder",
        summary=f"n held-out scenes of one thing among {len(BASE)} sprite classes, zero-shot",
        size=1000,
        scorer=_SCORER,
        make=base_items,
        ask=embed,
        score=accuracy,
    ),
    Task(
        name="world-novel",
        kind="dual encoder",
        summary=f"n scenes of {len(NOVEL)} sprite classes never named in training among all {len(SPRITE)}, zero-shot",
        size=500,
        scorer=_SCORER,
        make=novel_items,
        ask=embed,
        score=accuracy,
    ),
    Task(
        name="imagefolder",
        kind="dual encoder",
        summary="your own pictures in one sub-folder for each class (--data DIR), zero-shot by the folders' names",
        size=10_000,
        scorer=_SCORER,
        make=folder_items,
        ask=embed,
        score=accuracy,
        needs=("data",),
    ),
)
