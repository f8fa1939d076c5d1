"""AIM: merging tokens before the decoder and pruning them inside it, against either alone, pooling and chance.

Host: nano-llava as shipped (144 image tokens, 6 layers); its accuracy without a reducer is the arm *full*. Questions on
held-out scenes of one or two big things, of which it gets more than four in five right; five kinds counted alike:
existence, colour, count, object (short answers) and boxes (IoU of at least 0.5). A budget is the mean share of image
tokens over the layers; FLOPs are measured, AIM's merging and PageRank among them. At the same budgets: *merge* and
*prune* do one of the two, *random* drops on AIM's own schedule what chance chooses, *pool* averages neighbouring
patches, *fastv* drops once. Grids are whole numbers: pool has 34 and 17 %.

Films of four frames with a question on events, order or number: *two.frames* shows the first and the last frame with
all their tokens, *four.aim* all four at half the tokens each, *four.random* likewise with tokens chosen by chance;
*four.full* has twice their tokens.

Relations, which the host guesses, are shown and not counted; captions are of its own world.

Why it came out so: the host has always seen 144 image tokens. Fewer before its first layer, numbered without gaps, lie
elsewhere for it, and boxes and counts suffer; FastV and pruning after that layer keep the numbers.
"""

from collections.abc import Callable
from functools import partial

from foveal.compress.aim import AIM
from foveal.compress.baselines import AveragePool, FastV, RandomDrop
from foveal.compress.runtime import PrefillReducer
from foveal.lab import Claim, Recipe, Run
from foveal.recipes._lvlm import host, reduced_exam
from foveal.recipes._lvlm_films import film_accuracy
from foveal.recipes._lvlm_pictures import kept_patches

NEVER = 99
AIMS = {"38 %": (0.5, 2, 0.25), "17 %": (0.25, 1, 0.2)}
"""Share after merging, first layer after which tokens are pruned, share pruned at each."""
MERGES = {"38 %": (0.375, NEVER), "17 %": (1 / 6, NEVER)}
PRUNES = {"38 %": (1.0, 0, 0.29), "17 %": (1.0, 0, 1.0)}
RANDOMS = {"38 %": ((0, 3, 4, 5), (0.5, 0.375, 0.25, 0.125)), "17 %": ((0, 2, 3, 4, 5), (0.25, 0.2, 0.15, 0.1, 0.05))}
POOLS = {"38 %": (7,), "17 %": (5,)}
ONCE = {"38 %": (1, 0.25), "17 %": (1, 0.0)}


def arm(run: Run, make: Callable[..., PrefillReducer], settings: dict[str, tuple]) -> dict[str, float]:
    reducers = {budget: partial(make, *setting) for budget, setting in settings.items()}
    found = reduced_exam(run, reducers)
    if run.arm == "aim":
        run.figure("kept.png", *kept_patches(run, reducers))
    return found


def full(run: Run) -> dict[str, float]:
    return reduced_exam(run, {"100 %": lambda: None})


def film(run: Run, frames: tuple[int, ...], make: Callable[[], PrefillReducer] | None = None) -> dict[str, float]:
    if make is None:
        return {"film accuracy": film_accuracy(run, frames)}
    with make().attached(run.shared(host).model):
        return {"film accuracy": film_accuracy(run, frames)}


RECIPE = Recipe(
    paper="aim",
    arms={
        "full": full,
        "aim": partial(arm, make=AIM, settings=AIMS),
        "merge": partial(arm, make=AIM, settings=MERGES),
        "prune": partial(arm, make=AIM, settings=PRUNES),
        "fastv": partial(arm, make=FastV, settings=ONCE),
        "random": partial(arm, make=RandomDrop, settings=RANDOMS),
        "pool": partial(arm, make=AveragePool, settings=POOLS),
        "four.full": partial(film, frames=(0, 1, 2, 3)),
        "two.frames": partial(film, frames=(0, 3)),
        "four.aim": partial(film, frames=(0, 1, 2, 3), make=partial(AIM, 0.5, NEVER)),
        "four.random": partial(film, frames=(0, 1, 2, 3), make=partial(RandomDrop, (0,), (0.5,))),
    },
    claims=[
        *(Claim("aim", beats="random", on=f"accuracy at {budget}") for budget in AIMS),
        *(Claim("aim", beats=peer, on="accuracy at 38 %") for peer in ("merge", "prune", "fastv")),
        Claim("four.aim", beats="two.frames", on="film accuracy", published="+4.6 on MLVU at similar cost"),
    ],
    seeds=(3, 4, 5),  # 0 to 2 were run on scenes of which the host gets too few right
    controls=("random", "pool", "four.random"),
    real="foveal compress llava-hf/llava-onevision-qwen2-7b-ov-hf --budget 0.5 --calibrate examples.jsonl",
    example="""
from foveal import compress, zoo
from foveal.data.world import config, draw, layout

nano = zoo.load("nano-llava")  # or any LLaVA, LLaVA-NeXT or LLaVA-OneVision of transformers, with its processor
picture = draw.draw(layout.scene(config.WorldConfig(), 0, 1), 96).image
inputs = nano.processor(text="USER: <image>\\nHow many dogs are there? ASSISTANT:", images=picture, return_tensors="pt")
with compress.AIM(merge_ratio=0.5, start=2, step=0.25).attached(nano.model) as reducer:
    ids = nano.model.generate(**inputs, max_new_tokens=8)
print(nano.processor.decode(ids[0], skip_special_tokens=True))
print(reducer.report())
""",
)
