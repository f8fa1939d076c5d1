"""FoPru: does the vision encoder's own attention tell which image tokens a language model needs?

Host: nano-llava as shipped (144 image tokens, 6 layers); its accuracy without any drop is the arm *full*. Questions on
held-out scenes of one or two big things, of which it gets more than four in five right; five kinds counted alike:
existence, colour, count, object (short answers) and boxes (IoU of at least 0.5). All tokens go before the decoder, so a
budget is the share of tokens in every layer. *rank* and *row* are the paper's two rules. At the same share: *random*
tokens, *uniform* (at even distances), *pool* (averages of neighbouring patches on the grid that comes closest: 44, 25
and 11 %), and *fastv*, which keeps all in layer 0 and few enough later for the same mean, which at 12 % is none.

The paper renumbers the remaining tokens without gaps for the rotary positions; FastV leaves them their numbers. The
arms ending in *.original* do that too.
``correlation``: of a patch's significance with whether a thing is there, from its true mask.
Relations, which the host guesses, are shown and not counted; captions are of its own world.

Why it came out so: the class token looks at one thing and at the rim of the picture, so that of two things one goes
with all its patches (see the pictures). Even or chance dropping leaves something of everything, which is enough here.
Tokens that keep their numbers are worth 5 to 12 points more, by whichever rule they were chosen; it changes no order.
"""

from collections.abc import Callable, Mapping
from functools import partial

from foveal.compress.baselines import AveragePool, FastV, RandomDrop, UniformDrop
from foveal.compress.fopru import FoPru
from foveal.compress.runtime import PrefillReducer
from foveal.lab import Claim, Recipe, Run
from foveal.recipes._lvlm import reduced_exam
from foveal.recipes._lvlm_pictures import kept_patches, significance_of_things

SHARES = {"50 %": 0.5, "25 %": 0.25, "12 %": 0.125}
SIDES = {"50 %": 8, "25 %": 6, "12 %": 4}


def random_drop(ratio: float) -> PrefillReducer:
    return RandomDrop((0,), (ratio,))


def fastv(mean: float) -> PrefillReducer:
    return FastV(layer=1, ratio=max(0.0, (6 * mean - 1) / 5))


def original(setting: float, make: Callable[[float], PrefillReducer]) -> PrefillReducer:
    reducer = make(setting)
    reducer.positions = "original"
    return reducer


def arm(run: Run, make: Callable[..., PrefillReducer], settings: Mapping[str, float]) -> dict[str, float]:
    reducers = {budget: partial(make, setting) for budget, setting in settings.items()}
    found = reduced_exam(run, reducers)
    if run.arm == "rank":
        run.figure("kept.png", *kept_patches(run, reducers))
        found["correlation"] = significance_of_things(run)
    return found


def full(run: Run) -> dict[str, float]:
    return reduced_exam(run, {"100 %": lambda: None})


RECIPE = Recipe(
    paper="fopru",
    arms={
        "full": full,
        "rank": partial(arm, make=FoPru, settings=SHARES),
        "row": partial(arm, make=partial(FoPru, strategy="row"), settings=SHARES),
        "fastv": partial(arm, make=fastv, settings=SHARES),
        "random": partial(arm, make=random_drop, settings=SHARES),
        "uniform": partial(arm, make=UniformDrop, settings=SHARES),
        "rank.original": partial(arm, make=partial(original, make=FoPru), settings=SHARES),
        "random.original": partial(arm, make=partial(original, make=random_drop), settings=SHARES),
        "uniform.original": partial(arm, make=partial(original, make=UniformDrop), settings=SHARES),
        "pool": partial(arm, make=AveragePool, settings=SIDES),
    },
    claims=[
        *(Claim("rank", beats="random", on=f"accuracy at {budget}") for budget in SHARES),
        *(Claim("rank", beats="uniform", on=f"accuracy at {budget}") for budget in SHARES),
        *(
            Claim("rank.original", beats=f"{control}.original", on=f"accuracy at {budget}")
            for control in ("random", "uniform")
            for budget in SHARES
        ),
        Claim("rank", beats="row", on="accuracy at 25 %"),
    ],
    seeds=(6, 7, 8),  # 0 to 2: on scenes of which the host gets too few right; 3 to 5: all renumbered but FastV
    controls=("random", "uniform", "random.original", "uniform.original", "pool"),
    real="foveal compress llava-hf/llava-1.5-7b-hf --budget 0.5 --calibrate examples.jsonl",
    example="""
from foveal import compress, zoo
from foveal.data.world import config, draw, layout

nano = zoo.load("nano-llava")  # or any LLaVA, LLaVA-NeXT or LLaVA-OneVision of transformers, with its processor
picture = draw.draw(layout.scene(config.WorldConfig(), 0, 1), 96).image
inputs = nano.processor(text="USER: <image>\\nHow many dogs are there? ASSISTANT:", images=picture, return_tensors="pt")
with compress.FoPru(ratio=0.25).attached(nano.model) as reducer:
    ids = nano.model.generate(**inputs, max_new_tokens=8)
print(nano.processor.decode(ids[0], skip_special_tokens=True))
print(reducer.report())
""",
)
