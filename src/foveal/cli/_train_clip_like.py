"""`foveal train clip-like`: a CLIP of the user's, its data, and any image–text objective."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from foveal.train.loop import FitReport

Objective = Literal[
    "clip", "align", "filip", "dreamlip", "prefix_conditioning", "cloc", "grain", "nevlp", "m3i",
    "uniter", "dito", "tldr",
]  # fmt: skip


def clip_like(
    objective: Objective,
    data: tuple[str, ...],
    model: str,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    images: Path | None = None,
    steps: int = 1000,
    batch_size: int = 64,
    lr: float = 1e-5,
    weight_decay: float = 0.1,
    warmup: float = 0.05,
    save_every: int = 200,
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None,
    workers: int = 0,
    work: Path | None = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Fine-tune a CLIPModel with an objective. After Ctrl-C the same command goes on where it stopped.

    OUT is a folder for CLIPModel.from_pretrained, with a record of the training in training.json. What the objective
    learned beside the model (a decoder, prefixes) lies there in objective.safetensors.

    Args:
        objective: clip, align, filip, dreamlip, prefix_conditioning, cloc, grain, nevlp (its noise-adaptive contrast)
            or m3i. The others need models of their own, and say which.
        data: .tar shards, also with braces ("train-{0000..0331}.tar"); or a folder of pictures with captions in .txt
            files beside them or in sub-folders of classes; or a .json file of COCO captions.
        model: a CLIPModel as a folder, a hub id or nano-clip; for align also an AlignModel.
        out: folder of the finished model.
        images: folder of the pictures of a .json file; by default its own.
        steps: optimiser steps.
        batch_size: pairs per step, over all processes.
        lr: peak learning rate; it rises for the first part of the steps and falls to zero along a cosine.
        weight_decay: of matrices.
        warmup: that first part.
        save_every: steps between checkpoints.
        mixed_precision: no, bf16 or fp16; by default what accelerate launch says.
        workers: processes that read and prepare pictures.
        work: folder of the checkpoints on the way; by default .OUT-training beside OUT.
        seed: of the order of samples and of all that is drawn.
        json: print one JSON document about the training.
    """
    if out.exists() and not (out / "training.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out={str(out)!r} exists and is no model that foveal trained: choose a new folder")
    work = work or out.parent / f".{out.name}-training"
    settings = {
        "objective": objective, "data": list(data), "images": None if images is None else str(images), "model": model,
        "steps": steps, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "warmup": warmup,
        "mixed_precision": mixed_precision, "seed": seed,
    }  # fmt: skip
    report = _train(settings, out, work, save_every, workers)
    if os.environ.get("RANK", "0") != "0":
        return
    tenth = -(-report.steps // 10)
    first, last = (sum(part) / tenth for part in (report.losses[:tenth], report.losses[-tenth:]))
    if json:
        from foveal.cli import print_json

        speed = {"seconds": report.seconds_in_all, "samples_per_second": report.samples_per_second}
        losses = {"first_loss": first, "last_loss": last, "resumed_from": report.resumed_from}
        print_json({"out": str(out), **settings, **losses, **speed})
        return
    print(f"{objective}: loss {first:.3f} in the first {tenth} steps, {last:.3f} in the last {tenth} of {report.steps}")
    print(out)


def _train(settings: dict[str, Any], out: Path, work: Path, save_every: int, workers: int) -> FitReport:
    """Open everything behind a bar, fit, publish."""
    from foveal.cli._pictures import progress

    with progress() as watch:
        watch("loading", 0, 1)
        from foveal.cli._train_data import Collate, FullBatches, check_fit, open_data
        from foveal.cli._train_model import check_same, open_model, publish, start
        from foveal.data.webdataset import ShardBatches, Shards
        from foveal.train import FitConfig, fit

        objective, seed, size = settings["objective"], settings["seed"], settings["batch_size"]
        opened = open_model(settings["model"], objective)
        images = None if settings["images"] is None else Path(settings["images"])
        source, seen = open_data(settings["data"], images, seed, watch)
        check_fit(objective, seen)
        collate = Collate(opened.processor.image_processor, places=objective in ("cloc", "grain"))
        config = FitConfig(
            lr=settings["lr"],
            batch_size=size,
            warmup=settings["warmup"],
            weight_decay=settings["weight_decay"],
            save_every=save_every,
            keep=1,
            mixed_precision=settings["mixed_precision"],
            seed=seed,
            workers=workers,
            collate=collate,
            after_step=lambda learner: learner.after_step(),
        )
        batches: Any = source
        if isinstance(source, Shards):
            world = int(os.environ.get("WORLD_SIZE", "1"))
            if size % world:
                raise ValueError(f"batch_size={size} cannot be shared by {world} processes: choose a multiple")
            batches = FullBatches(ShardBatches(source, size // world, collate, workers=workers))
        elif len(source) < size:
            raise ValueError(f"batch_size={size}: the data has {len(source)} usable samples; choose a smaller one")
        check_same(work, settings, opened.digest)
        learner = start(opened, objective, settings["steps"], seed)
    report = fit(
        learner, batches, steps=settings["steps"], loss=lambda one, batch: one.loss(batch), config=config, out=work
    )
    if os.environ.get("RANK", "0") == "0":
        publish(out, learner, opened, settings, report, _command())
    return report


def _command() -> str:
    """What was typed."""
    import shlex

    return shlex.join(["foveal", *sys.argv[1:]])
