"""A progress bar over the cells of a run, where somebody is watching."""

import io
import sys
from contextlib import ExitStack, redirect_stderr
from types import TracebackType
from typing import Any


class CellBar:
    """``run_recipe(..., watch=bar)`` inside ``with CellBar(slug) as bar``. Silent when stderr is not a terminal."""

    def __init__(self, slug: str) -> None:
        self.slug = slug
        self._bar: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> "CellBar":
        return self

    def __call__(self, arm: str, seed: int, done: int, total: int) -> None:
        """``done`` of ``total`` cells are finished, (arm, seed) is next."""
        if self._bar is None:
            if done == total or not sys.stderr.isatty():
                return
            self._start(total)
        self._bar.update(self._task, completed=done, arm=f"{arm}, seed {seed}" if arm else "")

    def _start(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        columns = (SpinnerColumn(), TextColumn(self.slug), BarColumn(), MofNCompleteColumn(), Elapsed())
        self._bar = self._stack.enter_context(
            Progress(*columns, TextColumn("{task.fields[arm]}"), console=Console(stderr=True), transient=True)
        )
        self._stack.enter_context(redirect_stderr(_NotATerminal(sys.stderr)))  # two bars would fight for the line
        self._task = self._bar.add_task(self.slug, total=total, arm="")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class _NotATerminal(io.TextIOBase):
    """Passes text on, so that messages of an arm appear above the bar, and keeps `fit` from drawing its own bar."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()
