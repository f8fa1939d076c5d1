"""Runs the arms of a recipe over its seeds, cell by cell, and keeps every finished cell."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import matplotlib

from foveal.lab.cells import Cell, CellStore
from foveal.lab.environment import hardware, source_digest, versions
from foveal.lab.figures import STYLE
from foveal.lab.randomness import global_randomness
from foveal.lab.recipe import Arm, Recipe
from foveal.lab.result import Result, assemble
from foveal.lab.run import Picture, Run, device, measured
from foveal.train.meters import Meter

WORK = Path(".foveal") / "runs"
Watch = Callable[[str, int, int, int], Any]


class ArmError(RuntimeError):
    """An arm failed or returned something that cannot be compared; the message names arm and seed."""


@dataclass(frozen=True)
class Outcome:
    """The result document, and the pictures that the arms drew, by file name."""

    result: Result
    pictures: dict[str, Picture]


def run_recipe(
    recipe: Recipe,
    *,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    smoke: bool = False,
    fresh: bool = False,
    work: Path = WORK,
    watch: Watch = lambda arm, seed, done, total: None,
) -> Outcome:
    """Measure. Cells that an earlier, interrupted call finished are taken over if nothing they depend on has changed.

    Args:
        recipe: what to run.
        arms: only these; claims about others are left out and the result is marked as partial.
        seeds: instead of the recipe's own. Fewer than three give no verdict but *inconclusive*.
        smoke: a couple of steps on one seed, to see that everything runs; nothing is kept and nothing judged.
        fresh: run every cell, also those that are finished.
        work: folder for finished cells.
        watch: called with (arm, seed, finished cells, all cells) before each cell that has to run, and at the end.

    Raises:
        ValueError: for an unknown arm or bad seeds.
        ArmError: when an arm fails or returns a metric that is not a finite number.
    """
    names = _chosen(recipe, arms)
    seeds = list(seeds if seeds is not None else recipe.seeds[:1] if smoke else recipe.seeds)
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds={seeds}: must be different whole numbers ≥ 0, such as 0,1,2")
    folder, source = work / recipe.paper, source_digest(recipe.paper)
    cells: list[Cell] = []
    total, started = len(seeds) * len(names), datetime.now(UTC)
    for seed in seeds:
        first = (
            seed == seeds[0]
        )  # counts FLOPs and draws: both cost time, which the other seeds then report undisturbed
        store = CellStore(folder, _key(source, first))
        parts: dict[Hashable, Any] = {}
        for name in names:
            cell = None if smoke or fresh else store.load(name, seed)
            if cell is None:
                watch(name, seed, len(cells), total)
                cell = run_cell(recipe.arms[name], Run(name, seed, smoke, first and not smoke, parts), first)
                if not smoke:
                    store.save(cell)
            cells.append(cell)
    watch("", seeds[-1], total, total)
    context = {
        "command": _command(recipe, arms, seeds, smoke),
        "date": started.isoformat(timespec="seconds"),
        "smoke": smoke,
        "versions": versions(),
        "hardware": hardware(),
        "source": source,
    }
    pictures = {f"{cell.arm}-{name}": picture for cell in cells for name, picture in cell.figures.items()}
    return Outcome(assemble(recipe, cells, context), pictures)


def run_cell(arm: Arm, run: Run, keep_figures: bool) -> Cell:
    """Run one arm at one seed, with the global generators seeded before and restored after."""
    try:
        meter = Meter(flops=run.counts_flops, device=device())
        with global_randomness(run.seed, device()), matplotlib.rc_context(STYLE), meter:
            metrics = arm(run)
    except Exception as error:  # an arm may fail in any way; the error names it, and keeps its cause
        raise ArmError(f"arm {run.arm!r} failed at seed {run.seed}: {type(error).__name__}: {error}") from error
    values = _checked(metrics, run)
    return Cell(run.arm, run.seed, values, measured(run, meter), run.curves, run.figures if keep_figures else {})


def _checked(metrics: Any, run: Run) -> dict[str, float]:
    where = f"arm {run.arm!r} at seed {run.seed}"
    if not isinstance(metrics, Mapping) or not metrics:
        raise ArmError(f"{where} returned {metrics!r}: must be a mapping from metric names to numbers")
    values = {}
    for name, value in metrics.items():
        try:
            values[str(name)] = float(value)
        except (TypeError, ValueError) as error:
            raise ArmError(f"{where}: metric {name!r} is {value!r}, which is not a number") from error
        if not math.isfinite(values[str(name)]):
            raise ArmError(f"{where}: metric {name!r} is {value!r}; report a count instead of a mean over nothing")
    return values


def _chosen(recipe: Recipe, arms: Sequence[str] | None) -> list[str]:
    unknown = sorted(set(arms or ()) - set(recipe.arms))
    if unknown:
        raise ValueError(f"arms={','.join(unknown)}: {recipe.paper} has {', '.join(recipe.arms)}")
    return [name for name in recipe.arms if arms is None or name in arms]


def _command(recipe: Recipe, arms: Sequence[str] | None, seeds: Sequence[int], smoke: bool) -> str:
    """What to type to get this result again."""
    words = ["foveal run", recipe.paper]
    words += ["--arms", ",".join(arms)] if arms else []
    words += ["--smoke"] if smoke else []
    words += ["--seeds", ",".join(map(str, seeds))] if list(seeds) != list(recipe.seeds) and not smoke else []
    return " ".join(words)


def _key(source: str, first: bool) -> str:
    facts = [source, first, sorted(versions().items())]
    return sha256(repr(facts).encode()).hexdigest()
