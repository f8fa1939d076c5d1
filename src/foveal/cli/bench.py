"""Measure the claims of many papers, one recipe after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from foveal.catalog.loader import Stage
from foveal.cli.run import OUT

ENDS = {"pretrain": "matrix", "compress": "tokens", "decode": "decoders"}
"""Stage -> the matrix that it ends in, see `foveal.cli._bench_matrix`."""
ADAPT = "adapt"


def main(stage: Stage | None = None, only: str | None = None, smoke: bool = False, out: Path = OUT) -> None:
    """Run every recipe there is. After Ctrl-C the same command goes on where it stopped.

    Exit code 1 when a recipe failed; the others are run all the same. The stage pretrain ends in a matrix: every
    objective on the same data, towers and steps, eight questions, with intervals, costs and a chart. The stages
    compress and decode end in matrices of every method on smol-vl, the stage adapt in a table and a chart of accuracy
    against labels and against trained numbers.

    Args:
        stage: only papers of this stage.
        only: only these papers, separated by commas; "matrix" is the matrix of pre-training alone, "tokens" that of
            compressing, "decoders" that of decoding, "adapt" the table of adapting alone, from the results there are.
        smoke: a couple of steps of every arm, to see that everything runs.
        out: folder for results, pictures and pages.
    """
    rows = (
        [] if only in (*ENDS.values(), ADAPT) else [(slug, *attempt(slug, smoke, out)) for slug in chosen(stage, only)]
    )

    from rich.console import Console

    console = Console()
    if rows:
        console.print(summary(rows))
    for ending, name in ENDS.items():
        if only == name or (stage == ending and only is None):
            from foveal.cli._bench_matrix import MATRICES, measure, print_matrix

            ended(console, partial(print_matrix, MATRICES[name]), *measure(name, smoke, out))
    if only == ADAPT or (stage == "adapt" and only is None and not all(error for *_, error in rows)):
        from foveal.cli._bench_adapt import print_summary, summarize

        ended(console, print_summary, *summarize(smoke, out))
    if any(error for _, _, _, error in rows):
        raise SystemExit(1)


def chosen(stage: Stage | None, only: str | None) -> list[str]:
    """Papers that have a recipe, in the catalogue's order. ValueError when a named one has none or nothing is left."""
    from foveal.catalog import loader

    named = None if only is None else [slug.strip() for slug in only.split(",")]
    for slug in named or ():
        if not loader.recipe_file(loader.paper(slug)).is_file():
            raise ValueError(f"only={only!r}: {slug} has no recipe yet; `foveal list` shows which have")
    entries = [entry for entry in loader.papers() if loader.recipe_file(entry).is_file()]
    slugs = [e.slug for e in entries if stage in (None, e.stage) and (named is None or e.slug in named)]
    if not slugs:
        raise ValueError(f"stage={stage!r}, only={only!r}: no paper has a recipe and fits; `foveal list` shows all")
    return slugs


def attempt(slug: str, smoke: bool, out: Path) -> tuple[str, float, str]:
    """Verdict, seconds and, when the recipe failed, the error in one line."""
    from foveal.catalog.loader import verdict
    from foveal.cli.run import measure

    started = time.monotonic()
    try:
        result, _ = measure(slug, None, None, smoke, False, out)
    except Exception as failure:  # one broken recipe must not keep the others from being measured
        return "failed", time.monotonic() - started, " ".join(f"{type(failure).__name__}: {failure}".split())
    word = "runs" if smoke else verdict(claim["verdict"] for claim in result["claims"])
    return word, time.monotonic() - started, ""


def ended(console: Any, show: Callable[[Any, Any], None], result: dict[str, Any], written: list[Path]) -> None:
    """Print what all the recipes of a stage came to, and where it is."""
    show(console, result)
    for path in written:
        console.print(f"[dim]wrote[/] {path}", highlight=False, soft_wrap=True)


def summary(rows: list[tuple[str, str, float, str]]) -> Any:
    """One row for each recipe."""
    from rich.table import Table
    from rich.text import Text

    from foveal.cli.show import STYLES

    styles = STYLES | {"failed": "bold red", "runs": "green"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("slug", style="cyan", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("seconds", justify="right", style="dim")
    if any(error for *_, error in rows):
        table.add_column("error")
    for slug, verdict, seconds, error in rows:
        cells = [Text(slug), Text(verdict, style=styles[verdict]), Text(f"{seconds:.0f}")]
        table.add_row(*cells, *([Text(error)] if error else []))
    return table
