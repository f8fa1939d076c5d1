"""What every pretraining objective promises. A new one adds one `Case` to `CASES`; `test_contract.py` runs them all."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveal.pretrain.align import ALIGNObjective
from foveal.pretrain.clip import CLIPObjective, chunked_clip_loss
from foveal.pretrain.prefix_conditioning import PrefixConditioningObjective

from . import (
    cloc_inputs,
    dito_inputs,
    dreamlip_inputs,
    filip_inputs,
    grain_inputs,
    m3i_inputs,
    nevlp_inputs,
    uniter_inputs,
)

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One objective under test: a module whose output has a ``loss``."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]
    """(batch, seed) -> what forward takes; row i of every tensor belongs to sample i."""
    chunked: Callable[..., Tensor] | None = None
    """(objective, inputs, size=rows of a chunk) -> the same loss in bounded memory."""
    hide: Callable[[Inputs], Inputs] | None = None
    """The same inputs with other content wherever a mask hides it."""
    bad: tuple[Callable[[], Inputs], ...] = ()
    """Inputs that forward must refuse with a ValueError."""
    symmetric: bool = True
    """Does the order of the samples in the batch leave the loss as it is?"""
    networks: bool = False
    """Does forward run networks, not only a loss of features? Then autocast may round what reaches the loss."""


def pairs(batch: int, seed: int) -> Inputs:
    """Image and text features that agree more within a pair than across pairs."""
    rng = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 8, generator=rng)
    return image, image + torch.randn(batch, 8, generator=rng)


BAD_PAIRS = (
    lambda: (torch.ones(3, 8), torch.ones(4, 8)),
    lambda: (torch.ones(3, 8), torch.ones(3, 7)),
    lambda: (torch.ones(0, 8), torch.ones(0, 8)),
    lambda: (torch.ones(8), torch.ones(8)),
    lambda: (torch.ones(2, 3, 8), torch.ones(2, 3, 8)),
)


def _chunked_clip(objective: nn.Module, inputs: Inputs, size: int) -> Tensor:
    return chunked_clip_loss(*inputs, objective.logit_scale(), size)


def _align() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ALIGNObjective(8, 8, temperature_init=0.2)


def feature_maps(batch: int, seed: int) -> Inputs:
    """As `pairs`, each image as a map of 2 x 3 places."""
    image, text = pairs(batch, seed)
    rng = torch.Generator().manual_seed(seed + 1)
    return image[..., None, None] + torch.randn(batch, 8, 2, 3, generator=rng), text


def labelled(batch: int, seed: int) -> Inputs:
    """As `pairs`, a third of them captions, the others of two classes."""
    return *pairs(batch, seed), torch.arange(batch) % 3 - 1


CASES = [
    Case("clip", CLIPObjective, pairs, _chunked_clip, bad=BAD_PAIRS),
    Case("align", _align, feature_maps, bad=(*BAD_PAIRS, lambda: (torch.ones(3, 8, 0, 2), torch.ones(3, 8)))),
    Case("prefix_conditioning", PrefixConditioningObjective, labelled, bad=BAD_PAIRS),
    Case("filip", filip_inputs.objective, filip_inputs.tokens, hide=filip_inputs.hide, bad=filip_inputs.BAD),
    Case("dreamlip", dreamlip_inputs.objective, dreamlip_inputs.features, bad=dreamlip_inputs.BAD),
    Case("cloc", cloc_inputs.objective, cloc_inputs.batch, hide=cloc_inputs.hide, bad=cloc_inputs.BAD, networks=True),
    Case("cloc_prompt", cloc_inputs.at_the_prompt, cloc_inputs.batch, bad=cloc_inputs.BAD, networks=True),
    Case("dreamlip_batch", dreamlip_inputs.batch_negatives, dreamlip_inputs.features, bad=dreamlip_inputs.BAD),
    Case("m3i", m3i_inputs.Objective, m3i_inputs.inputs, None, m3i_inputs.hide, m3i_inputs.BAD, False, networks=True),
    Case(
        "nevlp",
        nevlp_inputs.Objective,
        nevlp_inputs.inputs,
        None,
        nevlp_inputs.hide,
        nevlp_inputs.BAD,
        False,
        networks=True,
    ),
    Case(
        "uniter",
        uniter_inputs.AllTasks,
        uniter_inputs.inputs,
        None,
        uniter_inputs.hide,
        uniter_inputs.BAD,
        networks=True,
    ),
    Case("grain", grain_inputs.objective, grain_inputs.features, hide=grain_inputs.hide, bad=grain_inputs.BAD),
    Case("dito", dito_inputs.RegionContrast, dito_inputs.regions, hide=dito_inputs.hide, bad=dito_inputs.BAD),
]
