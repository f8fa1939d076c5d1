"""`foveal train nano-clip`, `nano-llava`, `nano-sd`, `smol-vl`: one of foveal's own reference models anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

TRAINERS = {
    "nano-clip": "foveal.zoo.nano.clip",
    "nano-llava": "foveal.zoo.nano.llava",
    "nano-sd": "foveal.zoo.nano.sd",
    "smol-vl": "foveal.zoo.smol_vl_training",
}


def nano(name: str) -> Callable[..., None]:
    """The command that trains this model."""

    def train(out: Path | None = None, work: Path | None = None, smoke: bool = False) -> None:
        """Train a model as the shipped one was trained. After Ctrl-C the same command goes on where it stopped.

        Args:
            out: folder of the finished checkpoint, for any from_pretrained; by default foveal-models/NAME.
            work: folder for the checkpoints on the way; by default .foveal/train/NAME.
            smoke: a couple of steps of a small copy, to see that it runs.
        """
        import importlib

        out = out or Path("foveal-models") / (f"{name}-smoke" if smoke else name)
        work = work or Path(".foveal") / "train" / (f"{name}-smoke" if smoke else name)
        print(importlib.import_module(TRAINERS[name]).train(out, work, smoke))

    return train
