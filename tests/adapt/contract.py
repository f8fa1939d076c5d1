"""What the methods that adapt a model promise. A new one adds a case below; `test_contract.py` runs them all.

Estimators (`ESTIMATORS`) are used as scikit-learn's are. Adapters (`ADAPTERS`) are attached to a model, trained, saved,
merged.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from decode import tiny
from evaluate.tiny import save_clip
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from foveal.adapt.adaptclipzs import BagFineTuner
from foveal.adapt.base_coop import CoOpLearner
from foveal.adapt.baselines import ONE_TEMPLATE, CLIPAdapter, LinearProbe, TipAdapter, TipAdapterF, ZeroShot
from foveal.adapt.baselines_templates import IMAGENET_TEMPLATES
from foveal.adapt.nmtune import NMTuneClassifier
from foveal.adapt.svfit import apply_svfit, load_svfit_state_dict, merge_svfit, svfit_state_dict
from foveal.adapt.svfit_peft import SVFitConfig
from foveal.adapt.vladva import VladvaModel
from foveal.adapt.vladva_lora import add_lora, merge_lora
from foveal.nn.cosine import unit_rows
from foveal.nn.zero_shot import build_zero_shot_classifier
from foveal.zoo import nano

from . import vladva_pair


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
    draws: bool = True
    """False: nothing in it is random, no seed makes a difference."""
    needs_fit: bool = True
    """False: it answers without."""

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
    loss: Callable[[nn.Module], Tensor] | None = None
    """What the adapted model is trained with; None: the mean square of what it computes."""
    strict: bool = True
    """Refuses a state with names missing or unknown; peft reports them instead."""


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


NAMES = ("red", "blue", "green")


def rows() -> tuple[Tensor, Tensor]:
    """Features around three centres, and which."""
    labels, noise = torch.arange(30) % 3, torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    return centres()[labels] + 0.5 * noise, labels


def centres() -> Tensor:
    return 5 * torch.eye(3, 8)


def few_labels(
    name: str, build: Callable[[], Any], bad: Mapping[str, Any], draws: bool = True, needs_fit: bool = True
) -> Estimator:
    """A `FeatureClassifier`, with a seed if it ``draws``."""
    return Estimator(
        name,
        build,
        fit_on=lambda seed: dict(zip("Xy", rows())),
        asked=lambda: {"X": rows()[0]},
        truth=lambda: rows()[1],
        bad_settings=bad,
        bad_data=(
            ("y", torch.full((30,), 3)),
            ("y", torch.zeros(29, dtype=torch.int64)),
            ("X", torch.full((30, 8), nan)),
        ),
        seed="seed" if draws else None,
        draws=draws,
        needs_fit=needs_fit,
    )


def named(templates: tuple[str, ...]) -> Tensor:
    """Class features by a text tower that finds the class in a prompt, and is a little moved by the rest of it."""

    def encode(texts: list[str]) -> Tensor:
        found = torch.stack([centres()[[name in text for name in NAMES].index(True)] for text in texts])
        return found + torch.tensor([[len(text) % 7 / 7] for text in texts])

    return build_zero_shot_classifier(encode, NAMES, templates)


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
        lambda: NMTuneClassifier(3, epochs=20, lr=1e-2, batch_size=16),
        fit_on=lambda seed: {"features": rows()[0].numpy(), "labels": rows()[1].numpy()},
        asked=lambda: {"X": rows()[0].numpy()},
        truth=lambda: rows()[1].numpy(),
        bad_settings={
            "num_classes": 1,
            "method": "magic",
            "epochs": 0,
            "lr": 0.0,
            "batch_size": 1,
            "k": 9,
            "ratio": 0,
            "seed": -1,
        },
        bad_data=(("labels", np.full(30, 3)), ("features_second_view", np.ones((29, 8)))),
        seed="seed",
    ),
    few_labels(
        "coop",
        lambda: CoOpLearner(tiny_clip(), NAMES, epochs=40, n_ctx=4),
        {
            "epochs": 0,
            "lr": 0.0,
            "batch_size": 0,
            "n_ctx": 0,
            "aggregation": "AX",
            "class_names": ("red", "red", "red"),
        },
    ),
    few_labels(
        "clip-adapter",
        lambda: CLIPAdapter(unit_rows(centres()), epochs=20, batch_size=8),
        {"epochs": 0, "lr": -1.0, "reduction": 0, "ratio": 2.0},
    ),
    few_labels(
        "tip-adapter-f",
        lambda: TipAdapterF(unit_rows(centres()), batch_size=8, scale=2.0),
        {"epochs": 0, "batch_size": 0, "alpha": -1.0, "beta": 0.0},
    ),
    few_labels(
        "tip-adapter",
        lambda: TipAdapter(unit_rows(centres()), scale=2.0),
        {"alpha": -1.0, "beta": 0.0},
        draws=False,
    ),
    few_labels("linear-probe", lambda: LinearProbe(3), {"C": -1.0}, draws=False),
    *(
        few_labels(f"zero-shot-{len(templates)}", partial(ZeroShot, named(templates)), {}, draws=False, needs_fit=False)
        for templates in (ONE_TEMPLATE, IMAGENET_TEMPLATES)
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


def vladva(model: nn.Module, rank: int = 2, prompt: tuple[int, ...] = (7, 8, 9)) -> VladvaModel:
    return VladvaModel(model, prompt, (10, 11), rank=rank, generator=torch.Generator().manual_seed(1))


FACTORS = ("lora_A", "lora_B")
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
    Adapter(
        "svfit-peft",
        tiny_llama,
        attach=lambda model: get_peft_model(model, SVFitConfig(target_modules=["q_proj", "v_proj"], rank=6)),
        run=logits,
        trains=lambda name: "svfit_sigma" in name,
        merge=lambda model: model.merge_and_unload(),
        state=get_peft_model_state_dict,
        load=set_peft_model_state_dict,
        bad=((lambda model: get_peft_model(model, SVFitConfig(target_modules=["q_proj"], rank=0)), "rank=0"),),
        rate=10.0,
        strict=False,
    ),
    Adapter(
        "lora",
        tiny_llama,
        attach=lambda model: (add_lora(model, 2, generator=torch.Generator().manual_seed(1)), model)[1],
        run=logits,
        trains=lambda name: name.endswith(FACTORS),
        merge=lambda model: (merge_lora(model), model)[1],
        state=lambda model: {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith(FACTORS)},
        load=lambda model, state: model.load_state_dict(state, strict=False),
        bad=(
            (lambda model: add_lora(model, 0), "rank=0"),
            (lambda model: add_lora(model, 2, dropout=1.0), "dropout=1.0"),
        ),
        rate=10.0,
        strict=False,
    ),
    Adapter(
        "vladva",
        lambda: tiny.model.__wrapped__("llava"),
        attach=lambda model: vladva(model, rank=2),
        run=lambda model: logits(model.lvlm if isinstance(model, VladvaModel) else model),
        trains=lambda name: name.endswith((".tokens", "logit_scale", *FACTORS)),
        merge=lambda model: model.merge(),
        state=VladvaModel.adapter_state_dict,
        load=VladvaModel.load_adapter_state_dict,
        bad=((lambda model: vladva(model, prompt=(999,)), "999"),),
        loss=lambda model: model(**vladva_pair.batch()).loss,
    ),
]
