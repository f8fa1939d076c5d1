"""The house: rooms import only from floors below, methods never import each other, dependencies have safe floors."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import foveal
from foveal.catalog.loader import STAGES, papers

SOURCE = Path(foveal.__file__).parent
CHECKOUT = Path(__file__).parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
METHOD_FILES = [path for stage in STAGES for path in sorted((SOURCE / stage).glob("*.py")) if path.stem != "__init__"]
SAFE_FLOORS = {"torch": "2.10", "transformers": "5.3", "pillow": "12.2"}


def method_of(room: str, name: str) -> str | None:
    """Slug of the method that the file belongs to: it is its file, or a further one whose name starts with the slug."""
    slugs = [paper.slug for paper in papers() if paper.stage == room]
    return max((slug for slug in slugs if name == slug or name.startswith(f"{slug}_")), key=len, default=None)


def foreign_methods(source: str, stage: str, own: str) -> set[str]:
    """Modules of the stages that a method file imports although they are neither its own files nor its stage's.

    A stage shares what no method owns: its ``base.py`` and files whose name is nobody's slug.
    """
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    parts = [module.split(".") for module in modules]
    inside = [part[1:3] for part in parts if part[0] == "foveal" and len(part) >= 3 and part[1] in STAGES]
    return {
        f"{room}.{name}"
        for room, name in inside
        if room != stage or method_of(room, name) not in (None, method_of(stage, own))
    }


def test_rooms_import_only_from_floors_below():
    """In a process of its own, since import-linter switches off all loggers that there are."""
    call = "from importlinter.cli import lint_imports as lint; raise SystemExit(lint(no_cache=True))"
    subprocess.run([sys.executable, "-c", call], cwd=CHECKOUT, check=True)


@pytest.mark.parametrize("path", METHOD_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_methods_do_not_import_each_other(path):
    assert not foreign_methods(path.read_text(encoding="utf-8"), path.parent.name, path.stem)


def test_foreign_methods_are_seen():
    assert foreign_methods("from foveal.connect import limber", "connect", "sitta") == {"connect.limber"}
    assert foreign_methods("import foveal.pretrain.base", "connect", "sitta") == {"pretrain.base"}
    assert not foreign_methods("from foveal.connect.base import x\nfrom foveal.nn.vit import y", "connect", "sitta")
    assert not foreign_methods("from foveal.connect.sitta_captioner import x", "connect", "sitta")
    assert not foreign_methods("from foveal.pretrain.filip_interaction import x", "pretrain", "filip_selection")
    assert foreign_methods("from foveal.pretrain.filip_interaction import x", "pretrain", "dreamlip_captions")
    assert not foreign_methods("from foveal.compress.runtime import x", "compress", "aim")
    assert foreign_methods("from foveal.compress.runtime import x", "decode", "agla") == {"compress.runtime"}
    assert foreign_methods("from foveal.compress.aim import x", "compress", "runtime") == {"compress.aim"}


@pytest.mark.parametrize("package", SAFE_FLOORS)
def test_floors_exclude_known_weaknesses(package):
    requirement = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == package)
    assert str(requirement.specifier) == f">={SAFE_FLOORS[package]}"
