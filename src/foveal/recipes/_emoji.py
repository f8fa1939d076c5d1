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
def emoji_features(split: str, most: int) -> tuple[Tensor, Tensor]:
    """Of at most ``most`` emoji of each family: frozen features of the pictures and of the names."""
    families: dict[str, list[twemoji.Emoji]] = {}
    for one in twemoji.emojis():
        if twemoji.split(one) == split:
            families.setdefault(one.base, []).append(one)
    kept = [one for family in families.values() for one in family[:most]]
    pictures = zoo.load("efficientnet-lite0").features(np.stack([twemoji.picture(one) for one in kept]))
    return pictures, zoo.load("minilm").encode([one.name for one in kept])


def name_retrieval(run: Run, steps: int, contrastive: bool) -> dict[str, float]:
    """How often, in percent, a picture of a held-out family finds its own name among those of all held-out families.

    Trained with CLIP's loss, or with the cosine to the own name alone.
    """
    pictures, names = emoji_features("train", 2)
    model = run.build(lambda: nn.ModuleList([nn.Linear(1280, 256), nn.Linear(384, 256), CLIPObjective()]))
    run.cost(model)

    def loss(model: nn.ModuleList, batch: tuple[Tensor, Tensor]) -> Tensor:
        image, text = model[0](batch[0]), model[1](batch[1])
        return model[2](image, text).loss if contrastive else 1 - F.cosine_similarity(image, text).mean()

    config = FitConfig(batch_size=256, after_step=lambda model: model[2].logit_scale.clamp_())
    fit(model, TensorDataset(pictures, names), steps=run.steps(steps), loss=loss, config=config, on=run)
    pictures, names = emoji_features("held_out", 1)
    with torch.no_grad():
        scores = F.normalize(model[0](pictures)) @ F.normalize(model[1](names)).T
    return {"r@1": 100 * (scores.argmax(1) == torch.arange(len(scores))).float().mean().item()}
