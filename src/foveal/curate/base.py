"""What curation methods share: passes over shards of which a killed run repeats no more than the shard it was in.

A method measures every sample (`measure_shards`), decides with all numbers at hand, and writes what it keeps
(`rewrite_shards`). Between the passes lie only numbers, one file for each shard in the ``work`` folder; pictures are
read again. A file that was made with other settings, or from a shard that has changed since, is made anew.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from foveal.data.files import write_atomically
from foveal.data.record import Sample
from foveal.data.webdataset import Shards, write_shards

Watch = Callable[[str, int, int], object]
"""(what, done, total): shards that a pass is through with."""


@dataclass(frozen=True)
class Measured:
    """Numbers of n samples of all shards, in the order in which they lie there.

    Attributes:
        shard: of each sample, a place in the list of shards.
        row: number of the sample among those of its shard that can be read.
        keys: of the samples.
        values: what was measured, one row for each sample.
        skipped: reason -> number of samples that could not be read or measured.
    """

    shard: Int[np.ndarray, " n"]
    row: Int[np.ndarray, " n"]
    keys: list[str]
    values: dict[str, Shaped[np.ndarray, "n *d"]]
    skipped: dict[str, int]

    def __len__(self) -> int:
        return len(self.keys)


def measure_shards(
    paths: Sequence[Path],
    work: Path,
    measure: Callable[[Sequence[Sample]], Mapping[str, Shaped[np.ndarray, "b *d"]]],
    *,
    stamp: str,
    batch_size: int = 64,
    watch: Watch = lambda what, done, total: None,
) -> Measured:
    """``measure`` for every sample that has an image and a caption, in batches.

    Args:
        work: folder for one file of numbers for each shard.
        measure: samples -> arrays with a row for each, the same names and widths every time.
        stamp: everything that the numbers depend on beside the shards, such as the names of models.

    Raises ValueError when no shard holds a usable sample, and `TooManyFaults` where too many are broken.
    """
    parts = []
    for place, path in enumerate(paths):
        file, stamped = work / f"measured-{place:06d}.npz", _stamped(stamp, path)
        part = _read(file, stamped)
        if part is None:
            part = _measure(path, measure, batch_size)
            buffer, stored = io.BytesIO(), dict[str, Any](part, stamp=np.array(stamped))
            np.savez(buffer, **stored)
            write_atomically(file, buffer.getvalue())
        parts.append(part)
        watch("measuring shards", place + 1, len(paths))
    skipped = Counter[str]()
    for part in parts:
        skipped.update(json.loads(str(part["skipped"])))
    full = [(place, part) for place, part in enumerate(parts) if len(part["row"])]
    if not full:
        raise ValueError(f"not one sample of {len(paths)} shards has an image and a caption: {dict(skipped)}")
    names = [name for name in full[0][1] if name not in ("row", "keys", "skipped", "stamp")]
    return Measured(
        shard=np.concatenate([np.full(len(part["row"]), place) for place, part in full]),
        row=np.concatenate([part["row"] for _, part in full]),
        keys=[key for _, part in full for key in part["keys"].tolist()],
        values={name: np.concatenate([part[name] for _, part in full]) for name in names},
        skipped=dict(skipped),
    )


def _measure(
    path: Path, measure: Callable[[Sequence[Sample]], Mapping[str, Any]], batch_size: int
) -> dict[str, Shaped[np.ndarray, "..."]]:
    shards, rows, keys, skipped = Shards([path]), list[int](), list[str](), Counter[str]()
    found: list[Mapping[str, Any]] = []

    def usable() -> Iterator[Sample]:
        for row, sample in enumerate(shards):
            if not sample.images or not sample.captions:
                skipped["no image" if not sample.images else "no caption"] += 1
                continue
            rows.append(row)
            keys.append(sample.key)
            yield sample

    for batch in _batches(usable(), batch_size):
        found.append(measure(batch))
    skipped.update(shards.faults.counts)
    arrays = {name: np.concatenate([values[name] for values in found]) for name in (found[0] if found else ())}
    told = {"keys": np.array(keys, dtype=str), "skipped": np.array(json.dumps(skipped))}
    return {"row": np.array(rows, dtype=np.int64), **told, **arrays}


def _read(file: Path, stamped: str) -> dict[str, Shaped[np.ndarray, "..."]] | None:
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored) if str(stored["stamp"]) == stamped else None


@dataclass(frozen=True)
class Rewritten:
    """The shards that were written, and which entries of ``meta`` (name -> samples) no JSON file can hold."""

    paths: list[Path]
    left_out: dict[str, int]


def rewrite_shards(
    paths: Sequence[Path],
    out: Path,
    work: Path,
    kept: Mapping[int, Mapping[int, int]],
    change: Callable[[Sequence[Sample], Sequence[int]], Sequence[Sample]],
    *,
    stamp: str,
    batch_size: int = 64,
    samples_per_shard: int = 1000,
    jpeg_quality: int | None = None,
    watch: Watch = lambda what, done, total: None,
) -> Rewritten:
    """Write the kept samples of each shard, changed, into shards of their own: ``out/kept-000003-0000.tar``.

    Args:
        kept: place of a shard -> row in it -> number of the sample, as `Measured` has them.
        change: samples and their numbers -> what is written for them.
        stamp: everything that the written samples depend on beside the shards and ``kept``.

    Raises ValueError when ``out`` is where the shards lie.
    """
    check_apart(paths, out)
    written, left_out = list[Path](), Counter[str]()
    for place, path in enumerate(paths):
        rows = kept.get(place, {})
        note = work / f"written-{place:06d}.json"
        stamped = _stamped(f"{stamp} {sorted(rows.items())} {samples_per_shard} {jpeg_quality}", path)
        done = json.loads(note.read_text()) if note.is_file() else {}
        if done.get("stamp") != stamped or not all((out / name).is_file() for name in done["files"]):
            dropped = Counter[str]()
            samples = _changed(path, rows, change, batch_size, dropped)
            pattern = str(out / f"kept-{place:06d}-").replace("%", "%%") + "%04d.tar"
            for old in out.glob(f"kept-{place:06d}-*.tar"):  # of other settings, or of a killed run
                old.unlink()
            files = write_shards(samples, pattern, samples_per_shard, jpeg_quality=jpeg_quality)
            done = {"stamp": stamped, "files": [file.name for file in files], "left_out": dropped}
            write_atomically(note, json.dumps(done).encode())
        written += [out / name for name in done["files"]]
        left_out.update(done["left_out"])
        watch("writing shards", place + 1, len(paths))
    return Rewritten(written, dict(left_out))


def check_apart(paths: Sequence[Path], out: Path) -> None:
    """ValueError when one of the shards to read lies in the folder to write to. Call it before the measuring."""
    if inside := [path for path in paths if path.resolve().parent == out.resolve()]:
        raise ValueError(f"out={str(out)!r} holds {inside[0].name}, which is to be read: write to another folder")


def _changed(
    path: Path,
    rows: Mapping[int, int],
    change: Callable[[Sequence[Sample], Sequence[int]], Sequence[Sample]],
    batch_size: int,
    dropped: Counter[str],
) -> Iterator[Sample]:
    if not rows:
        return
    chosen = ((rows[row], sample) for row, sample in enumerate(Shards([path])) if row in rows)
    for batch in _batches(chosen, batch_size):
        for sample in change([sample for _, sample in batch], [number for number, _ in batch]):
            portable = {name: value for name, value in sample.meta.items() if _fits_json(value)}
            dropped.update(set(sample.meta) - set(portable))
            yield sample.with_(meta=portable)


def samples_at(paths: Sequence[Path], places: Sequence[tuple[int, int]]) -> list[Sample]:
    """The samples at (shard, row), in this order; each shard is read once, as far as it is needed."""
    found: dict[tuple[int, int], Sample] = {}
    for shard in sorted({shard for shard, _ in places}):
        rows = {row for place, row in places if place == shard}
        for row, sample in enumerate(Shards([paths[shard]])):
            if row in rows:
                found[shard, row] = sample
            if row >= max(rows):
                break
    return [found[place] for place in places]


def _stamped(stamp: str, path: Path) -> str:
    """A hash of the stamp and of what tells whether a shard has changed."""
    about = path.stat() if path.is_file() else None
    told = f"{stamp} {path.name} {about and about.st_size} {about and about.st_mtime_ns}"
    return hashlib.sha256(told.encode()).hexdigest()


def _fits_json(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
