"""What ends `foveal bench --stage adapt`: accuracy against labels and against trained numbers, from result files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from foveal.cli._bench_adapt_figures import TASKS, Row, rows_of
from foveal.lab import figures
from foveal.lab.files import write_atomically
from foveal.lab.publishing import check_destination, is_published
from foveal.lab.result import FEWEST_SEEDS, write_result
from foveal.lab.wording import cost_text

NAME = "adapt"
COLUMNS = ("method", "arm", "accuracy, %", "labels", "trained", "question; what a label is")
ALIGNED = ("---", "---", "---:", "---:", "---:", "---")
MARKERS = "osD^v<>PX*"
ABOUT = (
    "Each method answers a question of its own, on pictures of its own: accuracies compare within a method, not "
    "between two. Bold is the method, the others are what its paper compares it with. Accuracy: mean over the seeds "
    "[95 % interval]. Labels: pictures with an answer that training or search was given. Trained: numbers that "
    "training changes; – where the result file does not say."
)


def summarize(smoke: bool, out: Path) -> tuple[Row, list[Path]]:
    """What the result files in ``out`` say, and the paths of file, page and chart. ValueError without any result."""
    check_destination(out, smoke, False, FEWEST_SEEDS)
    folder = out / "smoke" if smoke else out
    rows, missing, measured = list[Row](), dict[str, str](), dict[str, Row]()
    for slug in TASKS:
        path = folder / f"{slug}.json"
        if not path.is_file():
            missing[slug] = f"not measured yet, `foveal run {slug}`"
            continue
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            of_method, lacking = rows_of(slug, result)
            measured[slug] = {name: result[name] for name in ("date", "seeds", "source")}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is no result of the lab ({error!r}): write it again, `foveal run {slug}`"
            ) from error
        rows += of_method
        missing |= {slug: f"its result lacks {', '.join(lacking)}"} if lacking else {}
    if not rows:
        raise ValueError(f"out={out}: holds no result of {', '.join(TASKS)}; run `foveal bench --stage adapt` first")
    command = f"foveal bench --only {NAME}{' --smoke' if smoke else ''}"
    found = {"command": command, "smoke": smoke, "rows": rows, "missing": missing, "measured": measured}
    page, picture = folder / f"{NAME}.md", f"{NAME}.png"
    if is_published(folder):
        page, picture = folder.parent / "methods" / f"{NAME}.md", f"../results/{NAME}.png"
    write_atomically(folder / f"{NAME}.png", figures.png(chart(rows)))
    write_atomically(page, markdown(found, picture).encode())
    write_result(folder / f"{NAME}.json", found)
    return found, [folder / f"{NAME}.json", page, folder / f"{NAME}.png"]


def cells(row: Row) -> list[str]:
    """The entries under `COLUMNS`."""
    accuracy = f"{row['accuracy']:.1f}"
    if row["interval"]:
        accuracy += " [{:.1f}, {:.1f}]".format(*row["interval"])
    labels = "–" if row["labels"] is None else f"{row['labels']}"
    return [row["slug"], row["arm"], accuracy, labels, cost_text("parameters", row["trained"]), TASKS[row["slug"]].what]


def print_summary(console: Console, found: Mapping[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, rule in zip(COLUMNS, ALIGNED, strict=True):
        table.add_column(Text(column), justify="right" if rule.endswith(":") else "left")
    for row in found["rows"]:
        table.add_row(*map(Text, cells(row)), style="bold" if row["method"] else None)
    console.print(table)
    for slug, reason in found["missing"].items():
        console.print(Text(f"{slug}: {reason}", style="yellow"))
    if found["smoke"]:
        console.print("[yellow]a smoke run: everything runs, the numbers mean nothing[/]")


def markdown(found: Mapping[str, Any], picture: str) -> str:
    """The page: table, chart, and what is missing."""
    lines: list[tuple[str, ...]] = [COLUMNS, ALIGNED]
    for row in found["rows"]:
        slug, arm, *rest = cells(row)
        lines.append((f"`{slug}`", f"**{arm}**" if row["method"] else arm, *rest))
    blocks = ["# What labels and trained numbers buy"]
    blocks += ["**A smoke run: the numbers mean nothing.**"] if found["smoke"] else []
    blocks += [ABOUT, "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    blocks += [f"![Accuracy against labels and against trained numbers, a line for each method]({picture})"]
    if found["missing"]:
        blocks += ["Missing:", "\n".join(f"- `{slug}`: {reason}." for slug, reason in found["missing"].items())]
    blocks += [f"Made from the result files of the methods:\n\n```bash\n{found['command']}\n```"]
    return "\n\n".join(blocks) + "\n"


@figures.in_house_style
def chart(rows: list[Row]) -> Any:
    """Accuracy against either cost: a line joins the arms of a method, the method is filled and named."""
    figure, axes = figures.subplots(1, 2, 9.4, 5.0)
    for slug, marker in zip(TASKS, MARKERS, strict=True):
        colour = f"C{MARKERS.index(marker)}"
        for axis, key in zip(axes, ("labels", "trained"), strict=True):
            known = sorted((row for row in rows if row["slug"] == slug and row[key] is not None), key=lambda r: r[key])
            axis.plot([row[key] for row in known], [row["accuracy"] for row in known], color=colour, alpha=0.4)
            for row in known:
                place, face = (row[key], row["accuracy"]), colour if row["method"] else "white"
                axis.plot(*place, marker, color=colour, markerfacecolor=face, markersize=6, clip_on=False)
                if key == "labels" and row["course"]:
                    axis.plot(*zip(*row["course"], strict=True), ":", color=colour)
                if row["method"]:
                    axis.annotate(slug, place, (4, 4), textcoords="offset points", fontsize=7.5, color=colour)
    for axis, name, first in zip(axes, ("labels", "trained numbers"), (10, 100), strict=True):
        axis.set_xscale("symlog", linthresh=first)
        axis.set_xlim(left=0)
        axis.set_xlabel(name)
    axes[0].set_ylabel("accuracy, % (each method on its own question)")
    return figure
