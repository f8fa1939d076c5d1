"""Is there …? Yes/no questions about objects, after POPE: balanced, with absent objects chosen in three ways.

Li et al., Evaluating Object Hallucination in Large Vision-Language Models, EMNLP 2023, arXiv 2305.10355. On the world
it is also known how often a noun occurs and what usually accompanies what, so errors are reported by both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np

from foveal.data.world.absent import CHOICES, Negatives
from foveal.data.world.config import WorldConfig
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.phrases import article
from foveal.data.world.vocabulary import COMPANIONS
from foveal.evaluate.base import Item, Json, Metric, Scored, Setting, Task, ratio, share
from foveal.evaluate.tasks.asking import asker, is_either, yes_or_no
from foveal.evaluate.tasks.worlds import LLAVA_WORLD, held_out, picture

QUESTION = "Is there {} in the image?"
BINS = ("frequent", "middling", "rare")
_COUNTED = 4000
SCORER = "POPE's rule: no if the first sentence holds no or not, else yes"


@cache
def frequency_bins() -> dict[str, str]:
    """Noun -> third of the world's nouns that it belongs to, by how many of 4,000 scenes hold it."""
    counts = Counter(dict.fromkeys(LLAVA_WORLD.noun_shares, 0))
    for index in range(_COUNTED):
        counts.update({thing.noun for thing in lay_out(LLAVA_WORLD, 0, index).things})
    ranked = sorted(counts, key=lambda noun: (-counts[noun], noun))
    return {noun: BINS[3 * place // len(ranked)] for place, noun in enumerate(ranked)}


def world_items(setting: Setting, world: WorldConfig = LLAVA_WORLD) -> list[Item]:
    """For each of n scenes a noun that is there and three that are not: any, a popular one, a usual companion.

    Only scenes whose things leave an absent companion; the noun that is there counts in all three comparisons.
    """
    seed = held_out(setting.seed, 10)
    choosers = [Negatives(choice, world) for choice in CHOICES]
    items: list[Item] = []
    index = 0
    while len(items) < 4 * setting.n:
        scene, rng = lay_out(world, seed, index), np.random.default_rng((seed, index, 1))
        index += 1
        if not choosers[2].companions(scene):
            continue
        present = list(dict.fromkeys(thing.noun for thing in scene.things))
        asked = [("present", present[int(rng.integers(len(present)))], "yes")]
        asked += [(chooser.choice, chooser.draw(scene, rng) or "", "no") for chooser in choosers]
        beside = {other for noun in present for other in COMPANIONS.get(noun, ())}
        for choice, noun, answer in asked:
            text = QUESTION.format(f"{article(noun)} {noun}")
            truth = {"answer": answer, "choice": choice, "noun": noun, "companion": noun in beside}
            items.append(Item(f"{scene.key} {choice}", (text,), picture(scene, world), truth))
    return items


def world_scores(items: Sequence[Item], outputs: Sequence[Json]) -> Scored:
    """POPE's numbers for each way to choose what is absent, then errors by frequency and by companionship."""
    rows = judged(items, outputs)
    metrics: list[Metric] = []
    for choice in CHOICES:
        metrics += pope_metrics([row for row in rows if row["choice"] in ("present", choice)], f"{choice} ")
    bins = frequency_bins()
    for name, answer in (("missed", "yes"), ("invented", "no")):
        for part in BINS:
            wrong = [not row["right"] for row in rows if row["answer"] == answer and bins[row["noun"]] == part]
            if wrong:
                metrics.append(share(f"{name}, {part} nouns", wrong, 0.5, "lower"))
    for name, companion in (("invented, usual companions", True), ("invented, others", False)):
        wrong = [not row["right"] for row in rows if row["answer"] == "no" and row["companion"] == companion]
        if wrong:
            metrics.append(share(name, wrong, 0.5, "lower"))
    metrics.append(share("neither yes nor no", [not is_either(row["said"]) for row in rows], None, "lower"))
    return Scored(metrics, rows)


def judged(items: Sequence[Item], outputs: Sequence[Json]) -> list[Json]:
    """What was asked and said, and whether it is right."""
    return [
        {
            "key": item.key,
            "question": item.texts[0],
            **item.truth,
            "said": output["answer"],
            "right": yes_or_no(output["answer"]) == item.truth["answer"],
        }
        for item, output in zip(items, outputs)
    ]


def pope_metrics(rows: Sequence[Json], prefix: str = "") -> list[Metric]:
    """Accuracy, precision and recall of "yes", their harmonic mean, and how often "yes" is said; chance is a coin."""
    truth = [row["answer"] == "yes" for row in rows]
    said = [yes == row["right"] for yes, row in zip(truth, rows)]
    hits = [a and b for a, b in zip(truth, said)]
    prior = sum(truth) / len(truth)
    found = [share(f"{prefix}accuracy", [row["right"] for row in rows], 0.5)]
    if any(said):
        found.append(share(f"{prefix}precision", [a for a, b in zip(truth, said) if b], prior))
    if any(truth):
        found.append(share(f"{prefix}recall", [b for a, b in zip(truth, said) if a], 0.5))
    chance = prior / (prior + 0.5)  # 2pr / (p + r) with p the prior and r a half
    found.append(ratio(f"{prefix}F1", [2 * hit for hit in hits], [a + b for a, b in zip(truth, said)], chance))
    found.append(share(f"{prefix}yes share", said, 0.5, "neither"))
    return found


TASKS = (
    Task(
        name="world-existence",
        kind="vision-language",
        summary="n held-out scenes, each asked about one noun that is there and three that are not",
        size=300,
        scorer=SCORER,
        make=world_items,
        ask=asker(8),
        score=world_scores,
    ),
)
