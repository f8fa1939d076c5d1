"""Train one of foveal's own reference models anew: nano-clip, nano-llava or nano-sd."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

NAMES = ("nano-clip", "nano-llava", "nano-sd")


def main(
    name: Annotated[str, tyro.conf.Positional],
    out: Path | None = None,
    work: Path | None = None,
    smoke: bool = False,
) -> None:
    """Train a nano model as the shipped one was trained. After Ctrl-C the same command goes on where it stopped.

    Args:
        name: nano-clip, nano-llava or nano-sd.
        out: folder of the finished checkpoint, for any from_pretrained; by default foveal-models/NAME.
        work: folder for the checkpoints on the way; by default .foveal/train/NAME.
        smoke: a couple of steps of a small copy, to see that it runs.
    """
    if name not in NAMES:
        raise ValueError(f"name={name!r}: choose one of {', '.join(NAMES)}")
    import importlib

    out = out or Path("foveal-models") / (f"{name}-smoke" if smoke else name)
    work = work or Path(".foveal") / "train" / (f"{name}-smoke" if smoke else name)
    trainer = importlib.import_module(f"foveal.zoo.nano.{name.removeprefix('nano-')}")
    print(trainer.train(out, work, smoke))
