"""Which samples make up the batch of a step: a pure function of (seed, step, process), so resuming is a jump."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StepOrder:
    """A seeded shuffle indexed by the step.

    Epoch e is a permutation of all samples drawn from (seed, e); the epochs laid end to end are cut into batches. A
    batch may therefore span two epochs, or many when it is bigger than the data set, and no sample is ever left out.

    Attributes:
        samples: size of the data set.
        batch_size: samples per step, over all processes.
        seed: of the shuffle.
    """

    samples: int
    batch_size: int
    seed: int = 0
    _epochs: dict[int, NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"StepOrder({name}={getattr(self, name)}): must be ≥ {least}")

    def indices(self, step: int, rank: int = 0, world: int = 1) -> NDArray[np.int64]:
        """Sample indices, (batch_size / world,) int64, of process ``rank`` of ``world`` at ``step`` (0-based).

        Raises:
            ValueError: when the batch cannot be shared out evenly, or rank or step are out of range.
        """
        if step < 0 or not 0 <= rank < world:
            raise ValueError(f"step={step}, rank={rank}, world={world}: need step ≥ 0 and 0 ≤ rank < world")
        if self.batch_size % world:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be shared by {world} processes: choose a multiple of {world}"
            )
        share = self.batch_size // world
        first = step * self.batch_size + rank * share
        return np.concatenate(list(self._pieces(first, first + share)))

    def _pieces(self, first: int, end: int) -> Iterator[NDArray[np.int64]]:
        while first < end:
            epoch, offset = divmod(first, self.samples)
            length = min(end - first, self.samples - offset)
            yield self._epoch(epoch)[offset : offset + length]
            first += length

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._epochs:
            if len(self._epochs) >= 2:  # a batch needs the epoch it is in and the next one
                self._epochs.pop(min(self._epochs))
            self._epochs[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.samples)
        return self._epochs[epoch]
