"""Language models as black-box optimisers: do good and bad examples together find better prompts than good ones alone?

nano-clip classifies twenty things in pictures with coloured noise, a look that it was not trained on; nothing is seen
of it but its accuracy on one picture a class. A search starts from 30 of 60 templates of foveal's own, twice, and asks
16 times in all. Two writers: SmolLM2-135M (``smollm2.…``), which goes on with the list of bad and good templates
as it would not obey a conversation, and a rule that recombines words of good templates and avoids those of bad ones
only (``rule.…``), which shows what the feedback is worth to a writer that uses it. *none* sees no template, *positive*
the good ones, *both* both. *pool* evaluates 16 further templates of the pool instead; *coop* learns four word vectors
from the same pictures, with gradients.

``train`` is the accuracy that is searched on, ``test`` that of the chosen template on other pictures, ``gap`` their
difference. ``calls``: until the best of all 60 templates is beaten (17: never, as here: 60 are hard to beat).
"""

from functools import partial

import torch

from foveal.adapt.base_continue import ListContinuer
from foveal.adapt.base_coop import CoOpLearner
from foveal.adapt.base_search import SearchJournal
from foveal.adapt.llm_bbo import DEFAULT_POOL, Mode, PromptHillClimber
from foveal.adapt.llm_bbo_list import as_list
from foveal.lab import Claim, Recipe, Run
from foveal.recipes._prompt_search import NOUNS, Task, smollm2, task
from foveal.recipes._recombiner import Recombiner

POOL, START, CALLS = 60, 30, 16


def drawn(run: Run) -> list[str]:
    return [DEFAULT_POOL[i] for i in torch.randperm(len(DEFAULT_POOL), generator=run.generator("pool")).tolist()]


def judged(on: Task, template: str, evaluated: int) -> dict[str, float]:
    train, test = on.fitness(template), on.test(template)
    return {"train": train, "test": test, "gap": train - test, "evaluated": float(evaluated)}


def pool(run: Run) -> dict[str, float]:
    on, templates = run.shared(task, 1, 400), drawn(run)[: START + CALLS]
    return judged(on, max(templates, key=on.fitness), len(templates))


def search(run: Run, mode: Mode, rule: bool = False) -> dict[str, float]:
    on, writer = run.shared(task, 1, 400), Recombiner() if rule else ListContinuer(smollm2(), as_list, "- ")
    templates, calls, beaten = drawn(run)[:POOL], [0], list[int]()
    first = max(map(on.fitness, templates))

    def score(template: str) -> float:
        if (value := on.fitness(template)) > first:
            beaten.append(calls[-1])
        return value

    sizes = {"n_restart": 1, "n_reset": 2, "n_iter": 8, "sample_size": START, "k": 5, "max_calls": run.steps(CALLS)}
    counted = SearchJournal(None, {}).model(writer, calls.append)
    climber = PromptHillClimber(score, counted, **sizes, max_retries=4, mode=mode)
    result = climber.run(templates, run.generator("search"))
    return judged(on, result.best, result.n_evaluations) | {"calls": float(beaten[0] if beaten else CALLS + 1)}


def coop(run: Run) -> dict[str, float]:
    on = run.shared(task, 1, 400)
    learner = CoOpLearner(on.encoder, NOUNS, epochs=run.steps(100), n_ctx=4, class_specific=False, seed=run.seed)
    learner.fit(on.shots, on.shot_labels)
    run.cost(learner.prompt_)
    train, test = 100 * learner.score(on.shots, on.shot_labels), 100 * learner.score(on.images, on.labels)
    return {"train": train, "test": test, "gap": train - test}


MODES: tuple[Mode, ...] = ("none", "positive", "both")
RECIPE = Recipe(
    paper="llm_bbo",
    arms={
        "pool": pool,
        **{f"rule.{mode}": partial(search, mode=mode, rule=True) for mode in MODES},
        **{f"smollm2.{mode}": partial(search, mode=mode) for mode in MODES},
        "coop": coop,
    },
    claims=[
        Claim("smollm2.both", beats="coop", on="test", published="+1.5 on average over 11 data sets, one shot"),
        Claim("smollm2.both", beats="pool", on="test", by=1.0),
        Claim("smollm2.both", beats="smollm2.positive", on="train"),
        Claim("smollm2.positive", beats="smollm2.none", on="train"),
        Claim("rule.both", beats="rule.positive", on="train"),
        Claim("rule.both", beats="rule.positive", on="calls", lower=True, published="fewer calls"),
    ],
    controls=("pool", "smollm2.none", "rule.none"),
    real="foveal adapt llm_bbo --model openai/clip-vit-base-patch32 --train few.csv --budget 100",
    example="""
import torch
from foveal.adapt.llm_bbo import DEFAULT_POOL, PromptHillClimber
from foveal.llm import ScriptedLM

lm = ScriptedLM(lambda prompt: "- a drawing of a {} on paper")  # or foveal.llm.language_model("openai:http://…")
score = lambda template: float("drawing" in template)  # few-shot accuracy of your model with this template
climber = PromptHillClimber(score, lm, n_restart=1, n_reset=1, n_iter=2, sample_size=20, k=5)
print(climber.run(DEFAULT_POOL, torch.Generator().manual_seed(0)).best)
""",
)
