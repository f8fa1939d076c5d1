"""Every `foveal` command that README, CONTRIBUTING or a page prints must parse; the cheap ones are run."""

import functools
import importlib
import operator
import re
import shlex
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
import tyro

from foveal.cli import COMMANDS, main

CHECKOUT = Path(__file__).parents[1]
PAGES = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
CHEAP = {"list", "show", "find"}
INSTALL_AND_TEST = "pip install -c constraints.txt -e '.[test]' && pytest"


def bash_commands(markdown: str) -> list[str]:
    """The single commands of all ```bash blocks: comments dropped, chains split."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```$", markdown, flags=re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [part.strip() for line in lines if line and not line.startswith("#") for part in line.split("&&")]


def foveal_arguments() -> list[tuple[str, ...]]:
    """The arguments of every printed `foveal` command, each once."""
    found = {
        tuple(shlex.split(command, comments=True)[1:])
        for page in PAGES
        for command in bash_commands(page.read_text(encoding="utf-8"))
        if command.split()[0] == "foveal"
    }
    return sorted(found)


def parse(arguments: tuple[str, ...]) -> None:
    """Parse the arguments as the command would, without running it; SystemExit(2) when they do not fit."""
    command, *rest = arguments
    if command not in COMMANDS:
        raise SystemExit(2)
    parsed_only = idle(importlib.import_module(f"foveal.cli.{command}").main)
    tyro.cli(parsed_only, prog=f"foveal {command}", args=rest, config=(tyro.conf.FlagCreatePairsOff,))


def idle(command: Any) -> Any:
    """The command with its real signature, which tyro reads, and a body that does nothing; so for each of a group."""
    if not get_args(command):
        return functools.wraps(command)(lambda *_, **__: None)
    named = [config for part in get_args(command) for config in part.__metadata__ if hasattr(config, "name")]
    parts = [
        Annotated[Any, tyro.conf.subcommand(config.name, constructor=idle(config.constructor_factory()))]
        for config in named
    ]
    return functools.reduce(operator.or_, parts, Annotated[None, tyro.conf.Suppress])


@pytest.mark.parametrize("arguments", foveal_arguments(), ids=" ".join)
def test_printed_command_parses(arguments):
    if arguments[0].startswith("--"):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
    else:
        parse(arguments)


@pytest.mark.parametrize("arguments", [a for a in foveal_arguments() if a[0] in CHEAP], ids=" ".join)
def test_cheap_command_runs(arguments, capsys):
    main(arguments)
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    "wrong",
    [("lst",), ("list", "--stages", "connect"), ("find",), ("find", "a", "--k", "x"), ("curate", "tldr", "--x")],
)
def test_wrong_commands_are_seen(wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(wrong)
    assert stopped.value.code == 2


def test_blocks_are_read():
    text = "a\n```bash\npip install x && foveal list  # all\n\n# note\nfoveal show \\\n  clip\n```\n"
    text += "1. indented\n\n   ```bash\n   ls\n   ```\n```python\nfoveal\n```\n"
    assert bash_commands(text) == ["pip install x", "foveal list  # all", "foveal show    clip", "ls"]
    assert len(foveal_arguments()) >= 12


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", ".ci/run", "docs/index.md"])
def test_the_tests_are_started_the_same_way_everywhere(page):
    assert INSTALL_AND_TEST in (CHECKOUT / page).read_text(encoding="utf-8")
