"""What a reader does with a broken sample: count it, name it, skip it up to a stated fraction, then stop.

A broken sample is never replaced by another one, and never dropped without a trace: when an iteration ends with faults,
one warning line is logged. ``strict=True`` raises at the first.
"""

import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

from foveal.data.record import Sample

LOG = logging.getLogger(__name__)
NAMED = 5  # keys per reason that the report gives


class SampleError(ValueError):
    """One sample that cannot be used. The message is one line; ``reason`` is the short name it is counted under."""

    # One positional argument, because DataLoader rebuilds the error of a worker from its message alone.
    def __init__(self, message: str, reason: str = "malformed record") -> None:
        super().__init__(one_line(message))
        self.reason = reason


class TooManyFaults(ValueError):
    """The share of broken samples is above the stated one: better to look at the data than to go on."""


@dataclass
class Faults:
    """The broken samples of one pass over a source.

    Attributes:
        source: what is read, for the messages.
        strict: raise at the first broken sample.
        max_fraction: share of broken samples, 0 to 1, above which `TooManyFaults` is raised.
        min_seen: samples to see before the share counts, so that one bad file at the start does not end a run.
        seen: samples so far, sound and broken.
        counts: reason -> number of broken samples.
        keys: reason -> the first `NAMED` keys.
    """

    source: str
    strict: bool = False
    max_fraction: float = 0.05
    min_seen: int = 100
    seen: int = field(default=0, init=False)
    counts: dict[str, int] = field(default_factory=dict, init=False)
    keys: dict[str, list[str]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.max_fraction <= 1:
            raise ValueError(f"max_fraction={self.max_fraction}: must be between 0 and 1")

    @property
    def total(self) -> int:
        """Broken samples so far."""
        return sum(self.counts.values())

    def begin(self) -> None:
        """Start a new pass from zero."""
        self.seen = 0
        self.counts.clear()
        self.keys.clear()

    def sound(self) -> None:
        """Count one good sample.

        Raises:
            TooManyFaults: as `record`; the share begins to count at the ``min_seen``-th sample, good or not.
        """
        self.seen += 1
        if self.seen == self.min_seen:
            self._check(None)

    def record(self, key: str, error: SampleError) -> None:
        """Count a broken sample.

        Raises:
            SampleError: ``error`` itself, under ``strict``.
            TooManyFaults: when more than ``max_fraction`` of at least ``min_seen`` samples are broken.
        """
        self.seen += 1
        self.counts[error.reason] = self.counts.get(error.reason, 0) + 1
        named = self.keys.setdefault(error.reason, [])
        if len(named) < NAMED:
            named.append(one_line(key))
        if self.strict:
            raise error
        self._check(error)

    def finish(self, whole: bool = True) -> None:
        """End the pass: one warning line when samples were skipped.

        Args:
            whole: the pass saw all of the source, not the share of one process or worker.

        Raises:
            TooManyFaults: when a whole pass saw samples and not one of them was sound.
        """
        if whole and self.total and self.total == self.seen:
            raise TooManyFaults(f"{self.report()}: no sample is usable; check the path and the format")
        if self.total:
            LOG.warning("%s", self.report())

    def report(self) -> str:
        """One line: how many samples were skipped, for which reasons, and the first keys of each."""
        if not self.total:
            return f"{self.source}: no faults in {self.seen} samples"
        parts = []
        for reason, count in sorted(self.counts.items(), key=lambda item: -item[1]):
            more = ", …" if count > len(self.keys[reason]) else ""
            parts.append(f"{count} × {reason} ({', '.join(self.keys[reason])}{more})")
        return f"{self.source}: {self.total} of {self.seen} samples skipped: {'; '.join(parts)}"

    def _check(self, latest: SampleError | None) -> None:
        if self.seen >= self.min_seen and self.total > self.max_fraction * self.seen:
            text = f"{self.report()}: more than max_fraction={self.max_fraction}; repair the data or raise the limit"
            raise TooManyFaults(text) from latest


class RowReader(Sequence[Sample]):
    """A reader with a length. Indexing a broken sample raises `SampleError`; iteration counts and skips it.

    A subclass fills ``keys``, one per row, and writes ``load``. ``faults`` tells of the latest iteration.
    """

    keys: Sequence[str]
    faults: Faults

    @abstractmethod
    def load(self, index: int) -> Sample:
        """Sample of a row, ``0 ≤ index < len(self)``; SampleError when it is broken."""

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        rows = range(len(self))[index]  # negative indices, slices and IndexError as for any sequence
        return self.load(rows) if isinstance(rows, int) else [self.load(row) for row in rows]

    def __iter__(self) -> Iterator[Sample]:
        return (sample for _, sample in self._sound())

    def sound_rows(self) -> list[int]:
        """Rows that can be loaded, found by loading all: what to train on, ``Subset(reader, reader.sound_rows())``."""
        return [row for row, _ in self._sound()]

    def _sound(self) -> Iterator[tuple[int, Sample]]:
        self.faults.begin()
        for row in range(len(self)):
            try:
                sample = self.load(row)
            except SampleError as error:
                self.faults.record(self.keys[row], error)
            else:
                self.faults.sound()
                yield row, sample
        self.faults.finish()


def one_line(text: str) -> str:
    """The text safe to print: file names may hold line breaks, terminal escapes, or bytes that are no text at all."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in line)


def unique_keys(names: Sequence[str]) -> list[str]:
    """The names, with ``@row`` behind each one that an earlier row already has."""
    given, used, keys = set(names), set[str](), []
    for row, name in enumerate(names):
        key = name
        while key in used or (key != name and key in given):
            key += f"@{row}"
        used.add(key)
        keys.append(key)
    return keys
