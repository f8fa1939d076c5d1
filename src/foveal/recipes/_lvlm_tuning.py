"""nano-llava trained a little further on questions with short answers, as an arm or to give a recipe a biased host."""

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from operator import itemgetter

import numpy as np
from torch import Tensor

from foveal.compress.runtime import PrefillReducer
from foveal.data.record import Question
from foveal.data.world.config import WorldConfig
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.questions import questions
from foveal.evaluate.tasks.worlds import LLAVA_WORLD
from foveal.lab import Run
from foveal.recipes._lvlm import exam, host
from foveal.recipes._lvlm_worlds import CLEAR_WORLD
from foveal.train import FitConfig, fit
from foveal.zoo.nano import Nano
from foveal.zoo.nano.chat import ASSISTANT, EOS, USER

STEPS, ROWS = 40, 16
WORLD = 7000
"""Plus the seed: a world of which neither the host nor an exam has seen anything."""
KINDS = ("existence", "colour", "count", "object")
Choose = Callable[[Sequence[Question], np.random.Generator], Question | None]


def one_of(asked: Sequence[Question], rng: np.random.Generator) -> Question | None:
    return asked[int(rng.integers(len(asked)))] if asked else None


def lessons(
    run: Run, nano: Nano, kinds: tuple[str, ...], choose: Choose, world: WorldConfig = LLAVA_WORLD
) -> list[dict[str, Tensor]]:
    """Batches of scenes with one question each."""
    rng, index = run.rng("lessons"), 0
    batches = []
    for _ in range(run.steps(STEPS)):
        rows: list[tuple[np.ndarray, Question]] = []
        while len(rows) < (2 if run.smoke else ROWS):
            scene = lay_out(world, WORLD + run.seed, index)
            index += 1
            if question := choose(questions(scene, rng, kinds), rng):
                rows.append((draw(scene, world.size).image, question))
        batches.append(_batch(nano, rows))
    return batches


def _batch(nano: Nano, rows: Sequence[tuple[np.ndarray, Question]]) -> dict[str, Tensor]:
    answers = [f" {question.answers[0]}{EOS}" for _, question in rows]
    prompts = [f"{USER} <image>\n{question.text} {ASSISTANT}" for _, question in rows]
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    inputs = nano.processor(text=texts, images=[image for image, _ in rows], padding=True, return_tensors="pt")
    labels = inputs["input_ids"].clone()  # padded on the left
    for row, ids in zip(labels, nano.processor.tokenizer(answers, add_special_tokens=False).input_ids, strict=True):
        row[: -len(ids)] = -100
    return {**inputs, "labels": labels}


def copied(run: Run) -> Nano:
    """A host of one's own, ready to be trained but for its vision tower."""
    nano = run.shared(host)
    model = copy.deepcopy(nano.model).requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
    return Nano(model, nano.processor)


def tune(run: Run, nano: Nano, batches: list[dict[str, Tensor]]) -> float:
    """Seconds a step; the model is trained in place."""
    config = FitConfig(lr=3e-4, batch_size=1, weight_decay=0.0, collate=itemgetter(0))
    began = time.perf_counter()
    fit(nano.model, batches, steps=len(batches), loss=lambda model, batch: model(**batch).loss, config=config, on=run)
    return (time.perf_counter() - began) / len(batches)


def tuned_exam(run: Run, reducer: PrefillReducer | None) -> dict[str, float]:
    """The host tuned and examined, with the reducer attached both times or with none."""
    nano = copied(run)
    batches = lessons(run, nano, KINDS, one_of, CLEAR_WORLD)
    with reducer.attached(nano.model) if reducer else nullcontext():
        seconds, marks = tune(run, nano, batches), exam(run, nano)
    return {"accuracy after tuning": marks["accuracy"], "seconds per training step": seconds}
