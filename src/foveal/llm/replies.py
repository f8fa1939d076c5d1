"""Answers of a served model on the disk: asked again they cost nothing, and a stopped job goes on where it was."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveal.data.files import write_atomically
from foveal.zoo.cache import cache_folder


class ReplyCache:
    """One small JSON file for each request, named by its hash; several processes may share a folder.

    Requests and answers are stored as they are, so that they can be read and deleted by hand; keys of accounts never
    come here. A file that is broken counts as absent. Where nothing can be written, a warning says so once.

    Args:
        folder: ``replies`` in the user's cache folder (`foveal.zoo.cache`) if None.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache_folder() / "replies" if folder is None else Path(folder)
        self._warned = False

    def get(self, request: Mapping[str, Any]) -> str | None:
        """The answer to exactly this request, or None."""
        try:
            stored = json.loads(self._path(request).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(stored, dict) or stored.get("request") != json.loads(_canonical(request)):
            return None
        return stored["reply"] if isinstance(stored.get("reply"), str) else None

    def put(self, request: Mapping[str, Any], reply: str) -> None:
        """Keep the answer; the file is whole or not there."""
        text = json.dumps({"request": request, "reply": reply}, ensure_ascii=True, indent=1)
        try:
            write_atomically(self._path(request), text.encode())
        except OSError as error:
            if not self._warned:
                warnings.warn(f"answers are not kept: {self.folder} cannot be written ({error})", stacklevel=2)
            self._warned = True

    def _path(self, request: Mapping[str, Any]) -> Path:
        name = hashlib.sha256(_canonical(request).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.json"


def _canonical(request: Mapping[str, Any]) -> str:
    return json.dumps(request, sort_keys=True, ensure_ascii=True)
