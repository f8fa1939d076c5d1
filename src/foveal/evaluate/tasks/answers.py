"""Short questions with short answers about held-out scenes, a task for each kind of question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from foveal.data.world.config import WorldConfig
from foveal.data.world.dataset import word_rng
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.questions import KINDS, questions
from foveal.evaluate.base import Item, Json, Scored, Setting, Task, share
from foveal.evaluate.tasks.asking import asker, normalised
from foveal.evaluate.tasks.worlds import LLAVA_WORLD, held_out, picture

SHORT = " Answer the question using a single word or phrase."
"""Asks for a short answer, as LLaVA-1.5 is taught to (Liu et al., arXiv 2310.03744)."""
_PLAIN = ("relation", "comparison", "position")  # yes/no, or an answer of several words
_SCANNED = 200


def question_items(kind: str, setting: Setting, world: WorldConfig = LLAVA_WORLD) -> list[Item]:
    """One question of the kind about each of the first n scenes that allow one."""
    seed = held_out(setting.seed, 20 + KINDS.index(kind))
    items: list[Item] = []
    index = 0
    while len(items) < setting.n and index < _SCANNED * setting.n:
        scene = lay_out(world, seed, index)
        for question in questions(scene, word_rng(seed, index, "questions"), (kind,), each=1):
            text = question.text if kind in _PLAIN else question.text + SHORT
            truth = {"accepted": list(question.answers), "things": len(scene.things)}
            items.append(Item(scene.key, (text,), picture(scene, world), truth))
        index += 1
    if not items:
        raise ValueError(f"task world-{kind}: none of {index} scenes allows such a question")
    return items


def answer_scores(items: Sequence[Item], outputs: Sequence[Json]) -> Scored:
    """Share of answers that are among the accepted ones; chance is the best answer that is always the same."""
    rows = [
        {
            "key": item.key,
            "question": item.texts[0],
            **item.truth,
            "said": output["answer"],
            "right": is_right(output["answer"], item.truth["accepted"]),
        }
        for item, output in zip(items, outputs)
    ]
    common = Counter(item.truth["accepted"][0] for item in items).most_common(1)[0][1]
    return Scored([share("accuracy", [row["right"] for row in rows], common / len(items))], rows)


def is_right(said: str, accepted: Sequence[str]) -> bool:
    """Whether an answer is among the accepted ones; yes and no may be followed by more."""
    if accepted[0] in ("yes", "no"):
        return normalised(said).split()[:1] == [accepted[0]]
    return normalised(said) in {normalised(answer) for answer in accepted}


TASKS = tuple(
    Task(
        name=f"world-{kind}",
        kind="vision-language",
        summary=f"n held-out scenes, each with one question of the kind {kind}",
        size=400,
        scorer="exact match with an accepted answer after VQA's normalisation; yes/no by the first word",
        make=partial(question_items, kind),
        ask=asker(16),
        score=answer_scores,
    )
    for kind in KINDS
    if kind != "existence"
)
