"""How smol-vl's adapter is trained: answers about clear pictures, tower and language model fixed.

The tower has learned with nano-llava what its answers need, and SmolLM2 has its English; what is missing is a
translation. So two short stages train the projector and LoRA matrices together: first on what can be answered in a
word, then also on descriptions, relations and boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foveal.train import FitConfig, fit
from foveal.zoo import nano
from foveal.zoo.nano.lessons import Lessons, Writer
from foveal.zoo.nano.llava import answer_loss
from foveal.zoo.nano.scenes import LLAVA_WORLD, DrawnScenes
from foveal.zoo.nano.training import TrainingRecord, check_destination, digest, loss_curve, publish_checkpoint
from foveal.zoo.smol_vl import NAME, assemble

WORLD = replace(LLAVA_WORLD, things=(1, 3), sizes=("large",), depth=(2.1, 3.0))
"""Up to three big things of the fifty-six nouns that nano-llava is examined on."""
DATA = (
    "Scenes of foveal's procedural world with one to three large things, with captions short and long, lists, "
    "questions, and boxes."
)
LIMITS = (
    "It answers about drawn scenes of few large things; writing, textures, shapes, places, several pictures and "
    "photographs were never taught. What else SmolLM2 knew may have suffered."
)
LINEAR = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"


@dataclass(frozen=True)
class Stage:
    """``tasks`` are those of `foveal.zoo.nano.conversations.exchanges`; ``budget`` is of tokens about a picture."""

    name: str
    steps: int
    budget: int
    tasks: Mapping[str, int]


WORDS = {"short": 1, "objects": 1, "existence": 5, "count": 4, "colour": 4, "object": 3}
PLACES = {**WORDS, "existence": 3, "count": 2, "colour": 3, "object": 2, "long": 1, "relation": 5, "grounding": 4}


@dataclass(frozen=True)
class SmolTraining:
    """All that shapes the adapter, nano-llava and SmolLM2 aside."""

    stages: tuple[Stage, ...] = (Stage("words", 480, 200, WORDS), Stage("places", 420, 320, PLACES))
    lr: float = 1e-3
    rows: int = 4
    rank: int = 8
    weight_decay: float = 0.0
    seed: int = 0


SMOKE = SmolTraining(stages=(Stage("words", 2, 60, WORDS), Stage("places", 1, 60, PLACES)), rows=2, rank=1)


def train(out: Path, work: Path, smoke: bool = False) -> Path:
    """Train the adapter and publish it in ``out``; a killed run goes on from ``work``.

    Raises FileNotFoundError when nano-llava or SmolLM2 is missing, and ValueError when ``out`` holds something else.
    """
    from peft import LoraConfig, get_peft_model

    check_destination(out)
    settings = SMOKE if smoke else SmolTraining()
    model, processor = assemble(settings.seed)
    lora = LoraConfig(r=settings.rank, target_modules=LINEAR, modules_to_save=["multi_modal_projector"])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        adapted: Any = get_peft_model(model.requires_grad_(False), lora)
    writer = Writer(processor, model.config.image_seq_length)
    config = FitConfig(
        lr=settings.lr,
        batch_size=1,  # a sample is a batch
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        save_every=20,
        keep=1,
        collate=itemgetter(0),
    )
    base = digest(nano.folder("nano-llava"))
    reports = {}
    for number, stage in enumerate(settings.stages):
        lessons = _lessons(stage, 10 * settings.seed + number, settings.rows, writer)
        folder = work / base[:16] / stage.name
        reports[f"{stage.name} loss"] = fit(adapted, lessons, steps=stage.steps, loss=_loss, config=config, out=folder)
    record = TrainingRecord(
        name=NAME,
        command=f"foveal train {NAME}",
        config={**asdict(settings), "nano-llava": base},
        data=DATA,
        limits=LIMITS,
        seconds=sum(report.seconds_in_all for report in reports.values()),
        curves={name: loss_curve(report.losses) for name, report in reports.items()},
    )

    def save(folder: Path) -> None:
        adapted.half().save_pretrained(folder)
        (folder / "README.md").unlink()  # peft's, a card with nothing in it

    return publish_checkpoint(out, save, record)


def _lessons(stage: Stage, seed: int, rows: int, writer: Writer) -> Lessons:
    """Each scene is met once."""
    return Lessons(
        scenes=DrawnScenes(WORLD, seed, rows * stage.steps),
        films=None,
        writer=writer,
        steps=stage.steps,
        rows=rows,
        budget=stage.budget,
        tasks=stage.tasks,
        seed=seed,
    )


def _loss(adapted: Any, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
    return answer_loss(adapted.get_base_model(), batch)
