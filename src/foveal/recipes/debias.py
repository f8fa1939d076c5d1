"""Debias: does taking away what a model would answer blindly make its answers truer?

Open answers, on nano-llava as shipped: POPE's questions and long captions (CHAIR), on held-out scenes with more and
smaller things than those that it knows, where it makes things up. *vdd* and *vdd.half* contrast with the prompt without
its picture (α = 1 and ½, β = 0.1), *shuffled* likewise with the prompt of another question of the batch; *beam* spends
the second pass on a second beam. All are greedy. ``spread`` is how far accuracy moves over the paper's 48 settings of
temperature, top-p and top-k alone.

Closed answers, on scenes as it knows them, of a host with a prior: nano-llava trained for 40 more steps on questions of
which 85 % are to be answered with yes. Test questions are balanced: ``yes share`` should be 50 %. *prior* takes the
more probable of yes and no; *post* divides by the answer without the picture, *post.fitted* by its mean over all
questions, *post.identity* subtracts it, and *post.permuted* divides by that of another question. nano-llava has no
``<unk>`` token, so that only the prompt without any image token stands for "no picture".
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from foveal.decode.base import ContrastProcessor
from foveal.decode.debias import DebiasLogitsProcessor, PostHocDebias
from foveal.lab import Claim, Recipe, Run
from foveal.recipes._lvlm_decoding import beam, by, greedy
from foveal.recipes._lvlm_prior import label_scores, sweep
from foveal.zoo.nano import Nano


def plain(run: Run) -> dict[str, float]:
    return greedy(run) | sweep(run, None)


def vdd(run: Run, alpha: float, shift: int = 0) -> dict[str, float]:
    def make(nano: Nano, inputs: Any) -> ContrastProcessor:
        ids, mask = (inputs[name].roll(shift, 0) for name in ("input_ids", "attention_mask"))
        return DebiasLogitsProcessor(nano.model, ids, mask, "none", alpha)

    return by(run, make) | ({} if shift else sweep(run, alpha))


Calibrate = Callable[[Run, Tensor, Tensor], Tensor]


def closed(run: Run, calibrate: Calibrate) -> dict[str, float]:
    seen, free, truth = label_scores(run, True)
    said = calibrate(run, seen, free).argmax(-1)
    yes = 100 * (said == 0).float().mean().item()
    return {"closed accuracy": 100 * (said == truth).float().mean().item(), "yes too often": abs(yes - 50)}


def own(run: Run, seen: Tensor, free: Tensor, mode: Literal["diagonal", "identity"] = "diagonal") -> Tensor:
    return PostHocDebias(mode).predict_proba(seen, free)


def permuted(run: Run, seen: Tensor, free: Tensor) -> Tensor:
    """The prior of another question, in which yes and no have changed places for every second one."""
    order = torch.randperm(len(free), generator=run.generator("permuted"))
    other = free[order]
    return PostHocDebias().predict_proba(seen, torch.where(order[:, None] % 2 == 0, other, other.flip(1)))


RECIPE = Recipe(
    paper="debias",
    arms={
        "greedy": plain,
        "beam": beam,
        "vdd": partial(vdd, alpha=1.0),
        "vdd.half": partial(vdd, alpha=0.5),
        "shuffled": partial(vdd, alpha=1.0, shift=1),
        "prior": partial(closed, calibrate=lambda run, seen, free: seen),
        "post": partial(closed, calibrate=own),
        "post.fitted": partial(closed, calibrate=lambda run, seen, free: PostHocDebias().fit(free).predict_proba(seen)),
        "post.identity": partial(closed, calibrate=partial(own, mode="identity")),
        "post.permuted": partial(closed, calibrate=permuted),
    },
    claims=[
        Claim("vdd", beats="greedy", on="POPE accuracy"),
        Claim("vdd", beats="greedy", on="CHAIR_i", lower=True),
        Claim("vdd", beats="greedy", on="object recall", by=-2.0),
        Claim("post", beats="prior", on="closed accuracy"),
        Claim("post", beats="prior", on="yes too often", lower=True),
    ],
    controls=("shuffled", "beam", "post.permuted"),
    real="foveal eval llava-hf/llava-1.5-7b-hf --task pope --data pope --images val2014 --decode debias",
    example="""
from foveal import decode, zoo
from foveal.data.world import config, draw, layout

nano = zoo.load("nano-llava")  # or any LVLM of transformers, with its processor
picture = draw.draw(layout.scene(config.WorldConfig(), 0, 1), 96).image
inputs = nano.processor(text="USER: <image>\\nDescribe the picture. ASSISTANT:", images=picture, return_tensors="pt")
vdd = decode.DebiasLogitsProcessor(nano.model, inputs["input_ids"], inputs["attention_mask"], mode="none")
ids = nano.model.generate(**inputs, logits_processor=[vdd], max_new_tokens=40)
print(nano.processor.decode(ids[0], skip_special_tokens=True))
""",
)
