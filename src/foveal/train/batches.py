"""The two kinds of training data behind one interface: sequences of samples and streams of ready batches."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from foveal.train.config import FitConfig
from foveal.train.order import StepOrder


class Batches(Protocol):
    """What the loop asks of its data."""

    def open(self, step: int, state: Any) -> Iterator[Any]:
        """Micro-batches of this process from ``step`` on, without end."""

    def state(self) -> Any:
        """Position of the data, as JSON takes it; None when the step says it all."""

    def size(self, batch: Any) -> int:
        """Samples in a micro-batch."""

    def keys(self, batch: Any, step: int, micro: int) -> list[Any]:
        """Names of the samples of a micro-batch, for an error message."""


def batches_of(data: Any, config: FitConfig, seed: int, rank: int, world: int) -> Batches:
    """`Rows` for whatever has a length and indices, else `Stream`.

    Raises:
        ValueError: when ``data`` is neither, or is empty, or the batch cannot be shared out evenly.
    """
    if isinstance(data, tuple) and data and all(isinstance(column, torch.Tensor) for column in data):
        raise ValueError(f"data is a tuple of {len(data)} tensors: wrap them, TensorDataset(*data)")
    iterable_only = isinstance(data, IterableDataset | Mapping)  # these inherit or misuse __getitem__
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not iterable_only:
        return Rows(data, config, seed, rank, world)
    if isinstance(data, Iterable) and not isinstance(data, Mapping):
        return Stream(data, config.accumulate)
    raise ValueError(f"data={type(data).__name__}: must be a sequence of samples or an iterable of ready batches")


class Rows:
    """A sequence of samples in `StepOrder`, collated; a TensorDataset is indexed as a whole, which is much faster."""

    def __init__(self, data: Any, config: FitConfig, seed: int, rank: int, world: int) -> None:
        if len(data) == 0:
            raise ValueError(f"data={type(data).__name__} is empty: there is nothing to fit")
        parts = world * config.accumulate
        if config.batch_size % parts:
            raise ValueError(
                f"batch_size={config.batch_size} cannot be cut into {parts} equal parts ({world} processes × "
                f"accumulate={config.accumulate}): choose a multiple of {parts}"
            )
        self.order = StepOrder(len(data), config.batch_size, seed)
        self.config, self.rank, self.world = config, rank, world
        whole = isinstance(data, TensorDataset) and config.collate is None
        self.data: Dataset[Any] = _WholeTensors(*data.tensors) if whole else data
        self.collate = _as_it_is if whole else config.collate or _collate

    def open(self, step: int, state: Any) -> Iterator[Any]:
        loader = DataLoader(
            self.data,
            batch_sampler=_FromStep(self, step),
            collate_fn=self.collate,
            num_workers=self.config.workers,
            generator=torch.Generator().manual_seed(self.order.seed),  # keeps it off the global one
        )
        return iter(loader)

    def indices(self, step: int, micro: int) -> list[int]:
        return self.order.indices(step, self.rank, self.world).reshape(self.config.accumulate, -1)[micro].tolist()

    def state(self) -> None:
        return None

    def size(self, batch: Any) -> int:
        return self.config.batch_size // (self.world * self.config.accumulate)

    def keys(self, batch: Any, step: int, micro: int) -> list[int]:
        return self.indices(step, micro)


class Stream:
    """An iterable of ready micro-batches, begun again whenever it ends.

    Its ``state_dict``/``load_state_dict`` (JSON-able) travel in the checkpoint; without them a resumed run reads and
    drops the batches that were already used.
    """

    def __init__(self, data: Iterable[Any], accumulate: int) -> None:
        self.data, self.accumulate = data, accumulate
        self.resumable = hasattr(data, "state_dict") and hasattr(data, "load_state_dict")

    def open(self, step: int, state: Any) -> Iterator[Any]:
        if self.resumable and state is not None:
            cast(Any, self.data).load_state_dict(state)
            return self._endless()
        batches = self._endless()
        for _ in range(step * self.accumulate):
            next(batches)
        return batches

    def _endless(self) -> Iterator[Any]:
        empty = 0  # passes in a row; one is fine, for a stream that was resumed at its very end
        while empty < 2:
            empty += 1
            for batch in self.data:
                empty = 0
                yield batch
        raise ValueError(
            f"data={type(self.data).__name__} has no (further) batch: it is empty, or a generator that ran out before "
            "the last step; give a data set or an iterable that can be begun again"
        )

    def state(self) -> Any:
        if not self.resumable:
            return None
        state = cast(Any, self.data).state_dict()
        try:
            return json.loads(json.dumps(state))
        except TypeError as error:
            raise ValueError(f"data.state_dict() of {type(self.data).__name__} must be JSON-able: {error}") from error

    def size(self, batch: Any) -> int:
        return _rows(batch)

    def keys(self, batch: Any, step: int, micro: int) -> list[Any]:
        keys = batch.get("__key__", []) if isinstance(batch, Mapping) else []
        return [keys] if isinstance(keys, str) else list(keys)


class _FromStep(Iterable[list[int]]):
    """Batch sampler that begins at any step and never ends."""

    def __init__(self, rows: Rows, step: int) -> None:
        self.rows, self.step = rows, step

    def __iter__(self) -> Iterator[list[int]]:
        step = self.step
        while True:
            for micro in range(self.rows.config.accumulate):
                yield self.rows.indices(step, micro)
            step += 1


class _WholeTensors(TensorDataset):
    def __getitems__(self, indices: Sequence[int]) -> tuple[torch.Tensor, ...]:
        rows = torch.as_tensor(indices)
        return tuple(tensor[rows] for tensor in self.tensors)


def _rows(batch: Any) -> int:
    """Length of the first tensor in a nested batch; 0 when it has none."""
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.ndim else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next(filter(None, map(_rows, parts)), 0)


def _as_it_is(batch: Any) -> Any:
    return batch


def _collate(samples: list[Any]) -> Any:
    try:
        return default_collate(samples)
    except (TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"samples of type {type(samples[0]).__name__} do not stack into a batch ({reason}): "
            "give FitConfig(collate=...), a function from a list of samples to a batch"
        ) from error
