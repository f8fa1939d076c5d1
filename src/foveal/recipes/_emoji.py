"""Two linear projections that join frozen features of Twemoji and of their names: the smallest test on real pixels."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from foveal import zoo
from foveal.data import twemoji
from foveal.lab import Run
from foveal.pretrain.clip import CLIPObjective
from foveal.train import FitConfig, fit


@cache
def emoji_features(split: str, n: int) -> tuple[Tensor, Tensor]:
    """Frozen features of the pictures and of the names of the first emoji of ``n`` families."""
    families: dict[str, twemoji.Emoji] = {}
    for emoji in twemoji.emojis():
        if twemoji.split(emoji) == split:
            families.setdefault(emoji.base, emoji)
    kept = list(families.values())[:n]
    pictures = zoo.load("efficientnet-lite0").features(np.stack([twemoji.picture(emoji) for emoji in kept]))
    return pictures, zoo.load("minilm").encode([emoji.name for emoji in kept])


def name_retrieval(run: Run, steps: int, contrastive: bool) -> dict[str, float]:
    """How often, in percent, a picture of a held-out family finds its own name among those of all held-out families.

    Trained with CLIP's loss, or with the cosine to the own name alone.
    """
    pictures, names = emoji_features("train", run.size(2000))
    model = run.build(lambda: nn.ModuleList([nn.Linear(1280, 256), nn.Linear(384, 256), CLIPObjective()]))
    run.cost(model)

    def loss(model: nn.ModuleList, batch: tuple[Tensor, Tensor]) -> Tensor:
        image, text = model[0](batch[0]), model[1](batch[1])
        return model[2](image, text).loss if contrastive else 1 - F.cosine_similarity(image, text).mean()

    config = FitConfig(batch_size=256, after_step=lambda model: model[2].logit_scale.clamp_())
    fit(model, TensorDataset(pictures, names), steps=run.steps(steps), loss=loss, config=config, on=run)
    pictures, names = emoji_features("held_out", run.size(2000))
    with torch.no_grad():
        scores = F.normalize(model[0](pictures)) @ F.normalize(model[1](names)).T
    return {"r@1": 100 * (scores.argmax(1) == torch.arange(len(scores))).float().mean().item()}
