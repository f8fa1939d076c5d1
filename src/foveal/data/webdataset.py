"""WebDataset shards: tar files of samples, streamed by many processes, resumed at the next sample, written atomically.

A sample is the consecutive files of a tar that share their name up to the first dot: ``0001.jpg``, ``0001.txt``. The
library's own reader runs ``pipe:`` commands and unpickles by file name, so only its naming and its writer are used.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from braceexpand import braceexpand
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset import TarWriter
from webdataset.tariterators import base_plus_ext

from foveal.data.faults import Faults, SampleError, unique_keys
from foveal.data.images import MAX_PIXELS
from foveal.data.record import Sample
from foveal.data.shard_format import decode_sample, encode_sample
from foveal.data.tar_members import Member, tar_members

LOG = logging.getLogger(__name__)
Cursor = tuple[int, int]  # shards finished, samples taken of the next one


class Shards(IterableDataset[Sample]):
    """The samples of tar shards, as a stream; one iteration is one epoch.

    Processes (``torch.distributed``) and the workers of a DataLoader share the shards: every sample is read by exactly
    one of them. With fewer shards than readers, each reads all and keeps every n-th sample, which costs reading time.

    A broken sample counts as a fault, a missing or truncated shard as one too; reading goes on with the next. Keys are
    ``shard/name``, or the original ones in shards of `write_shards`.

    Args:
        shards: a local path with braces (``"train-{0000..0331}.tar"``), or a list of paths.
        seed: shuffle the order of the shards by (seed, epoch); None keeps it.
        strict: raise at the first fault.
        max_fraction: share of broken samples to put up with, see `Faults`.
        max_pixels: see `read_image`.

    Attributes:
        epoch: of the next iteration. Counts up by itself, except through a DataLoader with workers (they have copies):
            use `ShardBatches` there.
        faults: what the latest iteration skipped, in this process.

    Raises:
        ValueError: when a shard is a URL or a command, not one of them exists, or ``seed`` is negative.
    """

    def __init__(
        self,
        shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        seed: int | None = None,
        strict: bool = False,
        max_fraction: float = Faults.max_fraction,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if seed is not None and seed < 0:
            raise ValueError(f"seed={seed}: must be at least 0, or None for the order as given")
        given = [shards] if isinstance(shards, str | os.PathLike) else shards
        names = [name for pattern in given for name in braceexpand(os.fspath(pattern))]
        for name in names:
            if "://" in name or name.startswith("pipe:"):
                raise ValueError(
                    f"shards={name!r} is no local path: download the shards, foveal opens no URL or command"
                )
        self.paths = [Path(name) for name in names]
        if not any(path.is_file() for path in self.paths):
            raise ValueError(f"shards={shards!r}: not one of {len(names)} files exists; check the path and the braces")
        self.names = unique_keys([path.name for path in self.paths])
        self.seed, self.max_pixels, self.epoch = seed, max_pixels, 0
        self.faults = Faults(f"Shards({names[0]}{', …' if len(names) > 1 else ''})", strict, max_fraction)
        self._cursor: Cursor = (0, 0)
        self._resume: Cursor = (0, 0)
        self._process: tuple[int, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are started afresh: they do not know torch.distributed, so the process is told them."""
        return {**self.__dict__, "_process": self.process()}

    def process(self) -> tuple[int, int] | None:
        """Rank and number of processes; None before torch.distributed is set up."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return self._process

    def __iter__(self) -> Iterator[Sample]:
        rank, world = self.process() or (0, 1)
        worker = get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        self._cursor = start = self._resume
        self._resume = (0, 0)
        for cursor, sample in self.share(rank * workers + index, world * workers, start):
            self._cursor = cursor
            yield sample
        self.epoch, self._cursor = self.epoch + 1, (0, 0)

    def share(self, part: int, parts: int, start: Cursor = (0, 0)) -> Iterator[tuple[Cursor, Sample]]:
        """One of ``parts`` shares of the current epoch: each sample with the cursor behind it."""
        order = np.arange(len(self.paths))
        if self.seed is not None:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(len(order))
        stride = 1
        if len(order) >= parts:
            order = order[part::parts]
        else:
            stride = parts
            if part == 0:
                LOG.warning("%d shards for %d readers: each of them reads all; write more shards", len(order), parts)
        self.faults.begin()
        for place in range(start[0], len(order)):
            skip = start[1] if place == start[0] else 0
            for row, key, files in self._shard(int(order[place])):
                if row < skip or (row + place - part) % stride:  # + place, so that short shards feed all readers
                    continue
                try:
                    sample = decode_sample(key, _contents(key, files), self.max_pixels)
                except SampleError as error:
                    self.faults.record(key, error)
                else:
                    self.faults.sound()
                    yield (place, row + 1), sample
        self.faults.finish(whole=parts == 1)

    def _shard(self, index: int) -> Iterator[tuple[int, str, list[Member]]]:
        """Row, key and files of each sample of a shard; a damaged shard is recorded and ends."""
        name, seen = self.names[index], set[str]()
        try:
            groups = groupby(tar_members(self.paths[index]), key=lambda member: base_plus_ext(member.name)[0])
            for row, (prefix, group) in enumerate(groups):
                files = list(group)
                if prefix is None:  # files without suffix, as README, are part of no sample; but no link goes unseen
                    files = [file for file in files if isinstance(file.content, SampleError)]
                    if not files:
                        continue
                key = f"{name}/{prefix or files[0].name}"
                if key in seen:
                    text = f"{key}: its files are not next to each other; repack the shard sorted by name"
                    files = [Member(files[0].name, SampleError(text, "scattered sample in shard"))]
                seen.add(key)
                yield row, key, files
        except SampleError as error:
            self.faults.record(name, error)

    def state_dict(self) -> dict[str, Any]:
        """Position behind the latest sample, JSON-able. Of this process only; not for use with DataLoader workers."""
        return {"epoch": self.epoch, "cursor": list(self._cursor), "shards": len(self.paths), "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration begins there. ValueError when the state belongs to other shards or another order."""
        _check_same(state, {"shards": len(self.paths), "seed": self.seed})
        shard, row = state["cursor"]
        self.epoch, self._cursor, self._resume = int(state["epoch"]), (shard, row), (shard, row)


class ShardBatches:
    """Batches from `Shards`, with or without worker processes, that resume exactly: what `foveal.train.fit` takes.

    One iteration is one epoch; its last batches may be smaller. Workers make whole batches and take turns.
    Each worker counts and logs the faults of its own share.

    Args:
        shards: what to read.
        batch_size: samples a batch.
        collate: makes a batch of a list of samples (picklable, when there are workers).
        workers: processes that read and decode; 0 does it here.
    """

    def __init__(
        self, shards: Shards, batch_size: int, collate: Callable[[list[Sample]], Any], *, workers: int = 0
    ) -> None:
        if batch_size < 1 or workers < 0:
            raise ValueError(f"batch_size={batch_size}, workers={workers}: need batch_size ≥ 1 and workers ≥ 0")
        self.shards, self.batch_size, self.collate, self.workers = shards, batch_size, collate, workers
        self._begin()

    def _begin(self) -> None:
        self.turn, self.cursors, self.resumed = 0, [(0, 0)] * max(self.workers, 1), False

    def __iter__(self) -> Iterator[Any]:
        if not self.resumed:
            self._begin()
        self.resumed = False
        reader = _WorkerBatches(self)
        if self.workers:
            # the generator keeps DataLoader off the global one
            generator = torch.Generator().manual_seed(0)
            source: Iterable[Any] = DataLoader(
                reader, batch_size=None, collate_fn=_as_it_is, num_workers=self.workers, generator=generator
            )
        else:
            source = reader
        for worker, cursor, batch in source:
            self.cursors[worker], self.turn = cursor, (worker + 1) % len(self.cursors)
            yield batch
        self.shards.epoch += 1
        self._begin()

    def state_dict(self) -> dict[str, Any]:
        """Position behind the latest batch, JSON-able."""
        cursors = [list(cursor) for cursor in self.cursors]
        return {"epoch": self.shards.epoch, "turn": self.turn, "cursors": cursors, **self._fixed()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration begins there. ValueError when shards, order, batch size or workers are others."""
        _check_same(state, self._fixed())
        self.shards.epoch, self.turn, self.resumed = int(state["epoch"]), int(state["turn"]), True
        self.cursors = [(shard, row) for shard, row in state["cursors"]]

    def _fixed(self) -> dict[str, Any]:
        shards = self.shards
        return {
            "shards": len(shards.paths), "seed": shards.seed, "batch_size": self.batch_size, "workers": self.workers
        }  # fmt: skip


class _WorkerBatches(IterableDataset[Any]):
    """What one worker does: batches of its share, each with the worker's number and the cursor behind it."""

    def __init__(self, batches: ShardBatches) -> None:
        self.batches, self.process = batches, batches.shards.process() or (0, 1)

    def __iter__(self) -> Iterator[tuple[int, Cursor, Any]]:
        info, own = get_worker_info(), self.batches
        # DataLoader always asks its worker 0 first, so after a resume the roles move round by the turns already taken.
        worker = ((info.id if info else 0) + own.turn) % len(own.cursors)
        rank, world = self.process
        part, parts = rank * len(own.cursors) + worker, world * len(own.cursors)
        samples: list[Sample] = []
        for cursor, sample in own.shards.share(part, parts, own.cursors[worker]):
            samples.append(sample)
            if len(samples) == own.batch_size:
                yield worker, cursor, own.collate(samples)
                samples = []
        if samples:
            yield worker, cursor, own.collate(samples)


def write_shards(
    samples: Iterable[Sample], pattern: str, samples_per_shard: int = 1000, *, jpeg_quality: int | None = None
) -> list[Path]:
    """Write shards that `Shards` reads back as the same samples, and any WebDataset tool reads.

    Each shard is written aside, flushed to the disk and renamed, so that a shard that is there is whole.

    Args:
        samples: with unique keys.
        pattern: path with one number in it, as ``"out/train-%06d.tar"``; the folder is made when it is missing.
        samples_per_shard: the last shard may have fewer.
        jpeg_quality: 1 to 95; None writes lossless PNG.

    Returns:
        The paths, in order.

    Raises:
        ValueError: bad pattern or number, a key used twice, or ``meta`` that JSON does not take.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard={samples_per_shard}: must be at least 1")
    try:
        distinct = pattern % 0 != pattern % 1
    except (TypeError, ValueError) as error:
        raise ValueError(f"pattern={pattern!r}: needs one number, as in 'train-%06d.tar' ({error})") from error
    if not distinct:
        raise ValueError(f"pattern={pattern!r}: needs one number, as in 'train-%06d.tar'")
    paths: list[Path] = []
    keys: set[str] = set()
    pending: list[tuple[str, dict[str, bytes]]] = []
    for row, sample in enumerate(samples):
        if sample.key in keys:
            raise ValueError(f"samples hold the key {sample.key!r} twice (again at {row}): make keys unique")
        keys.add(sample.key)
        pending.append((f"{row:09d}", encode_sample(sample, jpeg_quality)))
        if len(pending) == samples_per_shard:
            paths.append(_write_shard(Path(pattern % len(paths)), pending))
            pending = []
    if pending:
        paths.append(_write_shard(Path(pattern % len(paths)), pending))
    return paths


def _write_shard(final: Path, samples: list[tuple[str, dict[str, bytes]]]) -> Path:
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            # encoder=False: the library's encoders pickle. mtime: the same samples give the same bytes.
            with TarWriter(file, encoder=False, mtime=0) as writer:
                for name, files in samples:
                    writer.write({"__key__": name, **files})
            file.flush()
            os.fsync(file.fileno())
        return aside.replace(final)
    finally:
        aside.unlink(missing_ok=True)


def _contents(key: str, files: list[Member]) -> dict[str, bytes]:
    """Suffix -> content; SampleError when a file cannot be used, or is there twice."""
    contents: dict[str, bytes] = {}
    for file in files:
        if isinstance(file.content, SampleError):
            raise file.content
        suffix = base_plus_ext(file.name)[1].lower()
        if suffix in contents:
            raise SampleError(f"{key}: two files end in .{suffix}; repack the shard", "scattered sample in shard")
        contents[suffix] = file.content
    return contents


def _check_same(state: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ValueError naming what ``state`` has otherwise than ``now``: resuming would repeat or lose samples."""
    for name, value in now.items():
        if state.get(name) != value:
            raise ValueError(f"{name}={value!r}: the saved position is for {name}={state.get(name)!r}; use that again")


def _as_it_is(item: Any) -> Any:
    return item
