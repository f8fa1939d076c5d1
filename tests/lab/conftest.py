"""A recipe of our own in the place of a real one: its file is found, hashed and imported like any other."""

import importlib
import sys
from pathlib import Path

import pytest

import foveal.recipes

SLUG = "limber"  # the catalogue must know it
RECIPE = '''"""Does one more make it better?

The *better* arm adds one.
"""

import os
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from foveal.lab import Claim, Recipe, Run, figures
from foveal.train import fit


def note(run: Run) -> None:
    with Path(os.environ["CELLS_RUN"]).open("a") as file:
        print(run.arm, run.seed, file=file)
    if os.environ.get("KILLED_IN") == f"{run.arm} {run.seed}":
        os.kill(os.getpid(), 9)


def arm(run: Run, bonus: float, wobble: float = 0.01) -> dict[str, float]:
    note(run)
    model = run.build(nn.Linear, 3, 1)
    run.cost(model, tokens=7)
    data = TensorDataset(torch.randn(32, 3, generator=run.generator("data")))
    fit(model, data, steps=run.steps(4), loss=lambda model, batch: model(batch[0]).square().mean(), on=run)
    if run.arm == "better":
        figure, axes = figures.subplots()
        axes.plot([1, 2])
        run.figure("line.png", figure, f"Seed {run.seed}.")
    return {"score": bonus + run.seed + wobble * run.rng(run.arm).normal(), "error": -bonus}


RECIPE = Recipe(
    paper="limber",
    arms={"plain": partial(arm, bonus=0.0), "better": partial(arm, bonus=1.0), "luck": partial(arm, bonus=2.0)},
    claims=[
        Claim("better", beats="plain", on="score", published="+1 | on paper"),
        Claim("plain", beats="better", on="error", lower=True),
        Claim("better", beats="plain", on="error", by=-2.0, lower=True),
    ],
    controls=("luck",),
    real="foveal demo",
    example="print(1 + 1)",
)
'''


class Stand:
    """The recipe's file, and the log of the cells that were really run."""

    def __init__(self, folder: Path) -> None:
        self.file, self.log, self.work = folder / "recipes" / f"{SLUG}.py", folder / "cells.log", folder / "work"
        self.file.parent.mkdir()
        self.write(RECIPE)

    def write(self, text: str) -> None:
        """Put this into the recipe's file, and let the next import read it."""
        self.file.write_text(text)
        sys.modules.pop(f"foveal.recipes.{SLUG}", None)  # monkeypatch would put a stand-in back when all is over
        importlib.invalidate_caches()

    def cells_run(self) -> list[str]:
        """Since the last call."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two texts within one second would share their bytecode
    place = Stand(tmp_path)
    foveal.recipes.__path__.insert(0, str(place.file.parent))
    monkeypatch.setenv("CELLS_RUN", str(place.log))
    monkeypatch.chdir(tmp_path)
    yield place
    foveal.recipes.__path__.remove(str(place.file.parent))
    for slug in (SLUG, "sitta"):  # a test may have put a recipe there too
        sys.modules.pop(f"foveal.recipes.{slug}", None)
