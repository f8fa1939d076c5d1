"""A progress bar over the cells of a run, where somebody is watching."""

import sys
from contextlib import ExitStack, redirect_stderr
from types import TracebackType

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class CellBar:
    """``run_recipe(..., watch=bar)`` inside ``with CellBar(slug) as bar``. Silent when stderr is not a terminal."""

    def __init__(self, slug: str) -> None:
        self.slug = slug
        self._bar: Progress | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "CellBar":
        return self

    def __call__(self, arm: str, seed: int, done: int, total: int) -> None:
        """``done`` of ``total`` cells are finished, (arm, seed) is next."""
        if self._bar is None and done < total and sys.stderr.isatty():
            self._bar = self._start(total)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, arm=f"{arm}, seed {seed}" if arm else "")

    def _start(self, total: int) -> Progress:
        console = Console(file=sys.stderr)
        columns = (SpinnerColumn(), TextColumn(self.slug), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        arm = TextColumn("{task.fields[arm]}")
        bar = Progress(*columns, arm, console=console, transient=True, redirect_stderr=False)
        self._stack.enter_context(bar)
        self._stack.enter_context(redirect_stderr(_NotATerminal(console, sys.stderr)))
        bar.add_task(self.slug, total=total, arm="")
        return bar

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class _NotATerminal(FileProxy):
    """Shows what arms print above the bar; `fit`, seeing no terminal, does not draw a second bar into the same line."""

    def isatty(self) -> bool:
        return False
