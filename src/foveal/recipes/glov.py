"""GLOV: does a language model that sees what worked, and is pushed towards it from inside, find better prompts?

nano-clip classifies twenty things in pictures with coloured noise, a look that it was not trained on; fitness is its
accuracy on two pictures a class. SmolLM2-135M writes 3 × 4 prompts in each arm but *default* ("a photo of a
<category>.") and *drawn* (as many from foveal's own pool of templates, no language model). *random* is asked as in the
first step every time; *ranked* sees the best and the worst prompts so far; *steered* is also pushed from the second
best prompt to the best one at block 16 of 30, and *flipped* the other way. A model of this size does not obey a
conversation: it is given the same prompts and accuracies as a list to go on with, in every arm.

``test``: of the prompt with the highest fitness; ``ensemble``: of the best three; ``valid``: replies that are a
template, in percent; ``towards``: cosine, in percent, of new prompts with P⁺ minus that with P⁻ at block 16 (0 where no
prompt beat the first one).
"""

from functools import partial

import torch

from foveal.adapt.base_continue import ListContinuer
from foveal.adapt.glov import GLOVOptimizer, parse_template
from foveal.adapt.glov_list import as_list
from foveal.adapt.llm_bbo_pool import DEFAULT_POOL
from foveal.lab import Claim, Recipe, Run
from foveal.recipes._glov_language import BLOCK, DEFAULT, towards
from foveal.recipes._prompt_search import smollm2, task

STEPS, EACH = 3, 4
ALPHA = 0.5
"""Of the paper's four values the largest with which SmolLM2 goes on writing (seed 100)."""


def default(run: Run) -> dict[str, float]:
    on = run.shared(task, 2, 400)
    return {"fitness": on.fitness(DEFAULT), "test": on.test(DEFAULT), "ensemble": on.test(DEFAULT), "evaluated": 1.0}


def drawn(run: Run) -> dict[str, float]:
    """The best of as many templates as the others may evaluate, drawn from the pool."""
    on = run.shared(task, 2, 400)
    order = torch.randperm(len(DEFAULT_POOL), generator=run.generator("pool"))[: STEPS * EACH].tolist()
    fitness = {prompt: on.fitness(prompt) for prompt in [DEFAULT, *(DEFAULT_POOL[i] for i in order)]}
    best = sorted(fitness, key=lambda prompt: -fitness[prompt])
    found = {"fitness": fitness[best[0]], "test": on.test(best[0]), "ensemble": on.test(*best[:3])}
    return found | {"evaluated": float(len(fitness))}


def search(run: Run, k: int = 5, alpha: float = 0.0) -> dict[str, float]:
    on, lm = run.shared(task, 2, 400), ListContinuer(smollm2(), as_list)
    run.cost(lm.model)
    about = ("noisy drawings", "Drawn things under coloured noise.")
    options = {"steps": run.steps(STEPS), "per_step": EACH, "k": k, "alpha": alpha, "seed": 1000 * run.seed}
    result = GLOVOptimizer(lm, on.fitness, *about, **options, initial=DEFAULT, layer=BLOCK).run()
    for number, (_, _, _) in enumerate(result.history):
        run.record("best fitness", max(score for _, _, score in result.history[: number + 1]), number)
    valid = sum(parse_template(reply) is not None for reply in lm.replies)
    found = {"fitness": result.best_score, "test": on.test(result.best), "ensemble": on.test(*result.ensemble)}
    found |= {"valid": 100 * valid / len(lm.replies), "evaluated": float(len(result.history))}
    return found | {"towards": towards(lm, result)}


RECIPE = Recipe(
    paper="glov",
    arms={
        "default": default,
        "drawn": drawn,
        "random": partial(search, k=0),
        "ranked": search,
        "steered": partial(search, alpha=ALPHA),
        "flipped": partial(search, alpha=-ALPHA),
    },
    claims=[
        Claim("steered", beats="default", on="test", published="+3.8 on average, up to +15.0 (CLIP)"),
        Claim("ranked", beats="random", on="test"),
        Claim("steered", beats="ranked", on="towards"),
        Claim("steered", beats="ranked", on="test"),
        Claim("steered", beats="flipped", on="test"),
    ],
    controls=("drawn", "random", "flipped"),
    seeds=(3, 4, 5),  # 0 to 2 were run with α = 1, which leaves no text to be steered
    real="foveal adapt glov --model openai/clip-vit-base-patch32 --train few.csv --budget 100",
    example="""
from foveal import zoo
from foveal.adapt.glov import template_weights
from foveal.zoo.dual_encoder import DualEncoder

nano = zoo.load("nano-clip")  # or any CLIPModel with its processor
encoder = DualEncoder(nano.model, nano.processor)
prompts = ["a photo of a <category>.", "a drawing of a <category> on grass"]  # as GLOVOptimizer(...).run().ensemble
print(template_weights(encoder.text_features, ["dog", "polar_bear"], prompts).shape)
""",
)
