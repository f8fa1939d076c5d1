"""Measure one paper's claim: all arms of its recipe over the seeds, with a verdict."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from rich.console import Console

    from foveal.catalog.loader import Paper
    from foveal.lab.page import Subject

OUT = Path("foveal-results")
GAP = 2
"""Blanks between two columns of a table."""


def main(
    slug: Annotated[str, tyro.conf.Positional],
    arms: str | None = None,
    seeds: str | None = None,
    smoke: bool = False,
    fresh: bool = False,
    out: Path = OUT,
    json: bool = False,
) -> None:
    """Run the recipe of a paper. After Ctrl-C the same command goes on where it stopped.

    Args:
        slug: the paper, as `foveal list` prints it.
        arms: only these, separated by commas; claims about others are left out.
        seeds: instead of the recipe's three, separated by commas, e.g. 0,1,2,3,4. Fewer than three give no verdict.
        smoke: a couple of steps of every arm, to see that it runs; goes to a folder `smoke` of its own.
        fresh: measure again what an earlier run has finished.
        out: folder for result, pictures and page. With docs/results of a checkout the page goes to docs/methods.
        json: print the result as one JSON document instead of tables.
    """
    chosen = None if arms is None else [name.strip() for name in arms.split(",")]
    numbers = None if seeds is None else seed_list(seeds)
    result, written = measure(slug, chosen, numbers, smoke, fresh, out)
    if json:
        from foveal.cli import print_json

        print_json(result)
        return

    from rich.console import Console

    console = Console()
    print_result(console, result)
    for path in written:
        console.print(f"[dim]wrote[/] {path}", highlight=False, soft_wrap=True)


def seed_list(text: str) -> list[int]:
    """``0,1,2`` -> [0, 1, 2]; ValueError for anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"seeds={text!r}: must be whole numbers separated by commas, such as 0,1,2") from None


def measure(
    slug: str, arms: list[str] | None, seeds: list[int] | None, smoke: bool, fresh: bool, out: Path
) -> tuple[dict[str, Any], list[Path]]:
    """Run the recipe and write what it gave; returns the result and the paths of result file and page."""
    from foveal.catalog import loader

    entry = loader.paper(slug)

    from foveal.lab.progress import CellBar
    from foveal.lab.publishing import check_destination, publish
    from foveal.lab.recipe import load
    from foveal.lab.runner import run_recipe

    recipe = load(slug)
    partial = arms is not None and set(arms) != set(recipe.arms)
    check_destination(out, smoke, partial, len(recipe.seeds if seeds is None else seeds))
    with CellBar(slug) as bar:
        outcome = run_recipe(recipe, arms=arms, seeds=seeds, smoke=smoke, fresh=fresh, watch=bar)
    written = publish(outcome, recipe, subject_of(entry), out / "smoke" if smoke else out)
    return outcome.result, written


def subject_of(entry: Paper) -> Subject:
    """What the catalogue and the method's own file say of the paper."""
    import ast

    from foveal.catalog import loader
    from foveal.cli.show import how_to_use
    from foveal.lab.page import Subject

    part = loader.part_file(entry)
    explanation = ast.get_docstring(ast.parse(part.read_text(encoding="utf-8"))) if part.is_file() else None
    use = how_to_use(entry)[0] if part.is_file() else ""
    return Subject(entry.title, entry.citation, entry.url, entry.summary, use, explanation or "")


def print_result(console: Console, result: dict[str, Any]) -> None:
    """Verdicts, numbers and costs as tables."""
    from rich.text import Text

    from foveal.lab.wording import control_texts

    for table in (claims_table(result), *metrics_tables(result, console.width), costs_table(result)):
        if table.row_count:
            console.print(table)
            console.print()
    for line in control_texts(result):
        console.print(Text(line, style="red"))
    if result["smoke"]:
        console.print("[yellow]a smoke run: everything runs, the numbers mean nothing[/]")
    elif result["partial"]:
        console.print("[yellow]a partial run: claims about arms that were not run are left out[/]")


def claims_table(result: dict[str, Any]) -> Any:
    """One row for each claim."""
    from rich.table import Table
    from rich.text import Text

    from foveal.cli.show import STYLES
    from foveal.lab.wording import claim_text, interval

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("claim", "difference [95 % interval]", "verdict"):
        table.add_column(Text(column))
    for claim in result["claims"]:
        verdict = Text(claim["verdict"], style=STYLES[claim["verdict"]])
        table.add_row(Text(claim_text(claim)), Text(interval(claim)), verdict)
    return table


def metrics_tables(result: dict[str, Any], width: int) -> list[Any]:
    """One row for each arm: mean ± standard deviation of its metrics over the seeds. As many tables as it takes."""
    from foveal.lab.wording import spread

    arms = result["arms"].values()
    metrics = list(dict.fromkeys(metric for arm in arms for metric in arm["metrics"]))
    columns = {
        name: [spread(arm["metrics"][name]) if name in arm["metrics"] else "" for arm in arms] for name in metrics
    }
    before = max(map(len, named_arms(result)))
    groups: list[dict[str, list[str]]] = []
    room = 0
    for name, cells in columns.items():
        wide = max(map(len, [*name.split(), *cells]))  # a name may be broken between words, a number may not
        if wide + GAP > room:
            groups.append({})
            room = width - before
        groups[-1][textwrap.fill(name, wide)] = cells
        room -= wide + GAP
    return [arms_table(result, list(group), list(map(list, zip(*group.values(), strict=True)))) for group in groups]


def costs_table(result: dict[str, Any]) -> Any:
    """One row for each arm: what it used."""
    from foveal.lab.wording import COSTS, HEADERS, cost_text

    arms = result["arms"].values()
    known = [cost for cost in COSTS if any(arm["cost"][cost] is not None for arm in arms)]
    cells = [[cost_text(cost, arm["cost"][cost]) for cost in known] for arm in arms]
    return arms_table(result, [HEADERS[COSTS.index(cost)] for cost in known], cells)


def named_arms(result: dict[str, Any]) -> list[str]:
    return [name + (" (control)" if arm["control"] else "") for name, arm in result["arms"].items()]


def arms_table(result: dict[str, Any], columns: list[str], cells: list[list[str]]) -> Any:
    """The arms' names before the columns; arms that have nothing in them are left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("arm", style="cyan", no_wrap=True)
    for column in columns:
        table.add_column(Text(column), justify="right")
    for name, row in zip(named_arms(result), cells, strict=True):
        if any(row):
            table.add_row(Text(name), *map(Text, row))
    return table
