"""The ``foveal`` command. One file per command: its ``main`` is the command, its docstring's first line the help line.

Nothing is imported before the command is known, so ``foveal --help`` answers at once.
"""

import ast
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS = {
    path.stem: path for path in sorted(Path(__file__).parent.glob("*.py")) if not path.stem.startswith("_")
}  # fmt: skip
BAD_INPUT = (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


def _help_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {_help_line(path)}" for name, path in COMMANDS.items()]
    return "\n".join(["usage: foveal COMMAND [OPTIONS]", "", *lines, "", "foveal COMMAND --help lists the options."])


def print_json(value: object) -> None:
    """One JSON document on standard output; everything meant for people goes to standard error."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Exit codes: 0 done, 1 failed, 2 bad input (one line says what), 130 interrupted."""
    arguments = [*(sys.argv[1:] if arguments is None else arguments)]  # the command file list.py hides the builtin
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        raise SystemExit(0 if arguments else 2)
    if arguments[0] == "--version":
        from foveal import __version__

        print(__version__)
        return
    command, *rest = arguments
    if command not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; choose one of {', '.join(COMMANDS)}"
        _fail(f"unknown command {command!r}{hint}", 2)
    import tyro

    function = importlib.import_module(f"foveal.cli.{command}").main
    try:
        try:
            tyro.cli(function, prog=f"foveal {command}", args=rest, config=(tyro.conf.FlagCreatePairsOff,))
        finally:
            sys.stdout.flush()  # at the interpreter's end nothing could be done about a closed pipe
    except BAD_INPUT as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted: finished steps are kept, nothing is half-written", 130)
    except BrokenPipeError:  # whoever reads, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter's last flush fails too
        raise SystemExit(1) from None  # as rich does where it prints


def _fail(message: str, code: int) -> None:
    one_line = " ".join(str(message).split())
    print(f"foveal: {one_line}", file=sys.stderr)
    raise SystemExit(code)
