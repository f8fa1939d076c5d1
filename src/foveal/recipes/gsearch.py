"""G-Search and P-Sigmoid: does a searched strategy of keeping rates beat simple ones at the same budget?

Host: nano-llava as shipped (144 image tokens, 6 layers), its accuracy without any drop is the arm *full*. A strategy is
searched on 96 held-out questions (existence, colour, count, object; scenes of one or two big things, of which the host
gets more than four in five right) and tested on 240 others; both count the first token of the answer. *gsearch* may
lose half a point on the calibration questions; *once* spends the same FLOPs on image tokens with one drop at layer 2.
At budgets of 50 and 40 % (mean rate; layers 0 and 1 keep all): *sigmoid* searches P-Sigmoid with nine measurements,
*random* takes the best of nine falling strategies drawn by chance, *step* drops once at layer 2 by the ranking of all
arms so far, *ramp* falls evenly and is not searched. Peer: *fastv*, once at layer 2 by its own ranking. Before the
decoder: *randomdrop* leaves chance the tokens, *averagepool* takes means (its grid of 8 × 8 is 44 % at both budgets),
which get new position numbers, a loss of its own on this host.

``tau``: how alike neighbouring layers rank the image tokens, on which the method rests. The host loses so little at
these budgets that no strategy has much to win over another.
"""

from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

from foveal.lab import Claim, Recipe, Run
from foveal.recipes._gsearch_ways import LAYERS, START, chance, searched, sigmoid
from foveal.recipes._lvlm_agreement import agreement
from foveal.recipes._lvlm_search import cost, prompts
from foveal.recipes._peers import averagepool, fastv, randomdrop
from foveal.recipes._strategies import one_drop, ramp

BUDGETS = {"50 %": 0.5, "40 %": 0.4}
TEST = (500, 60)
"""First seed, and questions of each kind."""


def told(kinds: dict[str, float], at: str) -> dict[str, float]:
    return {f"accuracy{at}": fmean(kinds.values())} | {f"{kind}{at}": value for kind, value in kinds.items()}


def full(run: Run) -> dict[str, float]:
    return told(run.shared(prompts, *TEST).by_kind(None), "") | {"cost": 100.0}


def gsearch(run: Run) -> dict[str, float]:
    rates, asked = run.shared(searched), run.shared(prompts, *TEST)
    return {**told(asked.by_kind(rates), ""), "cost": cost(run, rates), **agreement(asked)}


def once(run: Run) -> dict[str, float]:
    aim = cost(run, run.shared(searched))
    tries = [one_drop(LAYERS, START, (START + kept / 144 * (LAYERS - START)) / LAYERS) for kept in range(145)]
    rates = min(tries, key=lambda rates: abs(cost(run, rates) - aim))
    return told(run.shared(prompts, *TEST).by_kind(rates), "") | {"cost": cost(run, rates)}


def arm(run: Run, find: Callable[[Run, float], Any]) -> dict[str, float]:
    """``find`` gives keeping rates or a reducer for a budget."""
    asked, found = run.shared(prompts, *TEST), dict[str, float]()
    for name, budget in BUDGETS.items():
        found |= told(asked.by_kind(find(run, budget)), f" at {name}")
    return found


RECIPE = Recipe(
    paper="gsearch",
    arms={
        "full": full,
        "gsearch": gsearch,
        "once": once,
        "sigmoid": partial(arm, find=sigmoid),
        "step": partial(arm, find=lambda run, budget: one_drop(LAYERS, START, budget)),
        "ramp": partial(arm, find=lambda run, budget: ramp(LAYERS, START, budget)),
        "random": partial(arm, find=chance),
        "fastv": partial(arm, find=lambda run, budget: fastv(LAYERS, budget)),
        "randomdrop": partial(arm, find=lambda run, budget: randomdrop(budget)),
        "averagepool": partial(arm, find=lambda run, budget: averagepool(budget)),
    },
    claims=[
        Claim("gsearch", beats="full", on="accuracy", by=-2.0, published="about 0.2 points lost on average"),
        Claim("gsearch", beats="full", on="cost", lower=True, published="up to 2.3 times faster"),
        Claim("gsearch", beats="once", on="accuracy"),
        *(Claim("sigmoid", beats="step", on=f"accuracy at {budget}") for budget in BUDGETS),
        *(Claim("sigmoid", beats="random", on=f"accuracy at {budget}") for budget in BUDGETS),
    ],
    seeds=(3, 4, 5),  # 0 to 2 were run on scenes of which the host gets too few right
    controls=("ramp", "random", "randomdrop", "averagepool"),
    real="foveal compress llava-hf/llava-1.5-7b-hf --budget 0.5 --calibrate examples.jsonl",
    example="""
from foveal import compress, zoo
from foveal.data.world import config, draw, layout

nano = zoo.load("nano-llava")  # or any LVLM that foveal.compress knows
picture = draw.draw(layout.scene(config.WorldConfig(), 0, 1), 96).image
inputs = nano.processor(text="USER: <image>\\nHow many dogs are there? ASSISTANT:", images=picture, return_tensors="pt")
rates = compress.p_sigmoid(n_layers=6, steepness=8.0, center=0.4, floor=0.1)  # better: `foveal compress` finds them
with compress.LayerwiseKeep(rates).attached(nano.model) as reducer:
    ids = nano.model.generate(**inputs, max_new_tokens=8)
print(nano.processor.decode(ids[0], skip_special_tokens=True))
print(reducer.report())
""",
)
