"""What the commands on the user's own pictures share: reading them, and a bar while the parts load."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PATIENCE = 3.0  # seconds without a bar


def read_pictures(files: Sequence[str]) -> dict[str, np.ndarray]:
    """Every readable file as the small square that the vision model sees; the others are told on standard error.

    Raises ValueError when there is none.
    """
    from foveal.data.images import ImageError, read_image
    from foveal.data.transforms import resize_square
    from foveal.zoo.efficientnet_lite0 import SIZE

    if not files:
        raise ValueError("no picture given: name at least one file")
    found: dict[str, np.ndarray] = {}
    for name in files:
        try:
            found[name] = resize_square(read_image(name), SIZE)
        except ImageError as error:
            if len(files) == 1:
                raise
            print(f"foveal: {error}", file=sys.stderr)
    if not found:
        raise ValueError(f"none of the {len(files)} pictures could be read")
    return found


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A function (what, done, total) behind which a bar appears on a terminal after `PATIENCE` seconds."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    # the stream itself: while transformers loads, sys.stderr is another one
    console = Console(file=sys.stderr)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
    task = bar.add_task("loading", total=None)
    timer = threading.Timer(PATIENCE, bar.start)  # a step may last longer than the patience
    timer.daemon = True
    timer.start()
    try:
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
