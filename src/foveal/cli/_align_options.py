"""Options that all commands of `foveal align` have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

FREE = ("out", "json", "merge", "device")
"""Options that a run may go on without."""


@dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """A method adds its own, and may word or set some of these anew.

    Args:
        images: folder of photos.
        model: nano-llava, a folder made by save_pretrained, or a hub id of a LLaVA-like model.
        out: folder for what is written.
        n: so many photos at most.
        stage1_epochs: passes of stage 1.
        stage2_epochs: passes of stage 2.
        lr: peak learning rate.
        rank: of the adapter.
        batch_size: pairs a step, and most questions at once.
        max_length: tokens of picture, prompt and answer.
        held_out: share of the pairs that is only measured on.
        tasks: of foveal eval, taken before and after: world-existence, world-caption, pope, chair …
        task_n: items of each task.
        task_data: file or folder for pope and chair.
        task_images: their pictures.
        merge: also write OUT/model, the checkpoint with the adapter in its weights.
        device: cpu, cuda, cuda:1, mps; auto is a GPU if there is one.
        dtype: auto, float32, bfloat16 or float16.
        seed: of all that is random.
        json: print the report as one JSON document.
    """

    images: Path
    model: str = "nano-llava"
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    n: int | None = None
    stage1_epochs: float = 1.0
    stage2_epochs: float = 1.0
    lr: float = 5e-6
    rank: int = 16
    batch_size: int = 4
    max_length: int = 1024
    held_out: float = 0.1
    tasks: tuple[str, ...] = ()
    task_n: int | None = None
    task_data: Path | None = None
    task_images: Path | None = None
    merge: bool = False
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    json: bool = False

    def settings(self, method: str) -> dict[str, Any]:
        """What a run is known by."""
        known = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        return {"method": method, **{name: value for name, value in known.items() if name not in FREE}}
