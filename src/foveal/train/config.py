"""The settings of one training run, checked when they are written down and not in the middle of the night."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = (None, "no", "bf16", "fp16")
OPTIMIZERS = ("adamw", "muon")
# A resumed run may change these: all but the last two change speed, memory or what is kept, but not one number of the
# run. Of functions a checkpoint cannot tell whether they are the same.
FREE_TO_CHANGE = ("save_every", "keep", "workers", "progress", "collate", "after_step")


@dataclass(frozen=True)
class FitConfig:
    """How `fit` trains. Every field has a default that works for the small models of this project.

    Attributes:
        lr: peak learning rate.
        batch_size: samples per optimiser step, over all processes and micro-batches together, so that neither
            ``accumulate`` nor the number of processes changes what is learned. Losses that compare the samples of a
            batch with each other (CLIP's, for example) see one micro-batch at a time unless they gather.
        warmup: part of all steps, in [0, 1), during which the learning rate rises linearly.
        weight_decay: decoupled decay of matrices; biases, norms and other 0/1-d parameters are never decayed.
        optimizer: "adamw"; "muon" takes orthogonal steps for linear layers (see `foveal.train.muon`), which trains a
            small transformer from nothing in fewer steps.
        betas: AdamW's two averaging factors.
        schedule: "cosine" and "linear" fall to zero at the last step, "constant" stays.
        clip: largest total gradient norm; None does not clip.
        accumulate: micro-batches per optimiser step.
        save_every: steps between checkpoints when ``fit`` has an ``out`` folder; 0 saves at the end only.
        keep: how many of the latest checkpoints stay in the folder.
        mixed_precision: "no", "bf16" or "fp16"; None takes what ``accelerate launch`` says, else "no".
        seed: of the order of samples and of dropout; ``on.seed`` replaces it where ``fit`` is given ``on``.
        workers: processes that load samples; 0 loads in the training process.
        progress: show a bar when a run lasts over three seconds and stderr is a terminal.
        collate: list of samples -> batch; None stacks tensors, arrays and numbers.
        after_step: called with the model after every step, without gradients (to clamp a temperature, for example).

    Raises:
        ValueError: naming the field, its value and what it may be.
    """

    lr: float = 1e-3
    batch_size: int = 64
    warmup: float = 0.05
    weight_decay: float = 0.05
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.98)
    schedule: str = "cosine"
    clip: float | None = 1.0
    accumulate: int = 1
    save_every: int = 0
    keep: int = 2
    mixed_precision: str | None = None
    seed: int = 0
    workers: int = 0
    progress: bool = True
    collate: Callable[[list[Any]], Any] | None = None
    after_step: Callable[[Any], object] | None = None

    def __post_init__(self) -> None:
        self._whole("batch_size", "accumulate", "keep", least=1)
        self._whole("save_every", "workers", "seed", least=0)
        self._require("lr", _is_real(self.lr) and self.lr > 0, "a positive number, such as 1e-3")
        self._require("warmup", _is_real(self.warmup) and 0 <= self.warmup < 1, "a part of the steps in [0, 1)")
        self._require("weight_decay", _is_real(self.weight_decay) and self.weight_decay >= 0, "0 or more")
        betas_fit = len(self.betas) == 2 and all(_is_real(beta) and 0 <= beta < 1 for beta in self.betas)
        self._require("betas", betas_fit, "two numbers in [0, 1)")
        self._require("clip", self.clip is None or (_is_real(self.clip) and self.clip > 0), "positive, or None")
        self._require("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        self._require("optimizer", self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")
        self._require("mixed_precision", self.mixed_precision in PRECISIONS, 'one of None, "no", "bf16", "fp16"')
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be cut into accumulate={self.accumulate} equal micro-batches: "
                "choose a multiple"
            )

    def _whole(self, *names: str, least: int) -> None:
        for name in names:
            value = getattr(self, name)
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            self._require(name, is_whole and value >= least, f"a whole number ≥ {least}")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"FitConfig({name}={getattr(self, name)!r}): must be {allowed}")

    def fixed(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the run that wrote the checkpoint, ready for JSON."""
        fields = {name: value for name, value in vars(self).items() if name not in FREE_TO_CHANGE}
        return {**fields, "betas": list(self.betas)}


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
