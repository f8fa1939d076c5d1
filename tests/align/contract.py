"""What every preference objective promises. A new one adds `Case`s to `CASES`; `test_contract.py` runs them all."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from foveal.align.povid import POVIDObjective
from foveal.align.stic import STICObjective

LOG2 = math.log(2)


@dataclass(frozen=True)
class Case:
    """One objective under test."""

    name: str
    build: Callable[[nn.Module, nn.Module | None], nn.Module]
    """policy, reference -> objective with ``forward(batch) -> output`` of loss, per_example, rewards and accuracy."""
    noise: bool = False
    """Looks at ``pixel_values_noisy``."""
    likelihood: float = 0.0
    """Weight of −log π(chosen) in the loss, beside the preference term."""
    own_choice: bool = False
    """Part of what is scored is chosen by the model that scores, so policy and reference score different tokens."""


def _povid(**options):
    return lambda policy, reference: POVIDObjective(policy, reference, **options)


def _stic(**options):
    return lambda policy, reference: STICObjective(policy, reference, **options)


CASES = [
    Case("povid-stage1", _povid(stage=1)),
    Case("povid", _povid(), noise=True),
    Case("povid-split", _povid(combine="split", beta_text=0.02, beta_noise=0.08), noise=True),
    Case("povid-noisy", _povid(score_noise_on="noisy"), noise=True),
    Case("povid-own", _povid(noise_tokens="own", avoid_gold=True), noise=True, own_choice=True),
    Case("povid-noisy-own", _povid(noise_tokens="own", score_noise_on="noisy"), noise=True, own_choice=True),
    Case("stic", _stic(), likelihood=1 / 1024),
    Case("stic-plain", _stic(alpha=0.0, beta=0.3)),
    Case("stic-runner-up", _stic(rejected_mode="runner_up"), likelihood=1 / 1024, own_choice=True),
]
