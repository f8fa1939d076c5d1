"""The user's cache folder: results of slow, deterministic conversions. Deleting it is always safe."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """``$FOVEAL_CACHE``, else ``$XDG_CACHE_HOME/foveal``, else ``~/.cache/foveal``."""
    if chosen := os.environ.get("FOVEAL_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foveal"


def cached_folder(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, made by ``make(folder)`` on first use.

    It appears by one rename, so a killed or concurrent run never leaves a half-written one. Where the cache cannot be
    written (read-only home, full disk) a temporary folder serves this process.
    """
    target = cache_folder() / name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError:
        aside = Path(tempfile.mkdtemp(prefix="foveal-"))
        make(aside)
        return aside
    try:
        make(aside)
        aside.rename(target)
    except OSError:
        if not target.is_dir():  # somebody else's rename may have come first; anything else is a real failure
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target
