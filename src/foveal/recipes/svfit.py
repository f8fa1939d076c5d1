"""SVFit: are the singular values of query and value matrices enough to learn what LoRA learns with 16 times as many?

A tiny ViT (width 96, 4 layers, 32 px, 16 patches) is trained on shapes and colours, then fine-tuned to tell textures
apart on pictures of another look, with 400 labels, for as many steps in every arm. Each arm takes the best of three
learning rates by pictures for validation. The new head is trained in all arms and not counted in ``trained``.

*head*: nothing else; *svfit*: all 96 singular values of every query and value matrix; *svfit.energy*: those that hold
99 % of the energy; *lora.8* and *lora.1*: LoRA by peft on the same matrices, with 16 and 2 times the numbers of
*svfit*; *full*: everything. Control, *random*: as many numbers as *svfit*, in random directions instead of the weights'
own. ``moved at step 0``: largest change of an output before training. Guard: *full* must beat *head* by 5 points, or
the task says nothing.
"""

from functools import partial

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from foveal.adapt.svfit import apply_svfit, svfit_layers
from foveal.lab import Claim, Recipe, Run
from foveal.recipes._fine_tuning import QUERY_VALUE, WIDTH, Classifier, Prepare, fine_tuned


def head(model: Classifier) -> None:
    model.vision.requires_grad_(False)


def svfit(model: Classifier, rank: int | None = WIDTH) -> None:
    apply_svfit(model, QUERY_VALUE, rank=rank, modules_to_train=["head"])


def random(model: Classifier) -> None:
    """Σᵢ aᵢ uᵢ vᵢᵀ is added to the weight, a = 0 at first, with random orthonormal u and v."""
    svfit(model)
    with torch.no_grad():
        for layer in svfit_layers(model).values():
            layer.residual.copy_(layer.merged_weight())
            layer.sigma.zero_()
            for factor in (layer.u, layer.vh):
                nn.init.orthogonal_(factor)


def lora(model: Classifier, r: int) -> None:
    names = [name for name in QUERY_VALUE if any(n.endswith(f".{name}") for n, _ in model.named_modules())]
    inject_adapter_in_model(LoraConfig(r=r, lora_alpha=16, target_modules=names), model)
    model.head.requires_grad_(True)


def arm(run: Run, prepare: Prepare, rate: float) -> dict[str, float]:
    return fine_tuned(run, prepare, [rate / 3, rate, 3 * rate])


RECIPE = Recipe(
    paper="svfit",
    arms={
        "head": partial(arm, prepare=head, rate=3e-2),
        "random": partial(arm, prepare=random, rate=9e-2),
        "svfit": partial(arm, prepare=svfit, rate=9e-2),
        "svfit.energy": partial(arm, prepare=partial(svfit, rank=None), rate=9e-2),
        "lora.8": partial(arm, prepare=partial(lora, r=8), rate=9e-3),
        "lora.1": partial(arm, prepare=partial(lora, r=1), rate=9e-3),
        "full": partial(arm, prepare=lambda model: None, rate=1e-3),
    },
    claims=[
        Claim("svfit", beats="lora.8", on="accuracy", by=-1.0, published="better with 16 times fewer numbers"),
        Claim("svfit", beats="lora.8", on="trained", lower=True, published="16 times fewer"),
        Claim("svfit", beats="lora.1", on="accuracy"),
        Claim("svfit", beats="random", on="accuracy"),
        Claim("full", beats="head", on="accuracy", by=5.0),
    ],
    controls=("head", "random"),
    real="foveal adapt svfit --model openai/clip-vit-base-patch16 --data photos/ -o adapted",
    example="""
from foveal import zoo
from foveal.adapt.svfit import apply_svfit, merge_svfit, svfit_state_dict

model = zoo.load("nano-clip").model  # or any model of transformers, or a UNet with to_q and to_v
names = apply_svfit(model.vision_model, ["q_proj", "v_proj"])
print(len(names), "layers,", sum(value.numel() for value in svfit_state_dict(model).values()), "numbers to train")
plain = merge_svfit(model)  # a CLIPModel as before, for save_pretrained
""",
)
