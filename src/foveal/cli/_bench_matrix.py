"""The matrices that `foveal bench` ends some stages with: arms by questions, as table, page and chart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foveal.data.world.phrases import listed
from foveal.lab import figures
from foveal.lab.files import write_atomically
from foveal.lab.progress import CellBar
from foveal.lab.publishing import check_destination, is_published
from foveal.lab.result import write_result
from foveal.lab.runner import run_recipe
from foveal.lab.statistics import paired_difference
from foveal.lab.wording import claim_text, cost_text, interval, number
from foveal.recipes import _pretrain_matrix, _smol_decoders, _smol_tokens

MARKS = {"reproduced": "✓", "inconclusive": "~", "not reproduced": "✗"}
UNASKED = "not asked: all its texts are wrong already"


@dataclass(frozen=True)
class Matrix:
    """What is compared: ``module`` holds RECIPE and COLUMNS, ``baseline`` is the row that the others are coloured by.

    ``costs``: heading -> what a row costs of it, a metric of the arm or "parameters". ``less_is_better``: columns.
    """

    name: str
    module: Any
    title: str
    rows: str
    baseline: str
    costs: Mapping[str, str]
    note: str
    less_is_better: tuple[str, ...] = ()


MATRICES = {
    "matrix": Matrix(
        "pretrain_matrix",
        _pretrain_matrix,
        "Which objective to pre-train with",
        "objective",
        "clip",
        {"parameters": "parameters", "s/step": "s/step", "MiB a step": "MiB"},
        "Parameters: of the model and of what its objective needs in training. Seconds: median over the seeds, with "
        "whatever else the machine did. Memory is counted: weights, gradients, the optimiser's averages, and what the "
        "forward pass keeps.",
    ),
    "tokens": Matrix(
        "smol_tokens",
        _smol_tokens,
        "Which visual tokens to drop",
        "method",
        "full",
        {"FLOPs at 50 %": "FLOPs at 50 %", "FLOPs at 25 %": "FLOPs at 25 %"},
        "FLOPs: of the decoder's prefill and of choosing, in percent of those for the whole prompt.",
        ("CHAIR_i at 25 %",),
    ),
    "decoders": Matrix(
        "smol_decoders",
        _smol_decoders,
        "Which decoder invents less",
        "decoder",
        "greedy",
        {},
        "Greedy computes one pass for each token, vdd and beam3 three, all others two; agla also asks its matcher once "
        "a prompt.",
        ("CHAIR_i",),
    ),
}
"""By their names for ``foveal bench --only``."""


def measure(only: str, smoke: bool, out: Path) -> tuple[dict[str, Any], list[Path]]:
    """Train and ask everything that no earlier call has finished; result, and paths of result, page and chart."""
    matrix = MATRICES[only]
    recipe, name = matrix.module.RECIPE, matrix.name
    check_destination(out, smoke, False, len(recipe.seeds))
    with CellBar(only) as bar:
        outcome = run_recipe(recipe, smoke=smoke, watch=bar)
    command = f"foveal bench --only {only}{' --smoke' if smoke else ''}"
    result = {**outcome.result, "slug": name, "command": command, "columns": matrix.module.COLUMNS}
    folder = out / "smoke" if smoke else out
    page, prefix = folder / f"{name}.md", ""
    if is_published(folder):
        page, prefix = folder.parent / "methods" / f"{name}.md", "../results/"
    drawn = folder / name / "matrix.png"
    write_atomically(drawn, figures.png(chart(matrix, result)))
    write_atomically(page, markdown(matrix, result, f"{prefix}{name}/{drawn.name}").encode())
    write_result(folder / f"{name}.json", result)
    return result, [folder / f"{name}.json", page, drawn]


def cell(result: Mapping[str, Any], row: str, column: str) -> str:
    """Mean with its 95 % interval over seeds, and a mark where a paper's claim was judged; else why there is none."""
    if column not in result["arms"][row]["metrics"]:
        return UNASKED
    values = result["arms"][row]["metrics"][column]
    text = f"{fmean(values):.1f}"
    if len(values) > 1:
        found = paired_difference(values, [0.0] * len(values))
        text += f" [{found.low:.1f}, {found.high:.1f}]"
    mark = verdict(result, row, column)
    return f"{text} {mark}" if mark else text


def verdict(result: Mapping[str, Any], row: str, column: str) -> str:
    """The mark of the claim that this cell bears out, or not."""
    marks = [MARKS[c["verdict"]] for c in result["claims"] if (c["arm"], c["on"]) == (row, column)]
    return marks[0] if marks else ""


def beaten(result: Mapping[str, Any]) -> list[str]:
    """A sentence for every claim whose controls do at least as well as the method."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in result["controls"]:
        if row["wins"]:
            found.setdefault((row["arm"], row["on"]), []).append(row["control"])

    def mean(arm: str, column: str) -> str:
        return f"{arm} ({fmean(result['arms'][arm]['metrics'][column]):.1f})"

    return [
        f"{mean(arm, column)} is no better on {column} than the control{'s' * (len(controls) > 1)} "
        f"{listed([mean(name, column) for name in controls])}."
        for (arm, column), controls in found.items()
    ]


def costs(matrix: Matrix, result: Mapping[str, Any], row: str) -> list[str]:
    """What the row costs, by the headings of the matrix: medians over the seeds."""
    arm, found = result["arms"][row], []
    for name in matrix.costs.values():
        if name == "parameters":
            found.append(cost_text(name, arm["cost"][name]))
        else:
            value = median(arm["metrics"][name])
            found.append(number(value) if value < 10 else f"{value:,.0f}")
    return found


def label(result: Mapping[str, Any], row: str) -> str:
    return f"{row} (control)" if result["arms"][row]["control"] else row


def print_matrix(matrix: Matrix, console: Console, result: Mapping[str, Any]) -> None:
    """For the terminal, turned round: questions are rows there, since objectives have short names."""
    table = Table(
        box=None, pad_edge=False, header_style="bold", title="95 % intervals: see the page", title_style="dim"
    )
    table.add_column("", style="cyan", no_wrap=True)
    for row in result["arms"]:
        table.add_column(Text(row), justify="right")
    for column in result["columns"]:
        cells = []
        for row, arm in result["arms"].items():
            known = column in arm["metrics"]
            mean = f"{fmean(arm['metrics'][column]):.1f}" if known else "–"
            cells.append(Text(f"{mean} {verdict(result, row, column)}".strip()))
        table.add_row(Text(column), *cells)
    paid = zip(*(costs(matrix, result, row) for row in result["arms"]), strict=True)
    for name, line in zip(matrix.costs, paid, strict=True):
        table.add_row(Text(name), *map(Text, line), style="dim")
    console.print(table)
    console.print(Text("✓ reproduced   ~ inconclusive   ✗ not reproduced: the claims on the page", style="dim"))
    for sentence in beaten(result):
        console.print(Text(sentence, style="red"))
    if result["smoke"]:
        console.print("[yellow]a smoke run: everything runs, the numbers mean nothing[/]")


def markdown(matrix: Matrix, result: Mapping[str, Any], picture: str) -> str:
    """The page: what won where, first the table, then the claims and how it was measured."""
    columns = list(result["columns"])
    rows = [
        [label(result, row), *(cell(result, row, column) for column in columns), *costs(matrix, result, row)]
        for row in result["arms"]
    ]
    blocks = [f"# {matrix.title}"]
    if result["smoke"]:
        blocks.append("**A smoke run: the numbers mean nothing.**")
    elif told := beaten(result):
        blocks.append("\n".join(f"- **{sentence}**" for sentence in told))
    seeds = len(result["seeds"])
    blocks += [
        f"Percent, mean over {seeds} seed{'s' * (seeds > 1)} [95 % interval]. ✓ reproduced, ~ inconclusive, ✗ not "
        "reproduced: the cell in which a claim (below) says that it wins, paired by seed.",
        _table([matrix.rows, *columns, *matrix.costs], rows),
        f"![Every {matrix.rows} and question: the mean, coloured by its difference from {matrix.baseline}]({picture})",
        "## Questions",
        "\n".join(f"- **{name}**: {meaning}." for name, meaning in result["columns"].items()),
        "## Claims",
        _table(
            ["claim", "difference [95 % interval]", "verdict", "the paper reports"],
            [[claim_text(c), interval(c), c["verdict"], c["published"] or "–"] for c in result["claims"]],
        ),
        "## How it was measured",
        (matrix.module.__doc__ or "").strip(),
        f"{matrix.note} {_hardware(result)}",
        f"Measure it again:\n\n```bash\n{result['command']}\n```",
    ]
    return "\n\n".join(blocks) + "\n"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _hardware(result: Mapping[str, Any]) -> str:
    found = result["hardware"]
    return f"{found['cpu']}, {found['cores']} cores, {found['threads']} threads; {found['gpu'] or 'no GPU'}."


@figures.in_house_style
def chart(matrix: Matrix, result: Mapping[str, Any]) -> Any:
    """Means, coloured by their difference from the baseline; a frame where a claim says that it wins."""
    rows, columns = list(result["arms"]), list(result["columns"])
    metrics = {row: result["arms"][row]["metrics"] for row in rows}
    gains = np.full((len(rows), len(columns)), np.nan)
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            if column in metrics[row]:
                more = fmean(metrics[row][column]) - fmean(metrics[matrix.baseline][column])
                gains[y, x] = -more if column in matrix.less_is_better else more
    figure, axis = figures.subplots(1, 1, max(8.6, 0.95 * len(columns)), 0.6 + 0.42 * len(rows))
    most = max(float(np.nanmax(np.abs(gains))), 1.0)
    shown = axis.imshow(gains, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            if column not in metrics[row]:
                axis.text(x, y, "n/a", ha="center", va="center", color="#777777", fontsize=8)
                continue
            mark = verdict(result, row, column)
            colour = "white" if abs(gains[y, x]) > 0.6 * most else "black"
            axis.text(
                x, y, f"{fmean(metrics[row][column]):.1f} {mark}", ha="center", va="center", color=colour, fontsize=8.5
            )
            if mark:
                axis.add_patch(
                    Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, fill=False, edgecolor="black", linewidth=1.6)
                )
    wrapped = [fill(column.replace(" %", "\xa0%"), 9, break_long_words=False) for column in columns]
    axis.set_xticks(range(len(columns)), wrapped, fontsize=8.5)
    axis.set_yticks(range(len(rows)), [label(result, row) for row in rows])
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    below = " (below, if less is better)" * bool(matrix.less_is_better)
    figure.colorbar(shown, ax=axis, label=f"points above {matrix.baseline}{below}", pad=0.01)
    return figure
