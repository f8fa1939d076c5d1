"""Figures in one house style: readable in a page's column, colour-blind safe, drawn without a display.

Figures are made with `subplots` and not with pyplot, which would keep each of them and look for a screen.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

STYLE: Any = {
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "image.cmap": "viridis",
    # Okabe and Ito's colours, told apart with every kind of colour vision
    "axes.prop_cycle": cycler(color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555"]),
}
in_house_style = matplotlib.rc_context(STYLE)  # decorates what draws, around arms and here
METHOD, BASELINE, CONTROL = "#0072B2", "#8a8a8a", "#d0d0d0"


@in_house_style
def subplots(rows: int = 1, columns: int = 1, width: float = 7.0, height: float = 3.5) -> tuple[Figure, Any]:
    """A figure in the house style and its axes, shaped as matplotlib's own ``subplots`` does; size in inches."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns)


@in_house_style
def png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes every time: no version in it, no display needed."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


@in_house_style
def picture_grid(pictures: Sequence[Any], captions: Sequence[str], columns: int = 4, size: float = 1.8) -> Figure:
    """Pictures with a caption under each.

    Args:
        pictures: (height, width, 3) arrays, uint8 or floats in [0, 1], or Pillow images.
        captions: one text for each; long ones are wrapped.
        columns: pictures per row.
        size: width of one in inches.

    Raises:
        ValueError: when the two differ in length or there is nothing to show.
    """
    if len(pictures) != len(captions) or not len(pictures):
        raise ValueError(f"captions has {len(captions)} texts for {len(pictures)} pictures: give one for each")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    wrapped = [textwrap.fill(caption, int(12 * size)) for caption in captions]
    lines = max(caption.count("\n") for caption in wrapped) + 1
    figure, axes = subplots(rows, columns, columns * size, rows * (size + 0.17 * lines))
    for axis in np.ravel(axes):
        axis.axis("off")
        axis.set_anchor("N")  # all room that is left is below, for the captions
    for axis, picture, caption in zip(np.ravel(axes), pictures, wrapped, strict=False):
        axis.imshow(np.asarray(picture), interpolation="nearest")
        axis.text(0.5, -0.04, caption, transform=axis.transAxes, ha="center", va="top", fontsize=8.5)
    return figure


@in_house_style
def bars(result: Mapping[str, Any]) -> Figure:
    """Every claimed metric in a panel: mean of each arm, standard deviation, and one dot for each seed."""
    metrics = list(dict.fromkeys(claim["on"] for claim in result["claims"]))
    longest = max(sum(metric in arm["metrics"] for arm in result["arms"].values()) for metric in metrics)
    columns = min(len(metrics), 2)
    rows = -(-len(metrics) // columns)
    figure, axes = subplots(rows, columns, 7.6, rows * (0.8 + 0.27 * longest))
    for axis in np.ravel(axes)[len(metrics) :]:
        axis.axis("off")
    for axis, metric in zip(np.ravel(axes), metrics, strict=False):
        methods = {claim["arm"] for claim in result["claims"] if claim["on"] == metric}
        _panel(axis, metric, methods, result["arms"])
    return figure


def _panel(axis: Axes, metric: str, methods: set[str], arms: Mapping[str, Any]) -> None:
    shown = {name: arm for name, arm in arms.items() if metric in arm["metrics"]}
    for row, (name, arm) in enumerate(shown.items()):
        values = np.array(arm["metrics"][metric])
        colour = METHOD if name in methods else CONTROL if arm["control"] else BASELINE
        error = values.std(ddof=1) if len(values) > 1 else None
        axis.barh(row, values.mean(), xerr=error, height=0.62, color=colour, ecolor="#333333", capsize=3)
        axis.plot(values, np.full(len(values), row), "o", color="white", markeredgecolor="#333333", markersize=4.5)
    axis.set_yticks(range(len(shown)), [f"{name} (control)" if arm["control"] else name for name, arm in shown.items()])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    axis.axvline(0, color="#333333", linewidth=0.8)
    axis.set_title(metric)


@in_house_style
def curves(result: Mapping[str, Any], name: str = "loss") -> Figure | None:
    """A recorded curve of every arm that has one, mean over seeds with their range; None when no arm has."""
    shown = {arm: entry["curves"][name] for arm, entry in result["arms"].items() if name in entry["curves"]}
    if not shown:
        return None
    figure, axes = subplots()
    for arm, runs in shown.items():
        length = min(map(len, runs))
        values = np.array([[value for _, value in run[:length]] for run in runs])
        steps = [step for step, _ in runs[0][:length]]
        (line,) = axes.plot(steps, values.mean(0), label=arm)
        axes.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlabel("step")
    axes.set_ylabel(name)
    axes.legend()
    return figure
