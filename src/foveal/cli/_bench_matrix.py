"""The matrix that ends `foveal bench --stage pretrain`: objectives by questions, as table, page and chart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foveal.lab import figures
from foveal.lab.files import write_atomically
from foveal.lab.progress import CellBar
from foveal.lab.publishing import check_destination, is_published
from foveal.lab.result import write_result
from foveal.lab.runner import run_recipe
from foveal.lab.statistics import paired_difference
from foveal.lab.wording import claim_text, control_texts, cost_text, interval, number
from foveal.recipes import _pretrain_matrix as matrix

NAME, BASELINE = "pretrain_matrix", "clip"
MARKS = {"reproduced": "✓", "inconclusive": "~", "not reproduced": "✗"}
COSTS = ("parameters", "s/step", "MiB a step")
SHUFFLED = "not asked: all its texts are wrong already"


def measure(smoke: bool, out: Path) -> tuple[dict[str, Any], list[Path]]:
    """Train and ask everything that no earlier call has finished; result, and paths of result, page and chart."""
    recipe = matrix.RECIPE
    check_destination(out, smoke, False, len(recipe.seeds))
    with CellBar("matrix") as bar:
        outcome = run_recipe(recipe, smoke=smoke, watch=bar)
    command = f"foveal bench --only matrix{' --smoke' if smoke else ''}"
    result = {**outcome.result, "slug": NAME, "command": command, "columns": matrix.COLUMNS}
    folder = out / "smoke" if smoke else out
    page, prefix = folder / f"{NAME}.md", ""
    if is_published(folder):
        page, prefix = folder.parent / "methods" / f"{NAME}.md", "../results/"
    drawn = folder / NAME / "matrix.png"
    write_atomically(drawn, figures.png(chart(result)))
    write_atomically(page, markdown(result, f"{prefix}{NAME}/{drawn.name}").encode())
    write_result(folder / f"{NAME}.json", result)
    return result, [folder / f"{NAME}.json", page, drawn]


def cell(result: Mapping[str, Any], row: str, column: str) -> str:
    """Mean with its 95 % interval over seeds, and a mark where a paper's claim was judged; else why there is none."""
    if column not in result["arms"][row]["metrics"]:
        return SHUFFLED
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


def costs(result: Mapping[str, Any], row: str) -> list[str]:
    """Numbers in model and objective, seconds and memory of a step."""
    arm = result["arms"][row]
    seconds, memory = (median(arm["metrics"][name]) for name in ("s/step", "MiB"))
    return [cost_text("parameters", arm["cost"]["parameters"]), number(seconds), f"{memory:,.0f}"]


def label(result: Mapping[str, Any], row: str) -> str:
    return f"{row} (control)" if result["arms"][row]["control"] else row


def print_matrix(console: Console, result: Mapping[str, Any]) -> None:
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
    for name, line in zip(COSTS, zip(*(costs(result, row) for row in result["arms"]), strict=True), strict=True):
        table.add_row(Text(name), *map(Text, line), style="dim")
    console.print(table)
    console.print(Text("✓ reproduced   ~ inconclusive   ✗ not reproduced, against clip", style="dim"))
    for sentence in control_texts(result):
        console.print(Text(sentence, style="red"))
    if result["smoke"]:
        console.print("[yellow]a smoke run: everything runs, the numbers mean nothing[/]")


def markdown(result: Mapping[str, Any], picture: str) -> str:
    """The page: what won where, first the table, then the claims and how it was measured."""
    columns = list(result["columns"])
    rows = [
        [label(result, row), *(cell(result, row, column) for column in columns), *costs(result, row)]
        for row in result["arms"]
    ]
    blocks = ["# Which objective to pre-train with"]
    if result["smoke"]:
        blocks.append("**A smoke run: the numbers mean nothing.**")
    elif told := control_texts(result):
        blocks.append(f"**{' '.join(told)}**")
    seeds = len(result["seeds"])
    blocks += [
        f"Percent, mean over {seeds} seed{'s' * (seeds > 1)} [95 % interval]. ✓ reproduced, ~ inconclusive, ✗ not "
        "reproduced: the cell in which a paper says that it wins, against `clip` and paired by seed.",
        _table(["objective", *columns, *COSTS], rows),
        f"![Every objective and question: the mean, coloured by its difference from clip]({picture})",
        "## Questions",
        "\n".join(f"- **{name}**: {meaning}." for name, meaning in result["columns"].items()),
        "## Claims",
        _table(
            ["claim", "difference [95 % interval]", "verdict", "the paper reports"],
            [[claim_text(c), interval(c), c["verdict"], c["published"] or "–"] for c in result["claims"]],
        ),
        "## How it was measured",
        (matrix.__doc__ or "").strip(),
        "Parameters: of the model and of what its objective needs in training. Seconds: median over the seeds, with "
        "whatever else the machine did. Memory is counted: weights, gradients, the optimiser's averages, and what the "
        f"forward pass keeps. {_hardware(result)}",
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
def chart(result: Mapping[str, Any]) -> Any:
    """Means, coloured by the paired difference from CLIP; a frame where a paper claims to win."""
    rows, columns = list(result["arms"]), list(result["columns"])
    metrics = {row: result["arms"][row]["metrics"] for row in rows}
    gains = np.full((len(rows), len(columns)), np.nan)
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            if column in metrics[row]:
                gains[y, x] = fmean(metrics[row][column]) - fmean(metrics[BASELINE][column])
    figure, axis = figures.subplots(1, 1, 8.6, 0.6 + 0.42 * len(rows))
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
    axis.set_xticks(range(len(columns)), [column.replace(" ", "\n") for column in columns])
    axis.set_yticks(range(len(rows)), [label(result, row) for row in rows])
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    figure.colorbar(shown, ax=axis, label="points above clip", pad=0.01)
    return figure
