"""The page of a method, written from its result: what it does, what the lab found, how to use it, how to repeat it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveal.lab.recipe import Recipe
from foveal.lab.wording import COSTS, HEADERS, claim_text, control_texts, cost_text, interval, spread

SUMMARY, LOSS = "summary.png", "loss.png"  # pictures of every recipe, beside those its arms draw


@dataclass(frozen=True)
class Subject:
    """What the page says of the paper; the catalogue knows it, which the lab does not import."""

    title: str
    citation: str
    url: str
    summary: str
    use: str
    """The line that imports the method."""
    explanation: str
    """The docstring of the method's module: how it works, equations, departures from the paper."""


def method_page(result: Mapping[str, Any], recipe: Recipe, subject: Subject, pictures: Mapping[str, str]) -> str:
    """The page in Markdown. ``pictures``: address relative to the page -> caption, in the order to show them."""
    shown = {address: f"![{caption}]({address})\n\n*{caption}*" for address, caption in pictures.items()}
    summary, loss = (
        [picture for address, picture in shown.items() if address.endswith(f"/{name}")] for name in (SUMMARY, LOSS)
    )
    own = [picture for picture in shown.values() if picture not in (*summary, *loss)]
    named = subject.title.lower().startswith(recipe.paper)
    blocks = [f"# {subject.title}" if named else f"# {recipe.paper}: {subject.title}", *_warnings(result)]
    blocks += [subject.summary, f"[{subject.citation}]({subject.url})"]
    blocks += ["## What the lab found", _claims(result), *summary]
    blocks += ["## Pictures", *own] if own else []
    blocks += ["## Use it", f"```python\n{recipe.example.strip() or subject.use}\n```"]
    blocks += ["On a real model or your own files:", f"```bash\n{recipe.real.strip()}\n```"]
    blocks += ["## How it works", subject.explanation] if subject.explanation else []
    blocks += ["## How it was measured", recipe.about, *_metrics(result), _costs(result)]
    blocks += [
        "FLOPs are those of matrix products, convolutions and attention, counted on the first seed; seconds and memory "
        f"are medians over the others. Hardware: {_hardware(result)}."
    ]
    blocks += [*loss, "## Measure it again", _repeat(result)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _warnings(result: Mapping[str, Any]) -> list[str]:
    """What a reader must know first."""
    if result["smoke"]:
        return ["**A smoke run: the numbers mean nothing.**"]
    lines = control_texts(result)
    if result["partial"]:
        lines.append("A partial run: not all arms of the recipe were run.")
    return [f"**{' '.join(lines)}**"] if lines else []


def _claims(result: Mapping[str, Any]) -> str:
    rows = [
        (claim_text(claim), interval(claim), f"**{claim['verdict']}**", claim["published"] or "–")
        for claim in result["claims"]
    ]
    header = ("claim", "difference [95 % interval]", "verdict", "the paper reports")
    return _table(header, rows, right=False) if rows else ""


def _metrics(result: Mapping[str, Any]) -> list[str]:
    """One table for each group of arms that return the same metrics."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, arm in result["arms"].items():
        groups.setdefault(tuple(arm["metrics"]), []).append(name)
    return [
        _table(
            ("arm", *metrics),
            [(_label(result, name), *map(spread, result["arms"][name]["metrics"].values())) for name in names],
        )
        for metrics, names in groups.items()
    ]


def _costs(result: Mapping[str, Any]) -> str:
    known = [
        (cost, header)
        for cost, header in zip(COSTS, HEADERS, strict=True)
        if any(arm["cost"][cost] is not None for arm in result["arms"].values())
    ]
    rows = [
        (_label(result, name), *(cost_text(cost, arm["cost"][cost]) for cost, _ in known))
        for name, arm in result["arms"].items()
    ]
    return _table(("arm", *(header for _, header in known)), rows)


def _label(result: Mapping[str, Any], name: str) -> str:
    return f"`{name}` (control)" if result["arms"][name]["control"] else f"`{name}`"


def _hardware(result: Mapping[str, Any]) -> str:
    machine = result["hardware"]
    return f"{machine['gpu'] or machine['cpu']}, {machine['threads']} of {machine['cores']} cores"


def _repeat(result: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    seeds = ", ".join(map(str, result["seeds"]))
    return f"```bash\n{result['command']}\n```\n\nSeeds {seeds}; {result['date'][:10]}; {versions}."


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], right: bool = True) -> str:
    """A Markdown table; all columns but the first on the right, as numbers are, or all on the left."""
    rule = ["---", *("---:" if right else "---" for _ in header[1:])]
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
