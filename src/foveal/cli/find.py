"""Papers that answer a need in your own words."""

from typing import Annotated

import tyro


def main(need: Annotated[str, tyro.conf.Positional], k: int = 5, json: bool = False) -> None:
    """Search the catalogue by meaning.

    Args:
        need: what you want, e.g. "fewer visual tokens without training".
        k: how many papers.
        json: print one JSON document instead of a table.
    """
    from foveal.catalog.loader import status
    from foveal.catalog.search import find

    found = [(entry, score, status(entry.slug)) for entry, score in find(need, k)]
    if json:
        from dataclasses import asdict

        from foveal.cli import print_json

        print_json([{**asdict(entry), "score": round(score, 4), "status": state} for entry, score, state in found])
        return

    from rich.console import Console
    from rich.table import Table

    from foveal.cli.show import STYLES

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("slug", no_wrap=True, style="cyan")
    table.add_column("score", justify="right", style="dim")
    table.add_column("status", no_wrap=True)
    table.add_column("what it does for you")
    for entry, score, state in found:
        table.add_row(entry.slug, f"{score:.2f}", f"[{STYLES[state]}]{state}[/]", entry.summary)
    console = Console()
    console.print(table)
    console.print(f"[dim]more about the first: foveal show {found[0][0].slug}[/]")
