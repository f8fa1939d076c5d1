"""One paper: what it is for, how to use it here, what the lab measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from rich.console import Console

    from foveal.catalog.loader import Paper

STYLES = {
    "planned": "dim",
    "part": "yellow",
    "recipe": "yellow",
    "reproduced": "green",
    "mixed": "magenta",
    "inconclusive": "yellow",
    "not reproduced": "red",
}
"""Colour of each status, in every table."""


def main(slug: Annotated[str, tyro.conf.Positional], json: bool = False) -> None:
    """Show one paper of the catalogue.

    Args:
        slug: its short name, as `foveal list` prints it.
        json: print one JSON document instead of text.
    """
    from dataclasses import asdict

    from foveal.catalog import loader

    entry = loader.paper(slug)
    state, found = loader.status(slug), loader.result(slug)
    if json:
        from foveal.cli import print_json

        card = {**asdict(entry), "url": entry.url, "status": state, "use": how_to_use(entry), "result": found}
        print_json(card)
        return

    from rich.console import Console
    from rich.text import Text

    console = Console()
    console.print(Text(entry.title, style="bold"))
    console.print(Text(f"{entry.venue} · {entry.url}", style="dim"))
    console.print()
    console.print(Text(entry.summary))
    console.print()
    console.print(f"[dim]stage [/] {entry.stage}    [dim]status[/]  [{STYLES[state]}]{state}[/]")
    console.print()
    for line in how_to_use(entry):
        console.print(Text(f"  {line}", style="cyan"), soft_wrap=True)
    if found:
        _print_claims(console, found)


def how_to_use(entry: Paper) -> list[str]:
    """What to type: the import of the part (its first classes, else functions), then the command that measures it."""
    from foveal._lazy import defined_names
    from foveal.catalog import loader

    part = loader.part_file(entry)
    if not part.is_file():
        return ["not written yet: CONTRIBUTING.md shows how a method is added"]
    names = [name for name in defined_names(part) if not name.isupper()]
    names.sort(key=lambda name: not name[0].isupper())  # stable: classes first, each kind in the file's order
    lines = [f"from foveal.{entry.stage}.{entry.slug} import {', '.join(names[:3])}"]
    if loader.recipe_file(entry).is_file():
        lines.append(f"foveal run {entry.slug}")
    return lines


def _print_claims(console: Console, found: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("claim", "measured by", "difference [95 % interval]", "verdict"):
        table.add_column(column)
    for claim in found["claims"]:
        low, high = claim["interval"]
        cells = (
            f"{claim['arm']} beats {claim['beats']}",
            claim["on"],
            f"{claim['difference']:+.3g} [{low:+.3g}, {high:+.3g}]",
        )
        table.add_row(*map(Text, cells), Text(claim["verdict"], style=STYLES[claim["verdict"]]))
    console.print()
    console.print(table)
