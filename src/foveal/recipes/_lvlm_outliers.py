"""Whether an encoder has outlier patches, and prompts in which a few patches stand for the picture."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from matplotlib.figure import Figure
from torch import Tensor

from foveal.compress.fopru import encoder_attention
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.decode.damro import cls_attention, outlier_indices
from foveal.evaluate.tasks.worlds import held_out
from foveal.lab import Run, figures
from foveal.recipes._lvlm import host
from foveal.recipes._lvlm_worlds import HARD_WORLD
from foveal.zoo.nano import Nano

PICTURES, SHOWN = 64, 8


@torch.no_grad()
def premise(run: Run, k: int) -> dict[str, float]:
    """Percentages over 64 held-out hard scenes; draws the outliers of the first eight."""
    nano = run.shared(host)
    tower, layer = nano.model.model.vision_tower, nano.model.config.vision_feature_layer
    tower = getattr(tower, "vision_model", tower)
    drawn = [draw(lay_out(HARD_WORLD, held_out(run.seed, 50), i), HARD_WORLD.size) for i in range(PICTURES)]
    pixels = nano.processor.image_processor([one.image for one in drawn], return_tensors="pt").pixel_values
    block = tower.encoder.layers[layer]
    hidden = block.layer_norm1(tower(pixels, output_hidden_states=True).hidden_states[layer - 1])
    attention = block.self_attn
    outliers = outlier_indices(cls_attention(attention.q_proj(hidden), attention.k_proj(hidden)), k)
    paid = encoder_attention(attention, hidden, [0])[:, :, 0, 1:].mean(1)
    paid = paid / paid.sum(1, keepdim=True)
    side = round(paid.shape[1] ** 0.5)
    covered = np.stack([one.instance > 0 for one in drawn])
    empty = torch.from_numpy(~covered.reshape(PICTURES, side, covered.shape[1] // side, side, -1).any((2, 4)))
    empty = empty.flatten(1).float()
    run.figure("outliers.png", *_framed([one.image for one in drawn[:SHOWN]], outliers.tolist(), side))
    return {
        "outliers on background": 100 * empty.gather(1, outliers).mean().item(),
        "background": 100 * empty.mean().item(),
        "attention on outliers": 100 * paid.gather(1, outliers).sum(1).mean().item(),
    }


def _framed(images: list[np.ndarray], outliers: list[list[int]], side: int) -> tuple[Figure, str]:
    shown = []
    for image, patches in zip(images, outliers):
        image, size = image.copy(), len(image) // side
        for row, column in (divmod(patch, side) for patch in patches):
            y, x = row * size, column * size
            image[[y, y + size - 1], x : x + size] = image[y : y + size, [x, x + size - 1]] = (255, 0, 0)
        shown.append(image)
    return figures.picture_grid(
        shown, [""] * len(shown)
    ), "Framed in red: the patches that the class token attends to most."


def with_patches(nano: Nano, inputs: Any, features: Tensor, chosen: Int[Tensor, "b k"]) -> dict[str, Tensor]:
    """Prompts of one picture each, in which these patches stand for it."""
    ids, image = inputs["input_ids"], inputs["input_ids"] == nano.processor.image_token_id
    embeds = nano.model.get_input_embeddings()(ids)
    embeds[image] = features.flatten(0, 1)
    keep = ~image
    first = image.int().argmax(1, keepdim=True)
    keep.scatter_(1, first + chosen, True)
    rows = len(ids), -1
    return {
        "inputs_embeds": embeds[keep].view(*rows, embeds.shape[-1]),
        "attention_mask": inputs["attention_mask"][keep].view(rows),
    }
