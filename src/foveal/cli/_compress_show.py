"""The table and the picture of `foveal compress`, both drawn from its JSON document."""

from __future__ import annotations

from typing import Any

from foveal.evaluate.base import shown

CONTROLS = ("RandomDrop", "AveragePool")


def rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The unmodified model, then every method at the budget of the schedule."""
    first, *points = document["points"]
    return [first, *(point for point in points if point["budget"] == document["budget"])]


def table(document: dict[str, Any]) -> Any:
    """One row for each of `rows`."""
    from rich.table import Table
    from rich.text import Text

    model, metric = document["model"], document["examples"]["metric"]
    title = f"{model['name']}: {model['class_name']}, budget {document['budget']:.3g}"
    grid = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    grid.add_column("method", style="cyan", no_wrap=True)
    for column in ("image tokens", "FLOPs", "KV cache", metric, "95 % interval"):
        grid.add_column(column, justify="right", no_wrap=True)
    full = document["points"][1]["image_tokens_full"]
    for row in rows(document):
        value, low, high = (_number(row[metric][name], row[metric]["unit"]) for name in ("value", "low", "high"))
        kv = "" if row["kv"] is None else f"{row['kv']:.1%}"
        name = f"{row['method']} (control)" if row["method"] in CONTROLS else row["method"]
        cells = (name, f"{row['kept'] * full:.1f} {row['kept']:6.1%}", f"{row['flops']:.1%}", kv, value)
        grid.add_row(
            *map(Text, (*cells, f"{low} – {high}")), style="bold" if row["method"] == document["method"] else None
        )
    return grid


def _number(value: float, unit: str) -> str:
    return shown(value, unit) if unit == "share" else f"{value:.3f}"


def remarks(document: dict[str, Any]) -> list[str]:
    """What a reader of the table must know, a line each."""
    examples, metric = document["examples"], document["examples"]["metric"]
    lines = [
        f"{document['evaluations']} strategies tried on {examples['searched']} examples; all numbers are of "
        f"{examples['reported']} others"
    ]
    if metric == "log-likelihood":
        lines.append(
            f"log-likelihood: of the reference answers, in nats a token; the middle one has "
            f"{examples['answer_words']:g} words"
        )
    own, *others = rows(document)[1:]
    better = [row["method"] for row in others if row[metric]["value"] > own[metric]["value"]]
    if better:
        lines.append(f"higher than the schedule at this budget: {', '.join(better)}")
    return lines + [f"without {name}: {reason}" for name, reason in document["refused"].items()]


def picture(document: dict[str, Any]) -> bytes:
    """The metric against the measured share of the prefill's FLOPs, a curve for each method, as PNG."""
    from foveal.lab.figures import in_house_style, png

    return png(in_house_style(_drawn)(document))


def _drawn(document: dict[str, Any]) -> Any:
    from foveal.lab.figures import subplots

    metric = document["examples"]["metric"]
    figure, axes = subplots(1, 1, 8.6, 4.2)
    full, *points = document["points"]
    scale = 100 if full[metric]["unit"] == "share" else 1
    names = list(dict.fromkeys(point["method"] for point in points))
    for name in names:
        own = sorted((point for point in points if point["method"] == name), key=lambda point: point["flops"])
        x, y = [100 * point["flops"] for point in own], [scale * point[metric]["value"] for point in own]
        found = name == document["method"]
        style: dict[str, Any] = {"linestyle": ":" if name in CONTROLS else "-", "linewidth": 2.4 if found else 1.4}
        (line,) = axes.plot(x, y, marker="o", markersize=7 if found else 4.5, zorder=3 if found else 2, **style)
        line.set_label(f"{name} (control)" if name in CONTROLS else name)
        if found:
            low, high = ([scale * point[metric][end] for point in own] for end in ("low", "high"))
            spread = [[max(0.0, a - b) for a, b in zip(*ends)] for ends in ((y, low), (high, y))]
            axes.errorbar(x, y, spread, fmt="none", ecolor=line.get_color(), elinewidth=1, capsize=3)
    low, value, high = (scale * full[metric][name] for name in ("low", "value", "high"))
    axes.axhline(value, color="#333333", linewidth=1, label="the model as it is")
    axes.axhspan(low, high, color="#333333", alpha=0.08, linewidth=0)
    axes.set_xlabel("FLOPs of the prefill in the decoder, % of the model as it is")
    axes.set_ylabel("accuracy, %" if metric == "accuracy" else f"{metric}, {full[metric]['unit']}")
    name = document["model"]["name"].rstrip("/").rsplit("/")[-1]
    axes.set_title(f"{name}, {document['examples']['reported']} examples, 95 % intervals")
    figure.legend(loc="outside right upper")
    return figure
