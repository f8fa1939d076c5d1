"""Numbers and claims in words, the same in the terminal and on the pages."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

COSTS = ("seconds", "flops", "parameters", "trainable", "tokens", "peak_memory_bytes")
HEADERS = ("seconds", "FLOPs", "parameters", "trained", "tokens", "memory")


def number(value: float) -> str:
    """Three significant digits without an exponent where people would not write one: 0.0512, 87.3, 12,340."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds, both to the digits that the deviation supports: 87.31 ± 0.42.

    The mean alone where the deviation is below a thousandth of it.
    """
    mean = fmean(values)
    deviation = stdev(values) if len(values) > 1 else 0.0
    if deviation < abs(mean) / 1000 or not deviation:
        return number(mean)
    digits = max(0, 1 - _magnitude(deviation))
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def _magnitude(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def interval(row: Mapping[str, Any]) -> str:
    """``+3.2 [+1.1, +5.3]``, or the difference alone when one seed gives no interval."""
    if not row["interval"]:
        return f"{row['difference']:+.3g}"
    numbers = [row["difference"], *row["interval"]]
    least = 1e-9 * max(map(abs, numbers))  # below it nothing is left but rounding
    difference, low, high = (f"{value if abs(value) > least else 0.0:+.3g}" for value in numbers)
    return f"{difference} [{low}, {high}]"


def claim_text(row: Mapping[str, Any]) -> str:
    """A claim as a sentence: ``limber beats blind on category by more than 10``."""
    direction = " (lower is better)" if row["lower"] else ""
    if row["by"] < 0:
        return f"{row['arm']} loses less than {number(-row['by'])} to {row['beats']} on {row['on']}{direction}"
    margin = f" by more than {number(row['by'])}" if row["by"] else ""
    return f"{row['arm']} beats {row['beats']} on {row['on']}{margin}{direction}"


def control_texts(result: Mapping[str, Any]) -> list[str]:
    """A sentence for every control that does at least as well as the method it is there to check."""
    lines = []
    for row in result["controls"]:
        if row["wins"]:
            ours, theirs = (fmean(result["arms"][row[side]]["metrics"][row["on"]]) for side in ("arm", "control"))
            lines.append(
                f"The control {row['control']} does at least as well as {row['arm']} on {row['on']}: "
                f"{number(theirs)} against {number(ours)}."
            )
    return lines


def cost_text(name: str, value: float | None) -> str:
    """One entry of an arm's cost with its unit, a dash where it was not measured."""
    if value is None:
        return "–"
    if name == "seconds":
        return number(value)
    if name == "peak_memory_bytes":
        return f"{value / 2**20:,.0f} MiB"
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return number(value)
