"""What a number depends on beside the seed: versions, hardware, and the source that a recipe runs."""

import ast
import hashlib
import os
import platform
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

import foveal

PACKAGES = ("torch", "transformers", "numpy", "scipy")
UNMEASURED = ("foveal.lab", "foveal.catalog", "foveal.cli")  # these report numbers, they do not make them


def versions() -> dict[str, str]:
    """Of foveal, Python and the packages that do the computing."""
    own = {"foveal": foveal.__version__, "python": platform.python_version()}
    return own | {name: version(name) for name in PACKAGES}


def hardware() -> dict[str, str | int | None]:
    """Processor, its cores, torch's threads, the GPU if there is one, and the operating system."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def source_digest(slug: str) -> str:
    """SHA-256 of the recipe, of every file of foveal that it imports, directly or through others, and of `Run`.

    A package counts with all its files, since its names load from whichever of them defines them. Data files and other
    packages are not looked at; `versions` covers the latter.
    """
    digest = hashlib.sha256()
    for path in sorted(_closure(f"foveal.recipes.{slug}") | _files("foveal.lab.run")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _closure(module: str) -> set[Path]:
    found: set[Path] = set()
    todo, seen = [module], set()
    while todo:
        name = todo.pop()
        if name in seen or name.startswith(UNMEASURED) or name == "foveal":
            continue
        seen.add(name)
        for path in _files(name) - found:
            found.add(path)
            todo += _imports(path, path.stat().st_mtime_ns)
    return found


def _files(module: str) -> set[Path]:
    """The file of a module, all files of a package, nothing for a name that is neither."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # a class or function of a module: its file is asked for by its own name
        return set()
    if spec is None or spec.origin is None:
        return set()
    folders = spec.submodule_search_locations
    if folders is None:
        return {Path(spec.origin)}
    return {path for folder in folders for path in Path(folder).rglob("*.py")}


@cache
def _imports(path: Path, changed: int) -> tuple[str, ...]:
    """Modules of foveal that a file imports; ``changed``, its time of change, is there for the cache."""
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("foveal."))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "foveal":
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            known = [name for name in submodules if _files(name)]
            yield from known
            if len(known) < len(submodules):  # some names are the module's own
                yield node.module
