"""Where `foveal adapt pcb` gets its labels: a CSV, or somebody who is asked and whose answers are kept."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def labels_of_csv(path: Path, names: Sequence[str], keys: Sequence[str]) -> Callable[[Any], list[int]]:
    """An oracle from a file with the columns image (path within the pool) and label.

    ValueError: columns missing, a label that is no class, a picture of the pool without a label.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if not rows.fieldnames or not {"image", "label"} <= set(rows.fieldnames):
            raise ValueError(f"{path}: the first line must name the columns image and label")
        known: dict[str, int] = {}
        for row in rows:
            label = (row["label"] or "").strip()
            if label not in names:
                raise ValueError(f"{path}, line {rows.line_num}: {label!r} is none of the {len(names)} classes")
            known[(row["image"] or "").strip()] = names.index(label)
    if missing := [key for key in keys if key not in known]:
        raise ValueError(f"{path} has no label for {missing[0]} and {len(missing) - 1} other pictures of the pool")
    return lambda indices: [known[keys[i]] for i in indices.tolist()]


class Asked:
    """Somebody at the terminal. Each answer is written to ``file`` at once; what is there is never asked again."""

    def __init__(self, folder: Path, names: Sequence[str], keys: Sequence[str], pictures: Sequence[Path]) -> None:
        self.folder, self.file = folder, folder / "labels.json"
        self.names, self.keys, self.pictures = names, keys, pictures
        self.known: dict[str, str] = {}
        if self.file.is_file():
            try:
                self.known = json.loads(self.file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{self.file} is no JSON ({error}): mend or delete it") from error
            if strange := [name for name in self.known.values() if name not in names]:
                raise ValueError(f"{self.file} holds the class {strange[0]!r}, which is not among the classes now")

    def __call__(self, indices: Any) -> list[int]:
        wanted = indices.tolist()
        missing = [i for i in wanted if self.keys[i] not in self.known]
        if missing:
            self._show(missing)
        for number, i in enumerate(missing, 1):
            self.known[self.keys[i]] = self._answer(f"[{number}/{len(missing)}] {self.pictures[i]}: ")
            self._keep()
        return [self.names.index(self.known[self.keys[i]]) for i in wanted]

    def _show(self, missing: Sequence[int]) -> None:
        """A sheet of the pictures in question, numbered as they are asked for."""
        from foveal.data.files import write_atomically
        from foveal.data.images import read_image
        from foveal.lab.figures import picture_grid, png

        shown = [read_image(self.pictures[i]) for i in missing]
        sheet = self.folder / "to_label.png"
        write_atomically(
            sheet, png(picture_grid(shown, [f"[{n}] {self.keys[i]}" for n, i in enumerate(missing, 1)], 6))
        )
        print(f"{len(missing)} pictures to label, all of them in {sheet}", file=sys.stderr)
        print("  ".join(f"{number} {name}" for number, name in enumerate(self.names, 1)), file=sys.stderr)

    def _answer(self, question: str) -> str:
        while True:
            print(question, end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line:
                raise ValueError(
                    f"no more answers: the labels so far are in {self.file}, run the command again to go on"
                )
            if name := chosen(line, self.names):
                return name
            print(f"  give a number from 1 to {len(self.names)}, or the beginning of one name", file=sys.stderr)

    def _keep(self) -> None:
        from foveal.data.files import write_atomically

        write_atomically(self.file, (json.dumps(self.known, indent=1, ensure_ascii=False) + "\n").encode())


def chosen(answer: str, names: Sequence[str]) -> str | None:
    """The class that is meant by a number from 1, a name, or what only one name begins with."""
    answer = answer.strip()
    if answer.isdecimal() and 1 <= int(answer) <= len(names):
        return names[int(answer) - 1]
    if answer in names:
        return answer
    fitting = [name for name in names if answer and name.casefold().startswith(answer.casefold())]
    return fitting[0] if len(fitting) == 1 else None
