"""What the commands on the user's own pictures share: reading them, telling of those that cannot be read, and a bar.

Of several pictures the readable ones are answered. The others are named on standard error and in the JSON document
under "errors", and the command ends with exit code 1; with none that can be read, it ends with 2 like any bad input.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from foveal.data.images import ImageError

PATIENCE = 3.0  # seconds without a bar


def read_picture(file: str) -> np.ndarray:
    """A file as the small square that the vision model sees. ImageError, a ValueError, when it cannot be read."""
    from foveal.data.images import read_image
    from foveal.data.transforms import resize_square
    from foveal.zoo.efficientnet_lite0 import SIZE

    return resize_square(read_image(file), SIZE)


def read_pictures(files: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, ImageError]]:
    """Every readable file (see `read_picture`), and why the others are not. ValueError when there is none."""
    from foveal.data.images import ImageError

    if not files:
        raise ValueError("no picture given: name at least one file")
    found: dict[str, np.ndarray] = {}
    errors: dict[str, ImageError] = {}
    for name in files:
        try:
            found[name] = read_picture(name)
        except ImageError as error:
            errors[name] = error
    if not found:
        raise none_readable(errors)
    return found, errors


def none_readable(errors: Mapping[Any, ImageError]) -> ValueError:
    """The error for pictures of which not one can be read. Several are named on standard error, one stands in it."""
    if len(errors) == 1:
        return next(iter(errors.values()))
    _name(errors)
    return ValueError(f"none of the {len(errors)} pictures could be read")


def error_rows(errors: Mapping[Any, ImageError]) -> list[dict[str, str]]:
    """The pictures that could not be read, for JSON."""
    return [{"image": str(name), "error": str(error)} for name, error in errors.items()]


def end(errors: Mapping[Any, ImageError], readable: int) -> None:
    """The end of a command that answered for the ``readable`` pictures: exit code 1 when others could not be read."""
    if not errors:
        return
    _name(errors)
    print(f"foveal: {len(errors)} of {len(errors) + readable} pictures could not be read", file=sys.stderr)
    raise SystemExit(1)


def _name(errors: Mapping[Any, ImageError]) -> None:
    for error in errors.values():
        print(f"foveal: {error}", file=sys.stderr)


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
