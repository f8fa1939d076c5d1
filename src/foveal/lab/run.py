"""`Run`: what one arm is given for one seed, and where it leaves what it did beside its metrics."""

import re
import sys
import zlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from foveal.lab.figures import png
from foveal.lab.randomness import global_randomness
from foveal.train.meters import Meter, count_parameters

SMOKE_STEPS, SMOKE_SIZE = 2, 64
PICTURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.png")
T = TypeVar("T")
Curve = list[tuple[int, float]]


class Picture(NamedTuple):
    """What an arm drew, and the line under it on the page."""

    png: bytes
    caption: str


@dataclass
class Cost:
    """What an arm used. ``None``: not measured.

    Attributes:
        seconds: wall time.
        peak_memory_bytes: by how much the process grew at most.
        flops: floating-point operations (see `foveal.train.Meter`).
        parameters, trainable: numbers in the models that the arm named with `Run.cost`.
        tokens: as the arm says, for instance visual tokens per image.
    """

    seconds: float = 0.0
    peak_memory_bytes: int = 0
    flops: int | None = None
    parameters: int | None = None
    trainable: int | None = None
    tokens: float | None = None

    def __add__(self, other: "Cost") -> "Cost":
        """One after the other: times and numbers add up, of the memory the larger peak counts."""
        sums = (
            add(getattr(self, name), getattr(other, name)) for name in ("flops", "parameters", "trainable", "tokens")
        )
        peak = max(self.peak_memory_bytes, other.peak_memory_bytes)
        return Cost(self.seconds + other.seconds, peak, *sums)


@dataclass
class _Part:
    """Something that the arms of one seed share, with what it cost to make."""

    value: Any
    run: "Run"
    cost: Cost


class Run:
    """One arm at one seed. Arms never see each other: what is random is a function of the seed, the same in all arms.

    Attributes:
        seed: of this run; also of `foveal.train.fit` when it is called with ``on=run``.
        arm: name of the arm.
        smoke: everything is cut down to see whether it runs at all.
    """

    def __init__(
        self,
        arm: str,
        seed: int,
        smoke: bool = False,
        counts_flops: bool = False,
        parts: dict[Hashable, _Part] | None = None,
    ) -> None:
        self.arm, self.seed, self.smoke = arm, seed, smoke
        self.curves: dict[str, Curve] = {}
        self.figures: dict[str, Picture] = {}
        self.costs = Cost()
        self.counts_flops = counts_flops
        self._parts: dict[Hashable, _Part] = {} if parts is None else parts

    def steps(self, n: int) -> int:
        """``n`` optimiser steps, or a couple in a smoke run."""
        return min(n, SMOKE_STEPS) if self.smoke else n

    def size(self, n: int) -> int:
        """``n`` samples, or a handful in a smoke run."""
        return min(n, SMOKE_SIZE) if self.smoke else n

    def generator(self, purpose: str = "") -> torch.Generator:
        """A new generator at the start of the stream of (seed, purpose), alike in all arms.

        Two uses in one arm that must not draw the same numbers need two purposes.
        """
        return torch.Generator().manual_seed(int(self._entropy(purpose).generate_state(1, np.uint64)[0] >> 1))

    def rng(self, purpose: str = "") -> np.random.Generator:
        """As `generator`, for numpy."""
        return np.random.default_rng(self._entropy(purpose))

    def build(self, make: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """``make(*arguments, **named)`` with initial weights drawn from the seed alone.

        torch's modules draw them from the global generator. Here it is set to the seed first and put back afterwards,
        so that arms that build the same thing start from the same weights, whatever they drew before.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            return make(*arguments, **named)

    def shared(self, make: Callable[..., T], *arguments: Hashable) -> T:
        """``make(run, *arguments)``, made once for each seed and handed to every arm that asks for the same.

        Its time, FLOPs, memory and curves count for each of these arms, as if each had made it. Whoever changes the
        value changes it for the arms that follow: copy it first. The global generators start from the seed while it is
        made and are put back, so it does not matter which arm asks first, nor what that arm drew before.
        """
        key = (make, arguments)
        if fresh := key not in self._parts:
            run = Run(self.arm, self.seed, self.smoke, self.counts_flops, self._parts)
            meter = Meter(flops=self.counts_flops, device=device())
            with global_randomness(self.seed, device()), meter:
                value = make(run, *arguments)
            self._parts[key] = _Part(value, run, measured(run, meter))
        part = self._parts[key]
        # this arm's own meter saw the making of a fresh part, except for what that part took over from others
        self.costs += part.run.costs if fresh else part.cost
        for name, points in part.run.curves.items():
            for step, height in points:
                self.record(name, height, step)
        self.figures.update(part.run.figures)
        return part.value

    def record(self, name: str, value: float, step: int) -> None:
        """One point of a curve; `foveal.train.fit` calls this with ``on=run``.

        Steps that begin again (a second `fit` in the same arm) begin another curve: ``loss``, ``loss 2``, ...
        """
        count, curve = 1, name
        while (later := f"{name} {count + 1}") in self.curves:
            count, curve = count + 1, later
        points = self.curves.setdefault(curve, [])
        if points and step <= points[-1][0]:
            points = self.curves.setdefault(later, [])
        points.append((int(step), float(value)))

    def figure(self, name: str, figure: Figure, caption: str = "") -> None:
        """Keep a picture of what the arm did; ``name`` ends in ``.png``. The page shows those of the first seed.

        ``caption`` says what is to be seen; without one, the page puts the arm and the name below.
        """
        if not PICTURE.fullmatch(name):
            raise ValueError(f"name={name!r}: must be a plain file name that ends in .png")
        self.figures[name] = Picture(png(figure), caption or f"{self.arm}: {name.removesuffix('.png')}")
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            pyplot.close(figure)  # pyplot keeps every figure it ever made

    def cost(self, model: nn.Module, tokens: float | None = None) -> None:
        """Name a model that the arm uses, so that its parameters are reported; several add up.

        ``tokens``: how many the arm processes for each sample, where that is what a fair comparison depends on.
        """
        numbers, trainable = count_parameters(model), count_parameters(model, trainable=True)
        self.costs += Cost(parameters=numbers, trainable=trainable, tokens=tokens)

    def _entropy(self, purpose: str) -> np.random.SeedSequence:
        return np.random.SeedSequence((self.seed, zlib.crc32(purpose.encode())))


def measured(run: Run, meter: Meter) -> Cost:
    """What the meter saw, and what the run adds of its own."""
    flops = meter.flops if run.counts_flops else None
    return run.costs + Cost(meter.seconds, meter.peak_memory_bytes, flops)


def device() -> torch.device:
    """Where `foveal.train.fit` puts a model, and where memory is therefore measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def add(left: Any, right: Any) -> Any:
    """The sum of what is known of two numbers."""
    return left if right is None else right if left is None else left + right
