"""What keeps a run safe: the check against non-finite numbers, private randomness, an orderly stop on Ctrl-C."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch

SHOWN = 16  # indices or keys that an error message lists


class NonFiniteLoss(RuntimeError):
    """The loss or the gradient became NaN or infinite; the optimiser step of ``step`` has not been taken.

    Attributes:
        step: 0-based step.
        keys: indices (or ``__key__``s of a stream) of the samples in question; empty when they are unknown or on
            another process.
    """

    def __init__(self, what: str, step: int, keys: Sequence[Any], advice: str) -> None:
        self.step = step
        self.keys = list(keys)
        listed = ", ".join(str(key) for key in self.keys[:SHOWN])
        more = f" and {len(self.keys) - SHOWN} more" if len(self.keys) > SHOWN else ""
        samples = f" (samples {listed}{more})" if self.keys else ""
        super().__init__(f"{what} at step {step}{samples}: the weights are those from before this step; {advice}")


@contextmanager
def private_randomness(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside leaves torch's global generators (CPU and ``device``) as they were."""
    accelerator = None if device.type == "cpu" else torch.get_device_module(device)
    states = torch.get_rng_state(), accelerator and accelerator.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        if accelerator is not None:
            accelerator.set_rng_state(states[1])


def seed_step(device: torch.device, seed: int, step: int, rank: int) -> None:
    """Seed dropout for one step of one process: a resumed run draws the same masks without any saved state."""
    value = int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)


class StopRequest:
    """Ctrl-C and SIGTERM become a request, which the loop answers between two steps.

    A second Ctrl-C interrupts at once. Outside the main thread, and with ``active=False``, signals are left alone.
    """

    def __init__(self, active: bool) -> None:
        self.signal: int | None = None
        self._active = active and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if self._active:
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python

    def stop(self) -> None:
        """End the run the way the signal would have ended it."""
        if self.signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt
