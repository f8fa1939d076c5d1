"""Finished cells (one arm at one seed) on disk, so that an interrupted run goes on instead of starting again."""

import base64
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveal.lab.files import write_atomically
from foveal.lab.run import Cost, Curve, Picture


@dataclass(frozen=True)
class Cell:
    """What one arm left at one seed."""

    arm: str
    seed: int
    metrics: dict[str, float]
    cost: Cost
    curves: dict[str, Curve]
    figures: dict[str, Picture]


class CellStore:
    """Cells in a folder, one JSON file each. A file counts only under the ``key`` it was written with, and whole."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key

    def save(self, cell: Cell) -> None:
        pictures = {name: (base64.b64encode(png).decode(), caption) for name, (png, caption) in cell.figures.items()}
        body = json.dumps({**asdict(cell), "figures": pictures}, allow_nan=False)
        document = {"key": self.key, "sha256": hashlib.sha256(body.encode()).hexdigest(), "cell": body}
        write_atomically(self._path(cell.arm, cell.seed), json.dumps(document).encode())

    def load(self, arm: str, seed: int) -> Cell | None:
        """The cell, or None when there is none of this key; a damaged file is as good as none."""
        try:
            document = json.loads(self._path(arm, seed).read_text(encoding="utf-8"))
            body = document["cell"]
            if document["key"] != self.key or document["sha256"] != hashlib.sha256(body.encode()).hexdigest():
                return None
            return _cell(json.loads(body))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _path(self, arm: str, seed: int) -> Path:
        return self.folder / f"{arm}-{seed}.json"


def _cell(fields: dict[str, Any]) -> Cell:
    """The cell that `CellStore.save` wrote as JSON."""
    curves = {name: [(step, value) for step, value in curve] for name, curve in fields["curves"].items()}
    pictures = {name: Picture(base64.b64decode(png), caption) for name, (png, caption) in fields["figures"].items()}
    return Cell(**{**fields, "cost": Cost(**fields["cost"]), "curves": curves, "figures": pictures})
