"""What the methods that adapt a model promise. A new one adds a case below; `test_contract.py` runs them all.

Estimators (`ESTIMATORS`) are used as scikit-learn's are. Adapters (`ADAPTERS`) are attached to a model, trained, saved,
merged.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from evaluate.tiny import save_clip
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from foveal.adapt.adaptclipzs import BagFineTuner
from foveal.adapt.nmtune import NMTuneClassifier
from foveal.adapt.svfit import apply_svfit, load_svfit_state_dict, merge_svfit, svfit_state_dict
from foveal.zoo import nano


@dataclass(frozen=True)
class Estimator:
    """One estimator under test, with data on which it is quick and can be right."""

    name: str
    build: Callable[[], Any]
    fit_on: Callable[[int], dict[str, Any]]
    """seed -> arguments of fit, by name; always the same data."""
    asked: Callable[[], dict[str, Any]]
    """Arguments of predict and predict_proba; the first of them holds one picture in each row."""
    truth: Callable[[], Any]
    """The right answers to what is asked."""
    bad_settings: Mapping[str, Any] = field(default_factory=dict)
    """Parameter -> a value that fit must refuse."""
    bad_data: tuple[tuple[str, Any], ...] = ()
    """Arguments of fit with a value that it must refuse."""
    seed: str | None = None
    """Parameter that holds the seed; None: it is among the arguments of fit."""

    def fitted(self, seed: int = 0, estimator: Any = None) -> Any:
        estimator = self.build() if estimator is None else estimator
        if self.seed is not None:
            estimator.set_params(**{self.seed: seed})
        return estimator.fit(**self.fit_on(seed))


@dataclass(frozen=True)
class Adapter:
    """One adapter under test, on a tiny random model of a real class."""

    name: str
    build: Callable[[], nn.Module]
    """The plain model, always with the same weights."""
    attach: Callable[[nn.Module], nn.Module]
    """The adapted model, in place or around the given one."""
    run: Callable[[nn.Module], Tensor]
    """What the plain, the adapted or the merged model computes for some input."""
    trains: Callable[[str], bool]
    """Name of a parameter of the adapted model -> is it to be trained?"""
    merge: Callable[[nn.Module], nn.Module]
    """Adapted -> plain model."""
    state: Callable[[nn.Module], dict[str, Tensor]]
    """All there is to save."""
    load: Callable[[nn.Module, dict[str, Tensor]], Any]
    """Into a model to which a new adapter was attached."""
    bad: tuple[tuple[Callable[[nn.Module], Any], str], ...] = ()
    """Ways to attach it that are refused with a ValueError, and what the message names."""
    rate: float = 0.1
    """Learning rate at which a few steps of plain gradient descent show."""


# Estimators -----------------------------------------------------------------------------------------------------------


@cache
def tiny_clip() -> nano.Nano:
    with TemporaryDirectory() as folder:
        return nano.load("nano-clip", save_clip(Path(folder)))


COLOURS = {2: (220, 30, 30), 5: (30, 30, 220), 7: (30, 200, 30)}
BAGS = {2: ["a red one", "red all over"], 5: ["a blue one"], 7: ["a green one", "grass", "leaf"]}
IDS = [2, 5, 7] * 4


def pictures() -> list[np.ndarray]:
    """Three plain colours with some noise."""
    noise = np.random.default_rng(0).integers(-25, 25, (len(IDS), 32, 32, 3))
    return [(np.array(COLOURS[c]) + noise[i]).clip(0, 255).astype(np.uint8) for i, c in enumerate(IDS)]


def _bags(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {"images": pictures(), "class_ids": torch.tensor(IDS), "captions": BAGS, "generator": generator}


FEATURES = np.repeat(4 * np.eye(3, 6, dtype=np.float32), 10, 0) + np.random.default_rng(0).normal(
    0, 0.5, (30, 6)
).astype(np.float32)
CLASSES = np.repeat([0, 1, 2], 10)

ESTIMATORS = [
    Estimator(
        "adaptclipzs",
        lambda: BagFineTuner(tiny_clip(), epochs=20, batch_size=6, main_lr=3e-3, proj_lr=3e-3),
        fit_on=_bags,
        asked=lambda: {"images": pictures(), "captions": BAGS},
        truth=lambda: torch.tensor(IDS),
        bad_settings={
            "epochs": 0,
            "batch_size": 0,
            "main_lr": -1.0,
            "proj_wd": -0.5,
            "tau": 0.0,
            "model": nn.Linear(1, 1),
        },
        bad_data=(("class_ids", torch.tensor([2])), ("captions", {2: ["red"]}), ("captions", BAGS | {5: []})),
    ),
    Estimator(
        "nmtune",
        lambda: NMTuneClassifier(3, lr=1e-2, epochs=15),
        fit_on=lambda seed: {"features": FEATURES, "labels": CLASSES},
        asked=lambda: {"X": FEATURES},
        truth=lambda: CLASSES,
        bad_settings={"epochs": 0, "batch_size": 1, "lr": -1.0, "k": 9, "seed": -1},
        bad_data=(("labels", CLASSES + 1), ("features_second_view", FEATURES[:4])),
        seed="seed",
    ),
]


# Adapters -------------------------------------------------------------------------------------------------------------


def tiny_llama() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(vocab_size=24, num_key_value_heads=2, **sizes)).eval()


def logits(model: nn.Module) -> Tensor:
    return model(input_ids=torch.tensor([[3, 9, 14, 2]])).logits


ADAPTERS = [
    Adapter(
        "svfit",
        tiny_llama,
        attach=lambda model: (apply_svfit(model, rank=6), model)[1],
        run=logits,
        trains=lambda name: name.endswith(("q_proj.sigma", "v_proj.sigma")),
        merge=merge_svfit,
        state=svfit_state_dict,
        load=load_svfit_state_dict,
        bad=(
            (lambda model: apply_svfit(model, rank=0), "rank=0"),
            (lambda model: apply_svfit(model, ["nowhere"]), "target_modules"),
            (lambda model: apply_svfit(model, energy=1.5), "energy=1.5"),
        ),
        rate=10.0,
    ),
]
