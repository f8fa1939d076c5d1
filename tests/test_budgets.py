"""Budgets that keep the project readable and quick to start; they are counted here so that they cannot drift."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import foveal
from foveal.catalog.loader import STAGES
from foveal.cli import COMMANDS

SOURCE = Path(foveal.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
ANYWHERE, METHOD, RECIPE, FUNCTION = 400, 350, 100, 60


def allowed_lines(path: Path) -> int:
    """The line budget of a file, by the room it is in."""
    room = path.relative_to(SOURCE).parts[0]
    return RECIPE if room == "recipes" else METHOD if room in STAGES else ANYWHERE


def long_functions(source: str) -> list[str]:
    """Functions over budget: lines from the first after the docstring to the last."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body[0]
            length = node.end_lineno - first.lineno + 1
            if length > FUNCTION:
                found.append(f"{node.name} has {length} lines")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_file_and_function_lengths(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= allowed_lines(path)
    assert not long_functions(source)


def test_the_counter_counts():
    body = "\n".join("    x = 1" for _ in range(FUNCTION + 1))
    assert long_functions(f"def f():\n{body}\n") == [f"f has {FUNCTION + 1} lines"]
    assert not long_functions(f'def f():\n    """One\n    two."""\n{body[:-10]}\n')
    assert allowed_lines(SOURCE / "recipes" / "clip.py") == RECIPE
    assert allowed_lines(SOURCE / "connect" / "limber.py") == METHOD


def test_no_room_called_utils():
    assert not [path for path in SOURCE.rglob("*") if path.stem in ("utils", "util", "helpers", "misc", "common")]


def test_torch_is_not_imported_by_foveal_or_any_help():
    """Seconds flicker, `sys.modules` does not."""
    script = f"""
import contextlib, io, sys
import foveal, foveal.catalog.loader
assert "torch" not in sys.modules, "import foveal"
from foveal.cli import main
for arguments in [["--help"], ["--version"], *([command, "--help"] for command in {sorted(COMMANDS)!r})]:
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main(arguments)
    assert said.getvalue(), arguments
    assert "torch" not in sys.modules, arguments
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
