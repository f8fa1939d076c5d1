"""Run tasks on a model so that a killed run goes on where it stopped and gives the same numbers.

Items are asked about in chunks of a fixed size, and what the model says of a chunk depends on that chunk alone. A
finished chunk is one line of a file, appended and flushed to the disk at once; a line that was cut off is dropped. The
file's name holds a digest of everything that the outputs depend on: weights, items, chunk size, source, versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import foveal
from foveal.evaluate.base import Item, Json, Metric, Setting, Task

CHUNK = 64
"""Items in a chunk, at least; a multiple of the batch size."""
KEEP = Path(".foveal") / "evaluate"
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TaskResult:
    """What one task gave. ``rows`` are the judged predictions; ``seconds`` those spent asking, over all attempts."""

    task: Task
    setting: Setting
    items: int
    metrics: list[Metric]
    rows: list[Json]
    seconds: float

    def as_json(self) -> Json:
        """Everything but the rows."""
        return {
            "summary": self.task.summary,
            "scorer": self.task.scorer,
            "n": self.setting.n,
            "items": self.items,
            "seconds": round(self.seconds, 2),
            "metrics": {metric.name: metric.as_json() for metric in self.metrics},
        }


def run_task(
    task: Task,
    opened: Any,
    setting: Setting,
    *,
    keep: Path | None = None,
    fresh: bool = False,
    versions: Mapping[str, str] | None = None,
    report: Report | None = None,
) -> TaskResult:
    """Ask a model about all items of a task and score what it says.

    Args:
        task: for models of the kind of ``opened``.
        opened: from `foveal.evaluate.models.open_model`.
        setting: number of items, seed, the user's files.
        keep: folder for outputs (`KEEP` for the command), which a later run with the same weights and setting goes on
            from. None for a model that something is attached to: the weights do not tell.
        fresh: do not use what is there.
        versions: of packages, which kept outputs must share.
        report: called with what is done, how many items are finished, and how many there are.

    Raises:
        ValueError: the task is for another kind of model, needs files that are not given, or its items are wrong.
    """
    if task.kind != opened.kind:
        raise ValueError(f"task={task.name!r} is for a {task.kind} model, {opened.name} is a {opened.kind} one")
    for need in task.needs:
        if getattr(setting, need) is None:
            raise ValueError(f"task={task.name!r} needs --{need}: see `foveal eval --help`")
    tell = report or (lambda what, done, total: None)
    tell(task.name, 0, 0)
    items = task.make(setting)
    size = _chunk_size(opened.model.batch_size)
    stored = None
    if keep is not None:
        stored = _Stored(keep / f"{task.name}-{_digest(task, opened, items, size, versions)}.jsonl", fresh)
    outputs: list[Json] = []
    seconds = 0.0
    for start in range(0, len(items), size):
        tell(task.name, start, len(items))
        chunk = items[start : start + size]
        line = stored.next(start, len(chunk)) if stored else None
        if line is None:
            begun = time.perf_counter()
            answers = _checked(task, chunk, task.ask(opened.model, chunk))
            line = {"start": start, "seconds": time.perf_counter() - begun, "outputs": answers}
            if stored:
                stored.append(line)
        outputs += line["outputs"]
        seconds += line["seconds"]
    tell(task.name, len(items), len(items))
    scored = task.score(items, outputs)
    return TaskResult(task, setting, len(items), scored.metrics, scored.rows, seconds)


def _checked(task: Task, chunk: Sequence[Item], outputs: list[Json]) -> list[Json]:
    """As JSON will give them back, so that a resumed run scores the very same values."""
    if len(outputs) != len(chunk):
        raise RuntimeError(f"task {task.name} gave {len(outputs)} outputs for {len(chunk)} items")
    return json.loads(json.dumps(outputs, allow_nan=False))


def _chunk_size(batch_size: int) -> int:
    return -(-CHUNK // batch_size) * batch_size


def _digest(task: Task, opened: Any, items: Sequence[Item], size: int, versions: Mapping[str, str] | None) -> str:
    """Of everything that outputs depend on, except for pictures that are read from files."""
    digest = hashlib.sha256()
    facts = [task.name, opened.sha256, opened.dtype, opened.device, size, opened.model.batch_size, dict(versions or {})]
    facts.append(dict(opened.settings))
    digest.update(json.dumps([*facts, _settings_digest(opened.folder)], sort_keys=True).encode())
    for item in items:
        digest.update(json.dumps([item.key, item.texts, dict(item.truth)], sort_keys=True).encode())
    for path in _sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _settings_digest(folder: Path) -> str:
    """Of what decides beside the weights: configuration, vocabulary, chat template."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".json", ".txt", ".jinja", ".model") and path.name != "training.json":
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _sources() -> Iterator[Path]:
    """What makes pictures and texts of the world, and asks about them."""
    package = Path(foveal.__file__).parent
    for room in ("data", "evaluate", "nn"):
        yield from sorted((package / room).rglob("*.py"))


class _Stored:
    """The finished chunks of a file, given back in order; then new ones are appended."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            path.unlink(missing_ok=True)
        whole, self._lines = _read(path)
        if path.is_file() and path.stat().st_size > whole:
            os.truncate(path, whole)

    def next(self, start: int, length: int) -> Json | None:
        """The finished chunk at ``start``, or None when it is still to be done."""
        if self._lines and self._lines[0]["start"] == start and len(self._lines[0]["outputs"]) == length:
            return self._lines.pop(0)
        if self._lines:  # somebody edited the file: nothing from here on counts
            raise ValueError(f"{self.path} does not fit its task; delete it, or use --fresh")
        return None

    def append(self, line: Json) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            _flush(file)


def _read(path: Path) -> tuple[int, list[Json]]:
    """Whole lines of a file, and the number of bytes that they take."""
    lines: list[Json] = []
    end = 0
    if path.is_file():
        for raw in path.read_bytes().splitlines(keepends=True):
            try:
                line = json.loads(raw)
            except ValueError:
                break
            if not raw.endswith(b"\n"):
                break
            lines.append(line)
            end += len(raw)
    return end, lines


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
