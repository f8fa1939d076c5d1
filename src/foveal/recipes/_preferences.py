"""nano-llava tuned on preferences.

The vision tower and the projector stay as they are, so that pictures are encoded once for all arms of a seed.
"""

import copy
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from foveal.align.base import PreferenceObjective
from foveal.align.batches import Pair, PairCollator
from foveal.lab import Run
from foveal.recipes._lvlm import host
from foveal.train import FitConfig, fit
from foveal.zoo.nano import Nano

Batches = Sequence[dict[str, Tensor]]
ROWS = 10
LR = 2e-4


class Seen(nn.Module):
    """The host for batches whose ``pixel_values`` are pictures encoded already, `encoded`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.requires_grad_(True)
        for frozen in (model.model.vision_tower, model.model.multi_modal_projector):
            frozen.requires_grad_(False)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **labels: Tensor) -> Any:
        embeds = self.model.get_input_embeddings()(input_ids)
        image = (input_ids == self.model.config.image_token_index)[..., None]
        embeds = embeds.masked_scatter(image, pixel_values.to(embeds))
        return self.model(inputs_embeds=embeds, attention_mask=attention_mask, **labels)


@torch.no_grad()
def encoded(nano: Nano, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with features of its pictures in the place of pixels."""
    features = {
        name: torch.stack(list(nano.model.get_image_features(value).pooler_output))
        for name, value in batch.items()
        if name.startswith("pixel_values")
    }
    return {**batch, **features}


def pair_batches(run: Run, pairs: Sequence[Pair], noise_step: int | None = None) -> Batches:
    """The pairs in their order, `ROWS` a batch."""
    nano = run.shared(host)
    collate = PairCollator(nano.processor, noise_step=noise_step, seed=run.seed)
    return [encoded(nano, collate(pairs[start : start + ROWS])) for start in range(0, len(pairs), ROWS)]


def chosen_alone(batches: Batches) -> Batches:
    """For plain fine-tuning on the preferred answers."""
    parts = ("input_ids", "attention_mask", "labels")
    names = {"pixel_values": "pixel_values", **{f"chosen_{part}": part for part in parts}}
    return [{new: batch[old] for old, new in names.items()} for batch in batches]


def prefer(run: Run, objective: PreferenceObjective, batches: Batches, lr: float = LR) -> None:
    """One pass; the policy is trained in place."""

    def loss(model: Any, batch: Any) -> dict[str, Tensor]:
        output = model(batch)
        return {"loss": output.loss, "pairs in order": output.accuracy}

    _passed(run, objective, batches, loss, lr)


def imitate(run: Run, policy: Seen, batches: Batches, lr: float = LR) -> None:
    """One pass of plain fine-tuning."""
    _passed(run, policy, batches, lambda model, batch: model(**batch).loss, lr)


def _passed(run: Run, model: nn.Module, batches: Sequence[Any], loss: Callable[[Any, Any], Any], lr: float) -> None:
    config = FitConfig(lr=lr, batch_size=1, weight_decay=0.0, collate=itemgetter(0))
    fit(model, batches, steps=len(batches), loss=loss, config=config, on=run)


def copied(seen: Seen) -> Seen:
    return Seen(copy.deepcopy(seen.model))


def fresh(run: Run) -> Seen:
    """The host, to be trained."""
    return Seen(copy.deepcopy(run.shared(host).model))
