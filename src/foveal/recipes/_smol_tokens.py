"""What dropping visual tokens costs a language model of real size: every method at the same budgets, on smol-vl.

Host: SmolLM2-135M in a LLaVA (30 layers, 144 image tokens; ``foveal.zoo.load("smol-vl")``), the same for all. It is
asked about held-out scenes of one or two big things: existence, colour and object, counted alike. A budget is the share
of its image tokens that a layer processes, mean over the layers; each method spends it as `foveal.compress.matched`
says. The average's grid is a whole number: at 50 % it has 44. *full* keeps every token. Controls: *randomdrop* before
the decoder, and *averagepool* over neighbouring patches. What drops tokens may give the others new numbers for the
rotary positions, as the authors release it, or leave them theirs: the arms ending in *.original* do the latter, and so
do FastV and P-Sigmoid, which are compared with *randomdrop.original*.

No choice of tokens beats chance here: a quarter drawn at random, or averaged, answers as well as the best method, and
writes captions not much worse. Worst is to leave hardly a token to the last third of the layers (*aim*, *p-sigmoid*):
there this host reads colours and names, and without them it names what is not there; next worst one early, deep cut
(*fastv*). Counts, relations and boxes were taught to smol-vl and not learned: it says 1, guesses the side, and gives a
box as good as another picture's. Their columns show what becomes of guesses.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from foveal.compress.anatomy import find
from foveal.compress.gsearch import LayerwiseKeep, fit_center, p_sigmoid
from foveal.compress.matched import matched_reducers
from foveal.compress.runtime import PrefillReducer
from foveal.lab import Claim, Recipe, Run
from foveal.recipes._smol import ASIDE, aside, exam, host

BUDGETS = {"50 %": 0.5, "25 %": 0.25}
LAST = list(BUDGETS)[-1]
"""The budget at which kinds are told apart and captions are written."""
STEEPNESS = 8.0
COLUMNS = {
    **{f"accuracy at {budget}": f"mean of three kinds, with {budget} of the image tokens" for budget in BUDGETS},
    f"existence at {LAST}": "60 questions about 15 scenes",
    **{f"{kind} at {LAST}": "60 scenes" for kind in ("colour", "object")},
    **{f"{kind} at {LAST}": "45 scenes, not in the mean: the host hardly knows more than chance" for kind in ASIDE},
    f"object F1 at {LAST}": "48 captions of smaller things: those named against those that are there",
    f"CHAIR_i at {LAST}": "of the objects named in these captions, the share that is not there: less is better",
}
Build = Callable[[nn.Module, float], PrefillReducer]


def matched(model: nn.Module, budget: float, name: str) -> PrefillReducer:
    return matched_reducers(model, budget).reducers[name]


def original(model: nn.Module, budget: float, name: str) -> PrefillReducer:
    reducer = matched(model, budget, name)
    reducer.positions = "original"
    return reducer


def sigmoid(model: nn.Module, budget: float) -> PrefillReducer:
    depth = len(find(model).layers)
    return LayerwiseKeep(p_sigmoid(depth, STEEPNESS, fit_center(depth, STEEPNESS, budget)), "original")


def full(run: Run) -> dict[str, float]:
    nano = run.shared(host)
    found = {**exam(run, nano), **aside(run, nano), "FLOPs": 100.0}
    return {f"{name} at {budget}": value for budget in BUDGETS for name, value in found.items()}


def arm(run: Run, build: Build) -> dict[str, float]:
    nano, found = run.shared(host), dict[str, float]()
    for name, budget in BUDGETS.items():
        with build(nano.model, budget).attached(nano.model) as reducer:
            told = exam(run, nano) | (aside(run, nano) if name == LAST else {})
        told["FLOPs"] = 100 * (1 - reducer.report().flops_saved)
        found |= {f"{kind} at {name}": value for kind, value in told.items()}
    return found


BUILDS: dict[str, Build] = {
    **{name.lower(): partial(matched, name=name) for name in ("PyramidDrop", "FoPru", "AIM", "FastV")},
    "p-sigmoid": sigmoid,
    **{name.lower(): partial(matched, name=name) for name in ("RandomDrop", "AveragePool")},
    **{f"{name.lower()}.original": partial(original, name=name) for name in ("PyramidDrop", "FoPru", "RandomDrop")},
}
RECIPE = Recipe(
    paper="_smol_tokens",
    arms={"full": full, **{name: partial(arm, build=build) for name, build in BUILDS.items()}},
    claims=[
        *(Claim(name, beats="randomdrop", on="accuracy at 25 %") for name in ("pyramiddrop", "fopru", "aim")),
        *(
            Claim(name, beats="randomdrop.original", on="accuracy at 25 %")
            for name in ("pyramiddrop.original", "fopru.original", "p-sigmoid", "fastv")
        ),
    ],
    controls=("randomdrop", "randomdrop.original", "averagepool"),
    real="foveal compress llava-hf/llava-1.5-7b-hf --budget 0.25 --calibrate data.jsonl -o schedule.json",
)
