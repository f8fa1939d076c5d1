"""Where `foveal align` keeps what is done, so that the same command goes on after it was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foveal.data.files import write_atomically

Watch = Callable[[str, int, int], None]


class Folder:
    """The output folder of one run, known by its settings.

    Raises:
        ValueError: the folder holds something else, or a run with other settings.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        file, settings = out / "settings.json", json.loads(json.dumps(settings))
        if out.is_file():
            raise ValueError(f"out={str(out)!r} is a file: give a folder")
        if not file.is_file():
            if out.is_dir() and any(out.iterdir()):
                raise ValueError(f"out={str(out)!r} holds other files: give a new folder, nothing is overwritten")
            write_atomically(file, (json.dumps(settings, indent=1, ensure_ascii=False) + "\n").encode())
        begun = json.loads(file.read_text(encoding="utf-8"))
        for name in sorted(begun.keys() | settings.keys()):
            old, new = begun.get(name), settings.get(name)
            if old != new:
                raise ValueError(
                    f"out={str(out)!r} was begun with {name}={old!r}, not {new!r}: give the same options to go on, or "
                    "another folder"
                )
        self.out, self.work = out, out / "work"

    def notes(self, name: str) -> Notes:
        return Notes(self.work / f"{name}.jsonl")

    def write(self, name: str, content: Any) -> Path:
        """A JSON file, whole or not there."""
        write_atomically(self.out / name, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
        return self.out / name


class Notes:
    """Values that cost something, one line each, kept as soon as they are there. A line that was cut off is dropped."""

    def __init__(self, path: Path) -> None:
        self.path, self.values = path, dict[str, Any]()
        sound = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            self.values[row["key"]] = row["value"]
            sound += len(line)
        if path.is_file() and sound < path.stat().st_size:
            os.truncate(path, sound)

    def each(
        self, keys: Sequence[str], make: Callable[[Sequence[str]], Sequence[Any]], size: int, watch: Watch
    ) -> list[Any]:
        """The value of every key; what is missing is made, ``size`` keys at once and in their order."""
        missing = [key for key in keys if key not in self.values]
        for start in range(0, len(missing), size):
            watch(self.path.stem, len(keys) - len(missing) + start, len(keys))
            part = missing[start : start + size]
            self._add(dict(zip(part, make(part), strict=True)))
        return [self.values[key] for key in keys]

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self.values:
            self._add({key: make()})
        return self.values[key]

    def _add(self, found: dict[str, Any]) -> None:
        lines = [json.dumps({"key": key, "value": value}, ensure_ascii=False) + "\n" for key, value in found.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self.values |= found
