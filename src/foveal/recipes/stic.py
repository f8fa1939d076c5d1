"""STIC: does a model that taught itself to describe unlabelled pictures answer questions better?

Host: nano-llava as shipped. Stage 1: on 60 scenes without labels, what it writes when asked for details is the chosen
answer to a short prompt; rejected is what it writes under the short prompt of a spoiled picture, or what it tells of a
grey one (it follows no misleading prompt). ``rejected worse`` is in how many pairs of a hundred that one has the lower
F1 of objects: below 70 the run says nothing. Stage 2: questions with short answers, the picture's description by the
tuned model in front.

Same steps in all trained arms but *stage1*, and the same learning rate in each stage: *sft* trains on the questions
alone all the time, *positives* imitates the chosen descriptions in stage 1. *stage1* ends after it (*alpha0*: without
the regulariser), *stic* goes on, *stic.dar* asks the same model with its own description in front. VQA: held-out
questions about presence, colour, number and relation. Captions are judged under a short prompt.

Inconclusive: the host answers these questions nearly as well before; what is left is within its noise.
"""

from functools import partial

from foveal.align.stic import STICObjective
from foveal.lab import Claim, Recipe, Run
from foveal.recipes._preferences import ROWS, Batches, Seen, chosen_alone, copied, fresh, imitate, pair_batches, prefer
from foveal.recipes._self_taught import self_pairs
from foveal.recipes._self_taught_questions import judged, question_batches, questions

STEPS = 6
"""Of each stage."""
GENTLY = 5e-5
"""Learning rate on questions: with that of descriptions, the host soon says yes to all of them."""


def pairs(run: Run) -> tuple[Batches, float]:
    found, worse = self_pairs(run, run.steps(STEPS) * ROWS)
    return pair_batches(run, found), worse


def first_stage(run: Run, alpha: float) -> Seen:
    policy = fresh(run)
    prefer(run, STICObjective(policy, policy, alpha=alpha), run.shared(pairs)[0])
    return policy


def imitated(run: Run) -> Seen:
    policy = fresh(run)
    imitate(run, policy, chosen_alone(run.shared(pairs)[0]))
    return policy


def second_stage(run: Run, first: Seen) -> Seen:
    policy = copied(first)
    rows = run.shared(questions, run.steps(STEPS) * ROWS)
    imitate(run, policy, question_batches(run, rows, describer=first), GENTLY)
    return policy


def full(run: Run) -> Seen:
    return second_stage(run, run.shared(first_stage, 1 / 1024))


def sft(run: Run) -> dict[str, float]:
    policy, taught = fresh(run), question_batches(run, run.shared(questions, run.steps(STEPS) * ROWS))
    imitate(run, policy, [*taught, *taught], GENTLY)
    return judged(run, policy)


def stage1(run: Run, alpha: float) -> dict[str, float]:
    return judged(run, run.shared(first_stage, alpha)) | {"rejected worse": run.shared(pairs)[1]}


RECIPE = Recipe(
    paper="stic",
    arms={
        "base": lambda run: judged(run, fresh(run).requires_grad_(False)),
        "sft": sft,
        "positives": lambda run: judged(run, second_stage(run, run.shared(imitated))),
        "stage1": partial(stage1, alpha=1 / 1024),
        "alpha0": partial(stage1, alpha=0.0),
        "stic": lambda run: judged(run, run.shared(full)),
        "stic.dar": lambda run: judged(run, run.shared(full), describe=True),
    },
    claims=[
        Claim("stic", beats="sft", on="VQA accuracy", by=2.0, published="+4.0 over seven benchmarks (LLaVA-1.6)"),
        Claim("stic", beats="positives", on="VQA accuracy"),
        Claim("stage1", beats="base", on="attribute F1"),
        Claim("stic.dar", beats="stic", on="VQA accuracy"),
    ],
    controls=("base", "positives"),
    real="foveal align stic --model llava-hf/llava-v1.6-mistral-7b-hf --images photos/",
    example="""
import torch
from foveal import align
from foveal.data.photos import photos

image = torch.from_numpy(next(iter(photos())).image).permute(2, 0, 1) / 255
model = lambda image, prompt: f"what your model says to {prompt[:30]!r} about {tuple(image.shape)}"
print(align.build_preference_pair(image, model, torch.Generator().manual_seed(0)))
""",
)
