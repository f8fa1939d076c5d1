"""Result files: what the lab measured and how it judges it. Only the lab writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from foveal.lab.files import write_atomically

if TYPE_CHECKING:  # the catalogue reads results, and must not import torch for it
    from foveal.lab.cells import Cell
    from foveal.lab.recipe import Claim, Recipe
    from foveal.lab.run import Curve

SCHEMA = 1
FEWEST_SEEDS = 3  # for a verdict
CURVE_POINTS = 60
Result = dict[str, Any]


def results_dir() -> Path:
    """Where published results live: ``docs/results`` of a checkout, ``foveal/lab/results`` in an installed wheel."""
    installed = Path(__file__).with_name("results")
    return installed if installed.is_dir() else Path(__file__).parents[3] / "docs" / "results"


def assemble(recipe: Recipe, cells: Sequence[Cell], context: Mapping[str, Any]) -> Result:
    """The result document of a run: numbers of every seed, cost, curves, claims with their verdicts, controls.

    ``context``: what does not follow from the cells (command, date, versions, hardware, smoke ...).
    """
    seeds = sorted({cell.seed for cell in cells})
    names = [name for name in recipe.arms if any(cell.arm == name for cell in cells)]
    arms = {name: _arm(name, recipe, [cell for cell in cells if cell.arm == name]) for name in names}
    claims = [claim for claim in recipe.claims if claim.arm in arms and claim.beats in arms]
    for claim in claims:
        for name in (claim.arm, claim.beats):
            if claim.on not in (metrics := arms[name]["metrics"]):
                raise ValueError(f"claims compare {claim.on!r}, but arm {name!r} returns {', '.join(metrics)}")
    return {
        "schema": SCHEMA,
        "slug": recipe.paper,
        **context,
        "partial": len(names) < len(recipe.arms),
        "seeds": seeds,
        "arms": arms,
        "claims": judge_claims(arms, claims, context["smoke"]),
        "controls": compare_controls(arms, claims),
    }


def _arm(name: str, recipe: Recipe, cells: Sequence[Cell]) -> dict[str, Any]:
    cells = sorted(cells, key=lambda cell: cell.seed)
    for cell in cells:
        if cell.metrics.keys() != cells[0].metrics.keys():
            raise ValueError(f"arm {name!r} returns other metrics at seed {cell.seed} than at seed {cells[0].seed}")
    return {
        "control": name in recipe.controls,
        "metrics": {metric: [cell.metrics[metric] for cell in cells] for metric in cells[0].metrics},
        "cost": _cost(cells),
        "curves": {
            curve: [thin(cell.curves[curve]) for cell in cells if curve in cell.curves] for curve in cells[0].curves
        },
    }


def _cost(cells: Sequence[Cell]) -> dict[str, float | None]:
    """Medians. FLOPs are counted on the first seed, which slows it: time and memory are those of the others."""
    counted = [cell for cell in cells if cell.cost.flops is not None]
    timed = [cell for cell in cells if cell.cost.flops is None] or counted
    chosen = {"seconds": timed, "peak_memory_bytes": timed, "flops": counted}
    cost: dict[str, float | None] = {}
    for name in ("seconds", "peak_memory_bytes", "flops", "parameters", "trainable", "tokens"):
        known = sorted(value for cell in chosen.get(name, cells) if (value := getattr(cell.cost, name)) is not None)
        cost[name] = known[len(known) // 2] if known else None
    return cost


def thin(curve: Curve, points: int = CURVE_POINTS) -> list[list[float]]:
    """At most ``points`` [step, value] pairs: means of consecutive stretches, since single losses are noisy."""
    size = -(-len(curve) // points)
    stretches = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [[float(f"{sum(column) / len(part):.5g}") for column in zip(*part)] for part in stretches]


def judge_claims(arms: Mapping[str, Any], claims: Iterable[Claim], smoke: bool) -> list[dict[str, Any]]:
    """Difference (arm − beats), interval and verdict of every claim.

    A smoke run, and fewer than three seeds, give *inconclusive* whatever the numbers are; one seed has no interval.
    """
    from foveal.lab.statistics import judge, paired_difference

    rows = []
    for claim in claims:
        method, baseline = (arms[name]["metrics"][claim.on] for name in (claim.arm, claim.beats))
        row = asdict(claim) | {"difference": fmean(method) - fmean(baseline), "sd": None, "interval": None}
        verdict = "inconclusive"
        if len(method) > 1:
            found = paired_difference(method, baseline)
            row |= {"difference": found.mean, "sd": found.sd, "interval": [found.low, found.high]}
            verdict = judge(found, claim.by, claim.lower) if found.seeds >= FEWEST_SEEDS and not smoke else verdict
        rows.append(row | {"verdict": verdict})
    return rows


def compare_controls(arms: Mapping[str, Any], claims: Iterable[Claim]) -> list[dict[str, Any]]:
    """Each control against each claimed method on the claimed metric; it ``wins`` when its mean is at least as good."""
    rows = []
    for arm, on, lower in dict.fromkeys((claim.arm, claim.on, claim.lower) for claim in claims):
        for control, entry in arms.items():
            if not entry["control"] or control == arm or on not in entry["metrics"]:
                continue
            ours, theirs = (fmean(arms[name]["metrics"][on]) for name in (arm, control))
            wins = theirs <= ours if lower else theirs >= ours
            rows.append({"control": control, "arm": arm, "on": on, "difference": ours - theirs, "wins": wins})
    return rows


def write_result(path: Path, result: Result) -> None:
    """One JSON document, atomically. ValueError when a number in it is not finite."""
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())
