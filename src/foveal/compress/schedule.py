"""Keeping rates in a file: searched once on one's own examples, applied with ``load(path).attach(model)``.

The file is JSON: ``{"format": "foveal-schedule", "version": 1, "rates": [1.0, 1.0, …], "notes": {…}}`` with one rate
for each decoder layer. ``notes`` say where it comes from (model, budget, score …) and are not interpreted.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveal import compress
from foveal.compress.runtime import PrefillReducer

_FORMAT, _VERSION = "foveal-schedule", 1


def save(rates: Sequence[float], path: str | os.PathLike[str], **notes: Any) -> None:
    """Write keeping rates and notes on them to ``path``: the whole file, or none of it.

    Raises ValueError for rates that `load` would refuse and notes that JSON cannot hold; OSError from the disk.
    """
    checked = compress.LayerwiseKeep(rates).rates
    content = {"format": _FORMAT, "version": _VERSION, "rates": checked, "notes": notes}
    try:
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"notes={notes}: JSON cannot hold them ({error}); give numbers, strings and lists") from error
    _replace(Path(path), text)


def load(path: str | os.PathLike[str]) -> PrefillReducer:
    """The `LayerwiseKeep` with the rates of a file that `save` wrote, or that someone wrote by hand.

    Raises ValueError, naming file and remedy, when it is no such file or its rates are no strategy; OSError when it
    cannot be read.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); write it with foveal.compress.save") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f'{path} lacks "format": "{_FORMAT}"; write it with foveal.compress.save')
    if content.get("version") != _VERSION:
        raise ValueError(f"{path} is of version {content.get('version')!r}, this foveal reads {_VERSION}: update")
    rates = content.get("rates")
    if not isinstance(rates, list) or any(type(rate) not in (int, float) for rate in rates):
        raise ValueError(f'{path}: "rates" must be a list of numbers, one for each decoder layer')
    try:
        return compress.LayerwiseKeep(rates)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from error


def _replace(path: Path, text: str) -> None:
    """Write aside, flush to the disk, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    aside = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.chmod(0o644)  # mkstemp's files are private
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
