"""A progress bar that only appears where somebody is watching and waiting."""

import sys
import time
from types import TracebackType
from typing import Any

PATIENCE = 3.0  # seconds that a run may take without a bar
REDRAW = 0.1


class ProgressBar:
    """Shows step, speed, remaining time and loss on stderr once the run has lasted `PATIENCE` seconds."""

    def __init__(self, steps: int, active: bool) -> None:
        self.steps = steps
        self.active = active and sys.stderr.isatty()
        self._bar: Any = None
        self._next = time.monotonic() + PATIENCE

    def __enter__(self) -> "ProgressBar":
        return self

    def update(self, step: int, loss: float) -> None:
        """``step`` steps are finished."""
        if not self.active or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + REDRAW
        if self._bar is None:
            self._bar, self._task = _bar(self.steps)
        self._bar.update(self._task, completed=step, loss=loss)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar(steps: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("fit"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.4f}"))
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    bar.start()
    return bar, bar.add_task("fit", total=steps, loss=float("nan"))
