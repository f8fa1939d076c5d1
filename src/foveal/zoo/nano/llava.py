"""nano-llava: a ``LlavaForConditionalGeneration`` of six million parameters that looks through nano-clip's eyes.

Trained in the stages of LLaVA (Liu et al., arXiv 2304.08485): captions first, then every kind of exchange. As its
language model starts from nothing, both stages train it together with the projector. The tower is frozen in them, so
that its features are computed once; a last, shorter stage trains the tower too, as LLaVA-NeXT does.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import (
    CLIPModel,
    CLIPProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from foveal.train import FitConfig, fit
from foveal.zoo import nano
from foveal.zoo.nano.chat import build_processor, build_tokenizer
from foveal.zoo.nano.conversations import CAPTIONS, EVERYTHING, clip_exchanges, exchanges
from foveal.zoo.nano.films import DrawnFilms
from foveal.zoo.nano.lessons import Lessons, Writer, branch_mask
from foveal.zoo.nano.scenes import LLAVA_WORLD, DrawnScenes
from foveal.zoo.nano.training import Curves, TrainingRecord, check_destination, publish_checkpoint

DATA = (
    "Scenes and short clips of foveal's procedural world (base nouns in a long tail, among their natural companions; "
    "no novel noun is drawn or named), with captions, questions and answers, regions and boxes; Twemoji sprites."
)
LIMITS = (
    "It knows drawn scenes, not photographs, and only English words of this world. It names things that usually go "
    "with what it sees, and rare nouns and small things are its weakest. Noise, inverted, grey, sepia and mosaic "
    "pictures were never seen."
)


@dataclass(frozen=True)
class Stage:
    """``tasks``: "captions" or "everything"; ``tower``: whether the vision tower learns too."""

    name: str
    steps: int
    lr: float
    tasks: str = "everything"
    tower: bool = False


@dataclass(frozen=True)
class LlavaTraining:
    """All that shapes the weights, nano-clip aside."""

    scenes: int = 24_000
    films: int = 1500
    stages: tuple[Stage, ...] = (
        Stage("align", 400, 1e-3, "captions"),
        Stage("instruct", 2400, 1e-3),
        Stage("tune", 800, 4e-4, tower=True),
    )
    rows: int = 16
    budget: int = 200
    weight_decay: float = 0.05
    feature_layer: int = -2
    width: int = 192
    hidden: int = 512
    layers: int = 6
    vocabulary: int = 2000
    positions: int = 1024
    seed: int = 0


SMOKE = LlavaTraining(
    scenes=12,
    films=3,
    stages=(Stage("align", 1, 1e-3, "captions"), Stage("instruct", 10, 1e-3), Stage("tune", 1, 4e-4, tower=True)),
    rows=2,
    budget=60,
    width=32,
    hidden=64,
    layers=2,
)


def train(out: Path, work: Path, smoke: bool = False) -> Path:
    """Train nano-llava on the shipped nano-clip and publish it in ``out``; a killed run goes on from ``work``.

    Raises FileNotFoundError when there is no nano-clip, and ValueError when ``out`` holds anything but a checkpoint.
    """
    check_destination(out)
    settings = SMOKE if smoke else LlavaTraining()
    clip = nano.folder("nano-clip")
    start, curves = time.monotonic(), {}
    scenes = DrawnScenes(LLAVA_WORLD, settings.seed, settings.scenes)
    films = DrawnFilms(LLAVA_WORLD, settings.seed, settings.films)
    model, processor = build(clip, corpus(scenes, films), settings)
    every = 1 if smoke else 20
    for number, stage in enumerate(settings.stages):
        losses = run_stage(model, processor, scenes, films, settings, number, work)
        groups = [losses[i : i + every] for i in range(0, len(losses) - every + 1, every)]
        curves[f"{stage.name} loss"] = [(every * (i + 1), sum(group) / every) for i, group in enumerate(groups)]
    config = {**asdict(settings), "nano-clip": weights_digest(model.model.vision_tower)}
    seconds = time.monotonic() - start
    record = TrainingRecord("nano-llava", "foveal train nano-llava", config, DATA, LIMITS, seconds, curves)

    def save(folder: Path) -> None:
        model.half().save_pretrained(folder)
        processor.save_pretrained(folder)

    return publish_checkpoint(out, save, record)
