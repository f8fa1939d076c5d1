"""Names that were learnt from things before one background each, and the repair of what is said of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from foveal.adapt.dclip import DescriptionClassifier
from foveal.data.world.phrases import GROUNDS
from foveal.data.world.vocabulary import PLACES
from foveal.lab import Run
from foveal.nn.cosine import unit_rows
from foveal.recipes._described_things import Kind, kinds, pictures
from foveal.recipes._descriptors import encoder
from foveal.train import FitConfig, fit
from foveal.zoo.dual_encoder import DualEncoder

TIED = 0.95
LESSONS, EXAM, STEPS = 240, 240, 60
TRAINING_SEED = 50_000
Edit = Callable[[DescriptionClassifier, list[Kind]], None]


class Names(nn.Module):
    """The text side of nano-clip, which learns names; the image side stays as it is."""

    def __init__(self, clip: Any, ids: Int[Tensor, "k l"]) -> None:
        super().__init__()
        self.clip: Any = copy.deepcopy(clip).requires_grad_(False)
        self.clip.text_model.requires_grad_(True)
        self.clip.text_projection.requires_grad_(True)
        self.ids = ids

    def forward(self, rows: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        names = unit_rows(self.clip.get_text_features(self.ids).pooler_output)
        return F.cross_entropy(self.clip.logit_scale.exp() * rows @ names.mT, labels)


def seen(run: Run, counter: bool) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """Pictures of eight classes: each before its own ground as a rule, or (``counter``) never."""
    classes = run.shared(kinds, len(PLACES))
    rng, n = run.rng(f"grounds {counter}"), run.size(EXAM if counter else LESSONS)
    labels = np.arange(n) % len(classes)
    others = (labels + 1 + rng.integers(len(PLACES) - 1, size=n)) % len(PLACES)
    own = np.where(rng.random(n) < (0.0 if counter else TIED), labels, others)
    images = pictures(classes, labels.tolist(), run.seed + (0 if counter else TRAINING_SEED), [PLACES[i] for i in own])
    rows = run.shared(encoder).image_features(list(images))
    return unit_rows(rows), torch.from_numpy(labels)


def taught(run: Run) -> DualEncoder:
    """nano-clip after it has been told the invented names of things before their grounds."""
    host = run.shared(encoder)
    names = [kind.invented for kind in run.shared(kinds, len(PLACES))]
    model = Names(host.model, host.tokenizer(names, padding=True, return_tensors="pt")["input_ids"])
    config = FitConfig(lr=3e-4, batch_size=64)
    fit(model, TensorDataset(*run.shared(seen, False)), steps=run.steps(STEPS), config=config, on=run)
    other = copy.copy(host)
    other.model = model.clip.eval()
    return other


def background(number: int) -> str:
    """The feature that is true of what was seen, and not of the class."""
    return f"often seen {GROUNDS[PLACES[number]]}"


def biased(classes: list[Kind]) -> dict[str, list[str]]:
    return {kind.invented: [background(number), f"a {kind.shape}"] for number, kind in enumerate(classes)}


def repaired(described: DescriptionClassifier, classes: list[Kind], shift: int | None = 0) -> None:
    """Backgrounds away, and two true features there; ``shift`` takes those of another class, None none at all."""
    for number, kind in enumerate(classes):
        of = classes[(number + (shift or 0)) % len(classes)]
        add = () if shift is None else (f"{of.colour} colour", f"a {of.colour} {of.shape}")
        described.edit(kind.invented, remove=[background(number)], add=add)


def counter_biased(run: Run, edit: Edit | None = None, named: bool = False) -> dict[str, float]:
    """Percentage of things before other grounds than usual whose class is found."""
    classes, host = run.shared(kinds, len(PLACES)), run.shared(taught)
    run.cost(host.model)
    table: dict[str, list[str]] = {kind.invented: [] for kind in classes} if named else biased(classes)
    described = DescriptionClassifier(lambda rows: rows, host.text_features, table)
    if edit is not None:
        edit(described, classes)
    rows, labels = run.shared(seen, True)
    return {"counter-biased top-1": 100 * (described.predict(rows) == labels).float().mean().item()}
