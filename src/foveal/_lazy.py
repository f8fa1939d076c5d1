"""Names that load on first use: ``import foveal`` must not cost a second of ``import torch``.

A stage folder has no import list. `lazy_names` reads (parses, does not run) the files of the folder once and
answers ``foveal.connect.SittaMapper`` by importing only the file that defines it.
"""

import ast
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def defined_names(path: Path) -> list[str]:
    """Public names of a module: its ``__all__`` if it has one, else its top-level classes, functions and constants."""
    found: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            if names == ["__all__"] and node.value is not None:
                return list(ast.literal_eval(node.value))
            found.extend(names)
    return [name for name in found if not name.startswith("_")]


def lazy_names(package: str, folders: Iterable[str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for the package: submodules by name, then public names of its files.

    A name that ``base.py`` defines is taken from there. A name that two method files define is ambiguous
    and raises AttributeError naming both: import it from the file instead.
    """
    files = {path.stem: path for folder in folders for path in sorted(Path(folder).glob("*.py"))}
    files.pop("__init__", None)
    owners: dict[str, list[str]] = {}

    def index() -> dict[str, list[str]]:
        if not owners:
            for stem, path in files.items():
                for name in defined_names(path):
                    owners.setdefault(name, []).append(stem)
        return owners

    def get(name: str) -> Any:
        if name in files:
            return importlib.import_module(f"{package}.{name}")
        homes = [] if name.startswith("_") else index().get(name, [])
        if "base" in homes:
            homes = ["base"]
        if len(homes) == 1:
            return getattr(importlib.import_module(f"{package}.{homes[0]}"), name)
        if homes:
            places = " and ".join(f"{package}.{home}" for home in homes)
            raise AttributeError(f"{name!r} is defined by {places}: import it from one of them")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted({*files, *index()})
