"""Atomic checkpoints: either the whole of one is there and proves it, or the one before it is still the latest.

``out/step-00000100/`` holds safetensors files and ``state.json``, which names them with size and SHA-256. The folder is
written aside, flushed to the disk, read back and compared, and only then renamed. A folder without ``state.json`` does
not count. Nothing is ever unpickled.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

STATE = "state.json"
FOLDER = re.compile(r"step-(\d{8,})")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, the reason and the remedy in one line."""


def save_checkpoint(
    out: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write ``out/step-<step>`` and drop all but the latest ``keep`` checkpoints. One process only may do this.

    Args:
        out: folder of the run; made when it is missing.
        step: finished steps.
        tensors: file stem -> name -> tensor on the CPU.
        state: everything else, as JSON takes it.
        keep: checkpoints to leave in the folder.

    Raises:
        OSError: one line that says what could not be written and from where a restart will resume.
    """
    final = out / f"step-{step:08d}"
    aside = out / f".{final.name}.{os.getpid()}"
    try:
        aside.mkdir(parents=True, exist_ok=True)
        files = {stem: _write_tensors(aside / f"{stem}.safetensors", group) for stem, group in tensors.items()}
        text = json.dumps({**state, "step": step, "files": files}, indent=1)
        _write_text(aside / STATE, text)
        _flush(aside)
        if final.exists():
            _drop(final)
        os.replace(aside, final)  # noqa: PTH105 - one system call, and the one that makes the checkpoint count
        _flush(out)
        if (final / STATE).read_text(encoding="utf-8") != text:
            raise OSError(f"{final / STATE} reads back differently")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        earlier = latest_checkpoint(out)
        resume = f"the run resumes from {earlier.name}" if earlier else "there is no earlier checkpoint"
        raise OSError(f"cannot write checkpoint {final}: {_reason(error)}; {resume}") from error
    for folder in _finished(out)[:-keep]:
        _drop(folder)
    return final


def latest_checkpoint(out: Path) -> Path | None:
    """The finished checkpoint of ``out`` with the most steps, or None."""
    finished = _finished(out)
    return finished[-1] if finished else None


def load_checkpoint(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by file stem (on the CPU) and the state, as given to `save_checkpoint`; ``state["step"]`` included.

    Raises:
        CheckpointError: when a file is missing, damaged or not safetensors.
    """
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        files = {str(stem): (int(entry["bytes"]), str(entry["sha256"])) for stem, entry in state["files"].items()}
        int(state["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unusable(folder / STATE, _reason(error)) from error
    tensors = {}
    for stem, (size, digest) in files.items():
        if not stem.isidentifier():
            raise _unusable(folder / STATE, f"{stem!r} is not a file name")
        path = folder / f"{stem}.safetensors"
        try:
            if path.stat().st_size != size:
                raise _unusable(path, f"it has {path.stat().st_size} bytes instead of {size}")
            if _digest(path) != digest:
                raise _unusable(path, "its checksum is wrong")
            tensors[stem] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise _unusable(path, _reason(error)) from error
    return tensors, state


def remove_leftovers(out: Path) -> None:
    """Delete what a killed run left half-written."""
    for folder in out.glob(".step-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _finished(out: Path) -> list[Path]:
    if not out.is_dir():
        return []
    matches = [(FOLDER.fullmatch(folder.name), folder) for folder in out.iterdir()]
    steps = [(int(match[1]), folder) for match, folder in matches if match and (folder / STATE).is_file()]
    return [folder for _, folder in sorted(steps)]


def _drop(folder: Path) -> None:
    (folder / STATE).unlink(missing_ok=True)  # first, so that a half-deleted checkpoint does not count
    shutil.rmtree(folder, ignore_errors=True)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    save_file(dict(tensors), path)
    _flush(path)
    back = load_file(path)
    same = back.keys() == tensors.keys() and all(_identical(back[name], tensors[name]) for name in back)
    if not same:
        raise OSError(f"{path.name} reads back differently")
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _identical(left: Tensor, right: Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    # bytes, because NaN (which a buffer may hold on purpose) does not equal itself
    return torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    """Push a file, or the entries of a folder, through to the disk."""
    if path.is_dir() and os.name != "posix":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return " ".join(text.split())


def _unusable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"checkpoint file {path}: {reason}; delete {path.parent} to resume from the one before it")
