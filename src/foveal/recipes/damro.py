"""DAMRO: do the patches that the class token attends to most, shown alone, tell what a model would make up?

Host: nano-llava as shipped, on held-out scenes with more and smaller things than those that it knows, where it makes
things up. POPE's questions (objects that are there, and absent ones of three kinds) and long captions (CHAIR: share of
named objects that are not there; recall: share of those there that are named). All arms are greedy: *damro2* and
*damro4* contrast with the two or four outlier patches of the paper's rule, *random* with four patches chosen by chance,
*norm* with the four features of largest norm, *vdd* with no picture at all (`debias`); α = 1 and β = 0.1 in each.
*beam* spends the second pass on a second beam.

The premise, measured in *damro4*: ``outliers on background``, the share of the four patches with no thing on them,
beside ``background``, that share of all patches; ``attention on outliers``, how much of the class token's attention to
patches the four get (even attention would give them 2.8 %). It does not hold in so small a tower: its outliers lie on
things, not beside them. Whatever is contrasted with, less is invented and more is found than by the host alone.
"""

from functools import partial
from typing import Any

import torch

from foveal.decode.base import ContrastBranch, ContrastProcessor, image_features
from foveal.decode.damro import DamroLogitsProcessor, damro_logits
from foveal.decode.debias import DebiasLogitsProcessor
from foveal.lab import Claim, Recipe, Run
from foveal.recipes._lvlm_decoding import beam, by, greedy
from foveal.recipes._lvlm_outliers import premise, with_patches
from foveal.zoo.nano import Nano

ALPHA = 1.0
PATCHES = 4


def damro(run: Run, k: int) -> dict[str, float]:
    names = ("input_ids", "pixel_values", "attention_mask")

    def make(nano: Nano, inputs: Any) -> ContrastProcessor:
        return DamroLogitsProcessor(nano.model, **{name: inputs[name] for name in names}, top_k=k, alpha=ALPHA)

    return by(run, make) | (premise(run, k) if k == PATCHES else {})


def vdd(run: Run) -> dict[str, float]:
    def make(nano: Nano, inputs: Any) -> ContrastProcessor:
        return DebiasLogitsProcessor(nano.model, inputs["input_ids"], inputs["attention_mask"], "none", ALPHA)

    return by(run, make)


def few(run: Run, norm: bool) -> dict[str, float]:
    """A branch with patches that no class token chose."""
    generator = run.generator("patches")

    @torch.no_grad()
    def make(nano: Nano, inputs: Any) -> ContrastProcessor:
        features = torch.stack(image_features(nano.model, pixel_values=inputs["pixel_values"]))
        score = features.norm(dim=-1) if norm else torch.rand(features.shape[:2], generator=generator)
        chosen = score.topk(PATCHES, dim=1).indices
        branch = ContrastBranch(nano.model, with_patches(nano, inputs, features, chosen))
        return ContrastProcessor([branch], partial(damro_logits, alpha=ALPHA))

    return by(run, make)


RECIPE = Recipe(
    paper="damro",
    arms={
        "greedy": greedy,
        "beam": beam,
        "damro2": partial(damro, k=2),
        "damro4": partial(damro, k=PATCHES),
        "vdd": vdd,
        "norm": partial(few, norm=True),
        "random": partial(few, norm=False),
    },
    claims=[
        Claim("damro4", beats="greedy", on="POPE accuracy"),
        Claim("damro4", beats="greedy", on="CHAIR_i", lower=True),
        Claim("damro4", beats="random", on="POPE accuracy"),
        Claim("damro4", beats="random", on="CHAIR_i", lower=True),
        Claim("damro4", beats="vdd", on="CHAIR_i", lower=True),
    ],
    controls=("random", "norm", "beam"),
    real="foveal eval llava-hf/llava-1.5-7b-hf --task pope --data pope --images val2014 --decode damro",
    example="""
from foveal import decode, zoo
from foveal.data.world import config, draw, layout

nano = zoo.load("nano-llava")  # or any LLaVA, LLaVA-NeXT or InternVL of transformers, with its processor
picture = draw.draw(layout.scene(config.WorldConfig(), 0, 1), 96).image
inputs = nano.processor(text="USER: <image>\\nDescribe the picture. ASSISTANT:", images=picture, return_tensors="pt")
damro = decode.DamroLogitsProcessor(nano.model, **inputs, top_k=4)
ids = nano.model.generate(**inputs, logits_processor=[damro], max_new_tokens=40)
print(nano.processor.decode(ids[0], skip_special_tokens=True))
""",
)
