"""The model that `foveal train clip-like` trains: opened by its class, given a learner, published as a checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AlignModel, AutoConfig, AutoProcessor, CLIPModel

from foveal.evaluate.models.files import find_folder, weights_digest
from foveal.lab.files import write_atomically
from foveal.recipes._clip_learners import Learner
from foveal.recipes._clip_learners_all import ELSEWHERE, LEARNERS
from foveal.recipes._clip_learners_texts import AlignTowers
from foveal.train import FitReport
from foveal.zoo.nano.training import TrainingRecord, loss_curve, publish_checkpoint
from foveal.zoo.quiet import quiet_loading

CLASSES: dict[str, Any] = {"clip": CLIPModel, "align": AlignModel}
RUN, BESIDE = "run.json", "objective.safetensors"


@dataclass(frozen=True)
class Opened:
    """A model in float32 with its processor; ``digest`` is of the weight files."""

    model: Any
    processor: Any
    digest: str


def open_model(name: str, objective: str) -> Opened:
    """The model of a nano name, a folder or a hub id; ValueError naming the class that the objective needs."""
    if objective in ELSEWHERE:
        raise ValueError(f"objective={objective!r} trains no CLIP-like model: it {ELSEWHERE[objective]}")
    folder = find_folder(name)
    try:
        kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"model={name!r} is none that this transformers knows: {str(error).splitlines()[0]}"
        ) from error
    needed = ("clip", "align") if objective == "align" else ("clip",)
    if kind not in needed:
        wanted = " or an ".join(CLASSES[one].__name__ for one in needed)
        found = CLASSES[kind].__name__ if kind in CLASSES else f"{kind!r} model"
        raise ValueError(f"objective={objective!r} needs a {wanted}, and model={name!r} is a {found}")
    with quiet_loading():
        options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
        model = CLASSES[kind].from_pretrained(folder, dtype=torch.float32, **options)
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    return Opened(model, processor, weights_digest(folder))


def start(opened: Opened, objective: str, steps: int, seed: int) -> Learner:
    """The learner; what it adds to the model is drawn from the seed."""
    make = AlignTowers if isinstance(opened.model, AlignModel) else LEARNERS[objective]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make(opened.model, Tokenizer(opened), steps)


class Tokenizer:
    """Texts -> ids and mask, cut where the model stops reading, padded on the right to the longest."""

    def __init__(self, opened: Opened) -> None:
        self.tokenizer = opened.processor.tokenizer
        longest = opened.model.config.text_config.max_position_embeddings
        self.options = {"padding": True, "truncation": True, "padding_side": "right", "return_tensors": "pt"}
        self.options["max_length"] = min(longest, self.tokenizer.model_max_length)

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        found = self.tokenizer(texts, **self.options)
        return found["input_ids"], found["attention_mask"]


def check_same(work: Path, settings: dict[str, Any], digest: str) -> None:
    """Note what the checkpoints in ``work`` are of; ValueError when they are of another training."""
    now = {**settings, "weights": digest}
    del now["steps"]  # may grow; `fit` says when it shrinks
    path = work / RUN
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if odd := [name for name in now if before.get(name) != now[name]]:
            old, new = before.get(odd[0]), now[odd[0]]
            raise ValueError(
                f"{odd[0]}={new!r}: {work} holds a training with {old!r}; delete it, or choose another out"
            )
    else:
        write_atomically(path, (json.dumps(now, indent=1) + "\n").encode())


def publish(
    out: Path, learner: Learner, opened: Opened, settings: dict[str, Any], report: FitReport, command: str
) -> None:
    """The model and its processor in ``out``, what was learned beside it, and the record."""
    inside = {id(parameter) for parameter in learner.model.parameters()}
    beside = {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in learner.named_parameters()
        if id(parameter) not in inside and parameter.requires_grad
    }

    def save(folder: Path) -> None:
        with quiet_loading():
            opened.model.save_pretrained(folder)
            opened.processor.save_pretrained(folder)
        if beside:
            save_file(beside, folder / BESIDE)

    record = TrainingRecord(
        name=out.name,
        command=command,
        config={**settings, "weights": opened.digest},
        data=", ".join(settings["data"]),
        limits="Those of the model and the data that it was made from.",
        seconds=report.seconds_in_all,
        curves={"loss": loss_curve(report.losses)},
        licence="that of the model and the data that it was made from",
        attribution="",
    )
    publish_checkpoint(out, save, record)
