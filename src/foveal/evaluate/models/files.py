"""Where a checkpoint lies, and which one it is: folders, hub ids, sizes and hashes of weight files."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PARTS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
"""What is fetched of a hub repository: configuration, vocabulary and safe weights, no code and no pickles."""


def find_folder(name: str) -> Path:
    """Folder of a model of ours, the folder itself, or the local copy of a hub repository.

    Only a name that is neither one of ours nor a folder, and looks like ``owner/name``, goes over the network.

    Raises:
        ValueError: when there is no such model, no way to the hub, or no safetensors in the folder.
    """
    from foveal.zoo import nano, smol_vl

    if name in nano.CLASSES:
        folder = nano.folder(name)
    elif name == smol_vl.NAME:
        folder = smol_vl.folder()
    elif Path(name).is_dir():
        folder = Path(name)
    elif _HUB_ID.fullmatch(name) and not name.startswith("."):
        folder = _from_hub(name)
    else:
        known = ", ".join((*nano.CLASSES, smol_vl.NAME))
        raise ValueError(f"model={name!r} is no folder here; give one of {known}, a folder, or a hub id owner/name")
    if not weight_files(folder):
        raise ValueError(f"{folder} holds no .safetensors file; save the model with save_pretrained first")
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder and of the folders in it, sorted."""
    return sorted(folder.rglob("*.safetensors"))


def weights_size(folder: Path) -> int:
    """Bytes of all weight files."""
    return sum(path.stat().st_size for path in weight_files(folder))


def weights_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the weight files, in the order of their names."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        with path.open("rb") as file:
            own = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {own}\n".encode())
    return digest.hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight file by its name inside the folder."""
    found = {}
    for path in weight_files(folder):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _from_hub(name: str) -> Path:
    """The repository's snapshot in the Hugging Face cache, downloaded when it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    try:
        return Path(snapshot_download(name, allow_patterns=_PARTS, local_files_only=offline))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"model={name!r} is no folder here and could not be fetched from the Hugging Face hub ({reason}); "
            "go online once, or give a folder that holds the model"
        ) from error
