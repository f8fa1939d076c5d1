"""Find the text of a picture and the picture of a text among all candidates: recall at 1 and at 5, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import UInt8

from foveal.data import twemoji
from foveal.data.world.captions import short_caption
from foveal.data.world.dataset import word_rng
from foveal.data.world.layout import scene as lay_out
from foveal.evaluate.base import Item, Json, Metric, Scored, Setting, Task, share
from foveal.evaluate.tasks.embedding import cosines, embed, image_rows, ranks, text_rows
from foveal.evaluate.tasks.worlds import CLIP_WORLD, held_out, picture

DEPTHS = (1, 5)
_SCORER = "rank of the right candidate by cosine; equal cosines count against the model"


def world_items(setting: Setting) -> list[Item]:
    """The first n held-out scenes whose captions all differ, each with its short caption."""
    seed = held_out(setting.seed)
    found: dict[str, Item] = {}
    index = 0
    while len(found) < setting.n:
        if index > 20 * setting.n + 100:
            raise ValueError(f"n={setting.n}: the world has too few distinct short captions; ask for fewer scenes")
        scene = lay_out(CLIP_WORLD, seed, index)
        caption = short_caption(scene, word_rng(seed, index, "caption"))
        found.setdefault(caption, Item(scene.key, (caption,), picture(scene, CLIP_WORLD)))
        index += 1
    return list(found.values())


def emoji_items(setting: Setting) -> list[Item]:
    """n emoji of different families with their English names, held-out ones first, all chosen by the seed.

    One of each family, because its pictures differ in skin tone or gender alone. Where the held-out families are fewer
    than n, others fill up the candidates; these are not asked about. ValueError: there are fewer than n families.
    """
    families = {emoji.base: emoji for emoji in reversed(twemoji.emojis())}
    rng = np.random.default_rng(held_out(setting.seed))
    shuffled = [families[str(base)] for base in rng.permutation(sorted(families))]
    unlike = {emoji.name: emoji for emoji in sorted(shuffled, key=lambda emoji: twemoji.split(emoji) != "held_out")}
    if setting.n > len(unlike):
        raise ValueError(f"n={setting.n}: there are {len(unlike)} families of emoji; give at most that")
    return [
        Item(emoji.key, (emoji.name,), partial(_emoji_picture, emoji), {"asked": twemoji.split(emoji) == "held_out"})
        for emoji in list(unlike.values())[: setting.n]
    ]


def _emoji_picture(emoji: twemoji.Emoji) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    return [twemoji.picture(emoji)]


def recalls(items: Sequence[Item], outputs: Sequence[Json]) -> Scored:
    """Item i's text belongs to item i's picture, and to no other. Items with ``asked`` false are candidates only."""
    scores = cosines(image_rows(outputs), text_rows(outputs))
    asked = [i for i, item in enumerate(items) if item.truth.get("asked", True)]
    found: dict[str, np.ndarray] = {}
    metrics: list[Metric] = []
    for way, table in (("image to text", scores), ("text to image", scores.T)):
        found[way] = ranks(table[asked], asked)
        for depth in DEPTHS:
            chance = min(depth, len(items)) / len(items)
            metrics.append(share(f"{way} R@{depth}", (found[way] <= depth).tolist(), chance))
    best = scores.argmax(1).tolist()
    rows = [
        {
            "key": items[i].key,
            "text": items[i].texts[0],
            "best_text": items[best[i]].texts[0],
            **{f"{way} rank": int(places[row]) for way, places in found.items()},
        }
        for row, i in enumerate(asked)
    ]
    return Scored(metrics, rows)


TASKS = (
    Task(
        name="world-retrieval",
        kind="dual encoder",
        summary="n held-out world scenes with distinct short captions: find one from the other",
        size=1000,
        scorer=_SCORER,
        make=world_items,
        ask=embed,
        score=recalls,
    ),
    Task(
        name="twemoji-names",
        kind="dual encoder",
        summary="Twemoji of held-out families and their English names: find one from the other among n",
        size=200,
        scorer=_SCORER,
        make=emoji_items,
        ask=embed,
        score=recalls,
    ),
)
