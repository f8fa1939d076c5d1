"""nano-llava with VladVA's adapter: its visual tokens made once, its training, its perplexity."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from foveal import zoo
from foveal.adapt.vladva import Visual, VladvaModel
from foveal.adapt.vladva_encoder import VladvaEncoder
from foveal.lab import Run
from foveal.recipes._vladva_scenes import told
from foveal.train import FitConfig, fit
from foveal.zoo.nano import Nano

STEPS, BATCH = 100, 24
PROMPTS: dict[str, Any] = {"image_prompt": "Describe the picture briefly.", "text_prompt": "Describe the text briefly."}


def nano(run: Run, name: str) -> Nano:
    """For `Run.shared`."""
    return zoo.load(name)


@torch.no_grad()
def seen(run: Run, test: bool) -> Float[Tensor, "n m d"]:
    """nano-llava's visual tokens, each the mean of 3 × 3: a ninth of the tokens in every arm."""
    host = run.shared(nano, "nano-llava")
    pixels = host.processor.image_processor(images=list(run.shared(told, test).images), return_tensors="pt")
    rows = [torch.stack(list(host.model.model.get_image_features(part, return_dict=True).pooler_output))
            for part in pixels["pixel_values"].split(32)]  # fmt: skip
    tokens = torch.cat(rows)
    side = round(tokens.shape[1] ** 0.5)
    maps = tokens.mT.unflatten(2, (side, side))
    return F.avg_pool2d(maps, 3).flatten(2).mT.contiguous()


def visual(tokens: Float[Tensor, "b m d"]) -> Visual:
    return Visual(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))


def encoder(run: Run, learns: tuple[str, ...]) -> VladvaEncoder:
    """nano-llava adapted; parameters whose name holds none of ``learns`` stay as they start."""
    host = run.shared(nano, "nano-llava")
    made = VladvaEncoder(
        copy.deepcopy(host.model), host.processor, rank=8, alpha=16, generator=run.generator("lora"), **PROMPTS
    )
    for name, parameter in made.model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and any(part in name for part in learns))
    return made


def train(run: Run, made: VladvaEncoder, steps: int, generative: bool, shuffled: bool, lr: float) -> None:
    tokens, data = run.shared(seen, False), run.shared(told, False)
    partner = torch.randperm(len(tokens), generator=run.generator("shuffle")) if shuffled else torch.arange(len(tokens))

    def batch(rows: list[int]) -> dict[str, Tensor]:
        said = [int(partner[row]) for row in rows]
        short = made.captions([data.short[i] for i in said])
        long = made.answers([data.long[i] for i in said]) if generative else ()
        names = ("short_ids", "short_mask", "long_ids", "long_mask")
        return {"tokens": tokens[rows], **dict(zip(names, (*short, *long), strict=False))}

    def loss(model: VladvaModel, batch: dict[str, Tensor]) -> Tensor:
        return model.forward_visual(visual(batch.pop("tokens")), **batch).loss

    config = FitConfig(
        lr=lr, batch_size=BATCH, weight_decay=0.0, warmup=0.1, collate=batch, after_step=VladvaModel.clamp_
    )
    fit(made.model, list(range(len(tokens))), steps=run.steps(steps), loss=loss, config=config, on=run)


@torch.no_grad()
def pictures(made: VladvaEncoder, tokens: Float[Tensor, "n m d"]) -> Float[Tensor, "n e"]:
    return torch.cat([made.model.embed_visual(visual(part)) for part in tokens.split(50)])


@torch.no_grad()
def perplexity(run: Run, made: VladvaEncoder, n: int = 48) -> float:
    """Of the long captions of the first ``n`` test pictures, after the prompt of the embedding."""
    tokens, data = run.shared(seen, True)[:n], run.shared(told, True)
    short, long = made.captions(data.short[:n]), made.answers(data.long[:n])
    return made.model.forward_visual(visual(tokens), *short, *long).autoregressive.exp().item()
