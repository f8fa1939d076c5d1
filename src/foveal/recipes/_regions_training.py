"""A start, and pre-training on captions and regions by tasks in turn.

BERT's initial weights of 0.02 suit a width of 768. At a width of 96 they leave attention without effect and the losses
flat for hundreds of steps, so all maps start with a gain of one here; Muon shortens the flat stretch further.
"""

from collections.abc import Sequence
from itertools import cycle

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from foveal.lab import Run
from foveal.pretrain.uniter import (
    UNITERConfig,
    UNITERForPretraining,
    UNITERObjective,
    mask_regions,
    mask_tokens,
    replace_images,
    sample_region_mask,
)
from foveal.recipes import _regions_words as words
from foveal.recipes._regions import Regions
from foveal.train import FitConfig, fit

MASKED_WORDS = 0.3  # with the paper's 0.15, six words would often have none, and the first would be hidden instead


def started(sizes: UNITERConfig) -> UNITERForPretraining:
    """A model whose linear maps neither shrink nor grow what they are given."""
    model = UNITERForPretraining(sizes)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=module.in_features**-0.5)
    return model


def pretrain(
    run: Run,
    model: UNITERForPretraining,
    data: Regions,
    tasks: Sequence[str],
    steps: int,
    joint: bool,
    wra_weight: float,
    shuffled: bool,
) -> None:
    """``joint``: words and regions are hidden in the same pass. ``shuffled``: captions of other scenes."""
    ids = words.encode([words.caption(things) for things in data.things])
    ids = ids[torch.randperm(len(ids), generator=run.generator("shuffle"))] if shuffled else ids
    turn, rng = cycle(tasks), run.generator("tasks")

    def loss(objective: UNITERObjective, parts: Sequence[Tensor]) -> Tensor:
        task, batch = next(turn), data.batch(*parts)
        if task == "itm":
            return objective(task, replace_images(batch, generator=rng)).loss
        batch = masked(batch, rng)
        if joint or task == "mlm":
            batch["input_ids"] = batch["hidden_ids"]
        if joint and task == "mlm":
            batch["region_features"] = mask_regions(batch["region_features"], batch["masked_regions"])
        return objective(task, batch).loss

    objective = UNITERObjective(model, wra_weight=wra_weight)
    pairs = TensorDataset(ids, torch.arange(len(ids)))
    fit(objective, pairs, steps=run.steps(steps), loss=loss, config=FitConfig(lr=6e-3, optimizer="muon"), on=run)


def masked(batch: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
    """The batch with masks of both sides drawn; which of them apply is the task's matter."""
    ids, seen = batch["input_ids"], batch["region_mask"]
    hidden, labels = mask_tokens(
        ids,
        (ids > 1) & (ids < words.CLS - 1),
        words.MASK,
        uniform=torch.rand(ids.shape, generator=rng),
        random_ids=torch.randint(2, words.CLS - 1, ids.shape, generator=rng),
        mask_prob=MASKED_WORDS,
    )
    regions = sample_region_mask(seen, uniform=torch.rand(seen.shape, generator=rng))
    return {**batch, "hidden_ids": hidden, "labels": labels, "masked_regions": regions}
