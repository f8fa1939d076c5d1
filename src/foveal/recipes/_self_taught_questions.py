"""Questions with short answers for STIC's second stage and its exam, with the model's own descriptions in front."""

from typing import NamedTuple

import numpy as np

from foveal.align.batches import PairCollator
from foveal.align.stic import DESCRIPTION_PROMPTS, described
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.questions import questions as ask
from foveal.evaluate.models.vision_language import VisionLanguage
from foveal.evaluate.tasks import TASKS
from foveal.evaluate.tasks.worlds import LLAVA_WORLD
from foveal.lab import Run
from foveal.recipes._lvlm import BATCH, host
from foveal.recipes._lvlm_tuning import one_of
from foveal.recipes._lvlm_worlds import asked
from foveal.recipes._preferences import ROWS, Batches, Seen, encoded
from foveal.recipes._self_taught import WORLD, short, told, wrote
from foveal.zoo.nano import Nano

EXAM = {"existence": 8, "colour": 32, "count": 32, "relation": 32}
"""Kind of question -> held-out scenes. Of existence each has four questions."""


class Row(NamedTuple):
    picture: np.ndarray
    question: str
    answer: str


def questions(run: Run, count: int) -> list[Row]:
    """One about each of so many scenes, kinds in equal parts where the scene allows."""
    rng, index, rows = run.rng("questions"), 0, list[Row]()
    while len(rows) < count:
        scene = lay_out(LLAVA_WORLD, WORLD + 500 + run.seed, index)
        index += 1
        if question := one_of(ask(scene, rng, tuple(EXAM)), rng):
            rows.append(Row(draw(scene, LLAVA_WORLD.size).image, question.text, question.answers[0]))
    return rows


def question_batches(run: Run, rows: list[Row], describer: Seen | None = None) -> Batches:
    """To imitate; with a describer, its description stands before the question."""
    if describer is not None:
        prompts = [short(DESCRIPTION_PROMPTS[place % 8]) for place in range(len(rows))]
        asking = [(row.picture, prompt) for row, prompt in zip(rows, prompts)]
        texts = wrote(tuned(run, describer), asking)
        rows = [row._replace(question=described(row.question, text)) for row, text in zip(rows, texts)]
    nano = run.shared(host)
    collate = PairCollator(nano.processor)
    return [encoded(nano, collate.answers(rows[start : start + ROWS])) for start in range(0, len(rows), ROWS)]


def judged(run: Run, policy: Seen, describe: bool = False) -> dict[str, float]:
    """Its answers, with its own description in front or without, and its captions."""
    run.cost(policy.model)
    nano = tuned(run, policy)
    return vqa(run, nano, describe) | told(run, nano)


def tuned(run: Run, policy: Seen) -> Nano:
    return Nano(policy.model.eval(), run.shared(host).processor)


def vqa(run: Run, nano: Nano, describe: bool) -> dict[str, float]:
    """Percentage right of each kind of held-out questions, and their mean; ``describe`` puts a description in front."""
    found = {}
    for kind, scenes in EXAM.items():
        items = run.shared(asked, kind, scenes)
        pictures = [item.pictures()[0] for item in items if item.pictures]
        prompts = [item.texts[0] for item in items]
        if describe:
            texts = wrote(nano, [(picture, short(DESCRIPTION_PROMPTS[0])) for picture in pictures])
            prompts = [described(prompt, text) for prompt, text in zip(prompts, texts)]
        model = VisionLanguage(nano.model, nano.processor, BATCH)
        said = model.answer([([picture], prompt) for picture, prompt in zip(pictures, prompts)], 6)
        rows = TASKS[f"world-{kind}"].score(items, [{"answer": text} for text in said]).rows
        found[kind] = 100 * sum(bool(row["right"]) for row in rows) / len(rows)
    return {"VQA accuracy": sum(found.values()) / len(found), **found}
