"""Real models joined before your eyes: captions, labels and an honest measurement, in one HTML report."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from rich.console import Console

    from foveal.demo.measure import Estimate
    from foveal.demo.run import Findings


def main(
    image: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = (),
    out: Path = Path("foveal-demo"),
    smoke: bool = False,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Join an image network and a language model in three ways, describe pictures, measure, write a report.

    Then ask a small LLaVA with fewer visual tokens and with decoders that look twice. About three minutes on two cores,
    no network. The models are small: what has no ImageNet class (a painting, a person, tulips) is named after what
    looks most like it.

    Args:
        image: your own picture instead of the sample photographs; give it several times for several.
        out: folder for report.html.
        smoke: a few steps on a few pictures, to see that everything runs; the numbers then mean nothing.
        seed: of LiMBeR's training, of the names to choose from, of the drawn scenes and of the intervals.
        json: print the findings as one JSON document instead of tables.
    """
    if seed < 0:
        raise ValueError(f"seed={seed}: must be 0 or more")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={str(out)!r} is a file: give a folder for report.html")

    from foveal.demo.run import SMOKE, Size, own_pictures, run

    pictures = own_pictures(image)  # before anything slow: a wrong path shall not cost a minute

    from foveal.demo.report import write

    with Bars() as bars:
        found = run(pictures, SMOKE if smoke else Size(), seed, bars)
    path = write(found, out)
    if json:
        from foveal.cli import print_json

        print_json(summary(found, path))
        return
    print_tables(found, path)


class Bars:
    """A progress bar for each stage, on standard error."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), BarColumn())
        bars = Progress(*columns, MofNCompleteColumn(), Elapsed(), console=Console(stderr=True))
        self._progress = self._stack.enter_context(bars)
        return self

    def __call__(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of stage ``what`` are finished."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def summary(found: Findings, path: Path) -> dict[str, Any]:
    """The findings for a machine: everything but the pixels."""
    return {"report": str(path), **_without_pixels(found)}


def _without_pixels(value: Any) -> Any:
    """Dataclasses as dictionaries, as deep as they go; pictures are left out."""
    from dataclasses import fields, is_dataclass

    if is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return {name: _without_pixels(part) for name, part in parts.items() if not hasattr(part, "dtype")}
    if isinstance(value, dict):
        return {name: _without_pixels(part) for name, part in value.items()}
    return [_without_pixels(part) for part in value] if isinstance(value, list | tuple) else value


def print_tables(found: Findings, path: Path) -> None:
    """What was said, how good it is, and where the report lies."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    console.print(_said_table(found))
    _print_quality(console, found)
    _print_second_looks(console, found)
    total, memory = sum(found.seconds.values()), found.peak_memory_bytes / 1e9
    console.print(f"[dim]{total:.0f} s, {memory:.1f} GB of memory at most, nothing downloaded[/]")
    if found.smoke:
        console.print("[yellow]smoke test: these numbers mean nothing[/]")
    console.print(f"[bold green]report:[/] {escape(str(path))}", soft_wrap=True)


def _said_table(found: Findings) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", row_styles=("", "dim"), box=None, pad_edge=False)
    cards = found.photos + found.emoji
    for column in ("picture", *(said.connector for said in cards[0].said), "zero-shot label"):
        table.add_column(column)
    for card in cards:
        texts = [said.caption for said in card.said]
        table.add_row(*map(Text, (card.title, *texts, card.labels[0][0])))
    return table


def _print_quality(console: Console, found: Findings) -> None:
    from rich.table import Table

    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("on held-out emoji")
    for column in ("right name first", "in the first five", "right noun said", "of another picture", "difference"):
        table.add_column(column, justify="right")
    for name, nouns in found.naming.items():
        names = found.retrieval.get(name)
        cells = (f"{names.first.value:.1%}", f"{names.first_five.value:.1%}") if names else ("", "")
        gain = f"{100 * nouns.gain.value:+.1f} points {_points(nouns.gain)}"
        table.add_row(name, *cells, f"{nouns.own.value:.1%}", f"{nouns.shuffled.value:.1%}", gain)
    console.print()
    console.print(table)
    for name, names in found.retrieval.items():
        low, high = names.first.low / names.chance, names.first.high / names.chance
        console.print(
            f"{name}: {names.times_chance:.0f} × chance (95 % interval {low:.0f} to {high:.0f}) "
            f"at finding the right one of {names.candidates} names, median rank {names.median_rank:g}"
        )


def _print_second_looks(console: Console, found: Findings) -> None:
    """nano-llava with fewer visual tokens, and with decoders."""
    from rich.table import Table

    assert found.fewer is not None
    assert found.decoders is not None
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column(f"nano-llava, {found.fewer.budgets[0].questions} questions")
    for column in (f"right by {found.fewer.method}", "95 % interval", "patches by chance"):
        table.add_column(column, justify="right")
    for budget in found.fewer.budgets:
        right, chance = budget.right, budget.random.value
        interval = f"{right.low:.0%} to {right.high:.0%}"
        table.add_row(f"{budget.share:.0%} of the tokens", f"{right.value:.0%}", interval, f"{chance:.0%}")
    console.print()
    console.print(table)
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column(f"nano-llava, {found.decoders.habits[0].descriptions} descriptions")
    for column in ("things invented", "things found", "passes per token", "seconds"):
        table.add_column(column, justify="right")
    for habit in found.decoders.habits:
        cells = (f"{habit.invented.value:.0%}", f"{habit.found.value:.0%}", f"{habit.forwards:.2f}")
        table.add_row(habit.decoder, *cells, f"{habit.seconds:.1f}")
    console.print()
    console.print(table)


def _points(estimate: Estimate) -> str:
    return f"({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"
