"""What `foveal adapt dclip` shows: a table of the predictions, and pictures with the descriptors beside them."""

from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foveal.data.images import read_image
from foveal.lab.figures import BASELINE, METHOD, in_house_style, png, subplots

ROWS, WORDS = 40, 2
"""Lines of the table, and descriptors in one."""
SIDE = 512
"""Pixels of a drawn picture's longer side, at most."""
BARS = 12


def show(document: dict[str, Any], out: Path) -> None:
    """The table, and where everything was written."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("image", overflow="fold")
    grid.add_column("class", style="cyan")
    grid.add_column("score", justify="right")
    grid.add_column("because of", overflow="fold")
    grid.add_column("name alone says", style="dim")
    for row in document["images"][:ROWS]:
        why = ", ".join(f"{item['text']} {item['similarity']:.2f}" for item in row["descriptors"][:WORDS])
        other = row["name alone"]["class"]
        cells = (row["image"], row["class"], f"{row['score']:.3f}", why, "the same" if other == row["class"] else other)
        grid.add_row(*map(Text, cells))
    console = Console()
    console.print(grid)
    if (more := len(document["images"]) - ROWS) > 0:
        console.print(f"and {more} more in predictions.json")
    counts = Counter(row["class"] for row in document["images"])
    console.print(", ".join(f"{name} {count}" for name, count in counts.most_common()), style="dim", markup=False)
    for name in ("descriptors.json", "predictions.json", "pictures"):
        if (out / name).exists():
            console.print(f"[dim]wrote[/] {out / name}", highlight=False, soft_wrap=True)


@in_house_style
def drawn(row: dict[str, Any]) -> bytes:
    """A PNG: the picture, its class, and a bar for each descriptor; those above the class's mean have fired."""
    picture = Image.fromarray(read_image(row["image"]))
    picture.thumbnail((SIDE, SIDE))
    items, other = row["descriptors"][:BARS], row["name alone"]
    figure, (left, right) = subplots(1, 2, 9.0, max(3.0, 0.6 + 0.34 * len(items)))
    left.imshow(picture)
    left.axis("off")
    left.set_title(_plain(f"name alone: {other['class']}  {other['score']:.3f}"), fontsize=9, fontweight="normal")
    values = [item["similarity"] for item in items]
    mean = sum(item["similarity"] for item in row["descriptors"]) / len(row["descriptors"])
    right.barh(range(len(items)), values, color=[METHOD if v >= mean else BASELINE for v in values], height=0.62)
    for place, value in enumerate(values):
        right.annotate(f"{value:.2f}", (max(value, 0), place), (3, 0), textcoords="offset points", va="center")
    right.set_yticks(range(len(items)), [_wrapped(item["text"]) for item in items])
    right.invert_yaxis()
    right.grid(visible=False)
    right.spines["bottom"].set_visible(False)
    right.set_xticks([])
    right.tick_params(axis="y", length=0)
    right.axvline(0, color="#333333", linewidth=0.8)
    right.set_title(_plain(f"{row['class']}  {row['score']:.3f}"))
    return png(figure)


def _wrapped(text: str) -> str:
    """On two lines at most."""
    return textwrap.fill(textwrap.shorten(_plain(text), 80, placeholder=" …"), 42)


def _plain(text: str) -> str:
    """Without a dollar sign's meaning: a language model may write what would be a formula."""
    return text.replace("$", r"\$")
