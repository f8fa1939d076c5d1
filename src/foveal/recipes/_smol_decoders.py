"""What decoders do to a language model of real size: the same questions and captions, on smol-vl.

Host: SmolLM2-135M in a LLaVA (``foveal.zoo.load("smol-vl")``), on held-out scenes as nano-llava is examined on: up to
four things, smaller than those that smol-vl was taught with, so that it makes things up. POPE's questions, and captions
(CHAIR: share of named objects that are not there). Everything is greedy. *vdd* contrasts with the mean of no picture
and ``<unk>`` for a picture, which nano-llava has no token for, *vdd.none* and *vdd.unk* with one of them, *damro* with
the four outlier patches, each at α = 1 and β = 0.1; *agla* adds what a second look at the part that the question is
about says (matcher: nano-clip).

Controls: *beam* spends the second pass on a second beam, *beam3* the two further passes of *vdd* on two; *shuffled* is
*vdd.none* with another question's prompt, which for captions is the same one.

On this host no decoder invents less for certain, and questions are answered about as well by all. What contrasts with
a pass that sees less (*vdd*, *damro*) writes much longer captions, which name more of what is there and more of what is
not. *agla* stays within chance of greedy.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from foveal.decode.agla import AglaLogitsProcessor
from foveal.decode.base import ContrastProcessor
from foveal.decode.damro import DamroLogitsProcessor
from foveal.decode.debias import DebiasLogitsProcessor
from foveal.lab import Claim, Recipe, Run
from foveal.recipes._lvlm_decoding import judged
from foveal.recipes._lvlm_views import host_views
from foveal.recipes._smol import host
from foveal.zoo.nano import Nano

SCENES = 40
"""Each with four questions."""
WORLD = "own"
COLUMNS = {
    "POPE accuracy": "mean of the next three",
    "random accuracy": "what is not there is drawn at random",
    "popular accuracy": "what is not there is one of the frequent nouns",
    "adversarial accuracy": "what is not there is the usual companion of what is",
    "yes share": "half of the true answers are yes",
    "CHAIR_i": "of the objects named in captions, the share that is not there: less is better",
    "object recall": "of the objects that are there, the share named in the caption",
    "words": "of a caption",
}
Make = Callable[[Run, Nano, Mapping[str, Any]], ContrastProcessor]


def plain(run: Run, beams: int = 1) -> dict[str, float]:
    return judged(run, {"num_beams": beams}, run.shared(host), SCENES, WORLD)


def arm(run: Run, make: Make) -> dict[str, float]:
    nano = run.shared(host)
    return judged(run, lambda inputs: {"logits_processor": [make(run, nano, inputs)]}, nano, SCENES, WORLD)


def vdd(
    run: Run, nano: Nano, inputs: Mapping[str, Any], mode: Literal["none", "unk", "both"], shift: int = 0
) -> ContrastProcessor:
    ids, mask = (inputs[name].roll(shift, 0) for name in ("input_ids", "attention_mask"))
    return DebiasLogitsProcessor(nano.model, ids, mask, mode)


def damro(run: Run, nano: Nano, inputs: Mapping[str, Any]) -> ContrastProcessor:
    prompt = {name: inputs[name] for name in ("input_ids", "pixel_values", "attention_mask")}
    return DamroLogitsProcessor(nano.model, **prompt, top_k=4, alpha=1.0)


def agla(run: Run, nano: Nano, inputs: Mapping[str, Any]) -> ContrastProcessor:
    prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return AglaLogitsProcessor(nano.model, **prompt, pixel_values=host_views(run, nano, inputs))


RECIPE = Recipe(
    paper="_smol_decoders",
    arms={
        "greedy": plain,
        "beam": partial(plain, beams=2),
        "beam3": partial(plain, beams=3),
        "vdd": partial(arm, make=partial(vdd, mode="both")),
        "vdd.none": partial(arm, make=partial(vdd, mode="none")),
        "vdd.unk": partial(arm, make=partial(vdd, mode="unk")),
        "damro": partial(arm, make=damro),
        "agla": partial(arm, make=agla),
        "shuffled": partial(arm, make=partial(vdd, mode="none", shift=1)),
    },
    claims=[
        *(Claim(name, beats="greedy", on="POPE accuracy") for name in ("vdd", "damro", "agla")),
        *(Claim(name, beats="greedy", on="CHAIR_i", lower=True) for name in ("vdd", "damro", "agla")),
    ],
    controls=("beam", "beam3", "shuffled"),
    real="foveal eval llava-hf/llava-1.5-7b-hf --task pope --data pope --images val2014 --decode damro",
)
