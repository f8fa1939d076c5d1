"""AGLA: does a second look at the part of the picture that the question is about make answers truer?

Host: nano-llava as shipped, on held-out scenes with more and smaller things than those that it knows, where it makes
things up. POPE's questions and long captions (CHAIR). The matcher is nano-clip: where its class token looks, by the
gradient of the cosine with the question; ``pointing`` is how often the top of its map of "a dog" lies in a dog. All but
three arms are greedy. *agla* is the paper's (α = 2, β = ½); *fixed* always keeps 80 % of the pixels; *shuffled* uses
the map of another question of the batch; *view* answers from the masked view alone; *beam* spends the second pass on a
second beam. Since α = 2 also sharpens, three arms sample at temperature 1: *plain.sampled*, *agla.sampled*, and
*sharp.sampled*, the host's own logits times three.

Departure from the paper: CLIP in the place of BLIP, which would be larger than the host.

What α = 2 gains over sampling, sharper logits gain as well; which question the view is for makes no difference here.
"""

from functools import partial
from typing import Any

from foveal.decode.agla import AglaLogitsProcessor
from foveal.decode.base import ContrastProcessor
from foveal.lab import Claim, Recipe, Run
from foveal.recipes._lvlm import host
from foveal.recipes._lvlm_decoding import beam, by, greedy, sampled
from foveal.recipes._lvlm_views import host_views, pointing
from foveal.recipes._lvlm_views_figure import figure
from foveal.zoo.nano import Nano


def processor(run: Run, nano: Nano, inputs: Any, shift: int = 0, ratio: float | None = None) -> ContrastProcessor:
    names = ("input_ids", "attention_mask")
    view = host_views(run, nano, inputs, shift, ratio)
    return AglaLogitsProcessor(nano.model, **{name: inputs[name] for name in names}, pixel_values=view)


def alone(run: Run, nano: Nano, inputs: Any) -> ContrastProcessor:
    both = processor(run, nano, inputs)
    return ContrastProcessor(both.branches, lambda scores, view: view)


def agla(run: Run) -> dict[str, float]:
    run.figure("views.png", *figure(run))
    return by(run, partial(processor, run)) | pointing(run)


def arm(run: Run, shift: int = 0, ratio: float | None = None) -> dict[str, float]:
    return by(run, partial(processor, run, shift=shift, ratio=ratio))


def view(run: Run) -> dict[str, float]:
    return by(run, partial(alone, run))


def drawn(run: Run, looks: bool, temperature: float) -> dict[str, float]:
    nano = run.shared(host)
    return sampled(run, temperature, lambda inputs: [processor(run, nano, inputs)] if looks else [])


RECIPE = Recipe(
    paper="agla",
    arms={
        "greedy": greedy,
        "beam": beam,
        "agla": agla,
        "fixed": partial(arm, ratio=0.8),
        "view": view,
        "shuffled": partial(arm, shift=1),
        "plain.sampled": partial(drawn, looks=False, temperature=1.0),
        "agla.sampled": partial(drawn, looks=True, temperature=1.0),
        "sharp.sampled": partial(drawn, looks=False, temperature=1 / 3),
    },
    claims=[
        Claim("agla", beats="greedy", on="POPE accuracy"),
        Claim("agla", beats="greedy", on="CHAIR_i", lower=True),
        Claim("agla", beats="shuffled", on="POPE accuracy"),
        Claim("agla.sampled", beats="plain.sampled", on="sampled POPE accuracy"),
        Claim("agla.sampled", beats="sharp.sampled", on="sampled POPE accuracy"),
    ],
    controls=("shuffled", "beam", "sharp.sampled"),
    real="foveal eval llava-hf/llava-1.5-7b-hf --task pope --data pope --images val2014 --decode agla "
    "--matcher Salesforce/blip-itm-large-coco",
    example="""
import torch
from foveal import decode, zoo
from foveal.data.world import config, draw, layout

nano, clip = zoo.load("nano-llava"), zoo.load("nano-clip")  # or any LVLM and BLIP, see decode.BlipMatcher
clip.model.set_attn_implementation("eager")
picture, question = draw.draw(layout.scene(config.WorldConfig(), 0, 1), 96).image, "Is there a dog?"
read = clip.processor(text=[question], images=[picture], return_tensors="pt")
cam, cosine = decode.ClipMatcher(clip.model)(read["pixel_values"], read["input_ids"], read["attention_mask"])
view, _ = decode.augmented_view(torch.from_numpy(picture).permute(2, 0, 1) / 255, cam[0], float(cosine[0]))
inputs = nano.processor(text=f"USER: <image>\\n{question} ASSISTANT:", images=picture, return_tensors="pt")
seen = nano.processor.image_processor((255 * view).byte(), return_tensors="pt")["pixel_values"]
agla = decode.AglaLogitsProcessor(nano.model, **{**inputs, "pixel_values": seen})
print(nano.processor.decode(nano.model.generate(**inputs, logits_processor=[agla], max_new_tokens=3)[0]))
""",
)
