"""The 87 papers and how far foveal has each."""

from foveal.catalog.loader import Stage, Status


def main(stage: Stage | None = None, status: Status | None = None, json: bool = False) -> None:
    """List the catalogue.

    Args:
        stage: only papers of this stage.
        status: only papers this far: planned, part (code), recipe (code and measurement) or the lab's verdict.
        json: print one JSON document instead of a table.
    """
    from foveal.catalog import loader

    rows = [(entry, loader.status(entry.slug)) for entry in loader.papers() if stage in (None, entry.stage)]
    rows = [(entry, state) for entry, state in rows if status in (None, state)]
    if json:
        from dataclasses import asdict

        from foveal.cli import print_json

        print_json([{**asdict(entry), "status": state} for entry, state in rows])
        return
    _print_table(rows)


def _print_table(rows: list) -> None:
    from collections import Counter

    from rich.console import Console
    from rich.table import Table

    from foveal.cli.show import STYLES

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("slug", no_wrap=True, style="cyan")
    table.add_column("stage", no_wrap=True, style="dim")
    table.add_column("status", no_wrap=True)
    table.add_column("what it does for you")
    for entry, state in rows:
        table.add_row(entry.slug, entry.stage, f"[{STYLES[state]}]{state}[/]", entry.summary)
    counts = Counter(state for _, state in rows)
    total = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    console = Console()
    if rows:
        console.print(table)
        console.print()
    console.print(f"[bold]{len(rows)} papers[/]" + (f": {total}" if rows else "; `foveal list` shows all"))
