"""What the trainers of the nano models share: the curves they record and how a finished checkpoint is published."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

RECORD = "training.json"
PACKAGES = ("foveal", "torch", "transformers", "diffusers", "tokenizers")


def loss_curve(losses: Sequence[float], points: int = 200) -> list[tuple[int, float]]:
    """(step, mean loss since the point before) at about so many points; `FitReport.losses` spans resumed runs."""
    every = max(1, len(losses) // points)
    ends = range(every, len(losses) + 1, every)
    return [(end, round(sum(losses[end - every : end]) / every, 5)) for end in ends]


def digest(folder: Path, file: str = "model.safetensors") -> str:
    """SHA-256 of a checkpoint's weights."""
    return hashlib.sha256((folder / file).read_bytes()).hexdigest()


@dataclass(frozen=True)
class TrainingRecord:
    """What a checkpoint says of its own making; its model card is drawn from this.

    ``config`` holds every setting that shaped the weights, ``curves`` (step, value) pairs by name, ``seconds`` the wall
    time of all training steps.
    """

    name: str
    command: str
    config: dict[str, Any]
    data: str
    limits: str
    seconds: float
    curves: dict[str, list[tuple[int, float]]]
    licence: str = "Apache-2.0 (weights); pictures in the training data: Twemoji, CC-BY 4.0"
    attribution: str = "Twemoji by Twitter, Inc. and other contributors, licensed under CC-BY 4.0"
    versions: dict[str, str] = field(default_factory=lambda: {name: version(name) for name in PACKAGES})
    machine: str = field(default_factory=lambda: f"{platform.machine()}, {os.cpu_count()} cores")


def publish_checkpoint(out: Path, save: Callable[[Path], object], record: TrainingRecord) -> Path:
    """``save(folder)`` into a folder aside, the record with hashes of all files beside it, then one rename to ``out``.

    An earlier checkpoint in ``out`` is replaced. Raises ValueError when anything else is there.
    """
    check_destination(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        save(aside)
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        hashes = {str(path.relative_to(aside)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        text = json.dumps({**asdict(record), "files": hashes}, indent=1, ensure_ascii=False)
        (aside / RECORD).write_text(text + "\n", encoding="utf-8")
        for path in (*files, aside / RECORD):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        aside.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return out


def check_destination(out: Path) -> None:
    """ValueError when publishing to ``out`` would overwrite what is no checkpoint of a nano model."""
    if out.exists() and not (out / RECORD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out={str(out)!r} exists and is no nano checkpoint: choose a new folder")
