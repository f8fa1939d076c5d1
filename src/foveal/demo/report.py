"""`Findings` as one HTML file that needs nothing else: no script, no network, pictures inside.

Whatever a model or a file name says is text, never markup: jinja2 escapes it.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image as Pillow

from foveal.data import twemoji
from foveal.demo.eyes import Image
from foveal.demo.marked import marked
from foveal.demo.measure import Estimate
from foveal.demo.patches import enlarged, only
from foveal.demo.run import CLASSES, CONNECTORS, LIMBER, PAIRS, Findings
from foveal.lab.files import write_atomically
from foveal.zoo import efficientnet_lite0, smollm2

FOLDER = Path(__file__).parent
PIXELS = 720  # longest side of a photograph in the report: sharp on a card, small in a mail
TILE = 336  # of a scene, which is there many times
COLOURS = dict(zip(CONNECTORS, ("teal", "amber", "violet"), strict=True))


def render(found: Findings) -> str:
    """The report as HTML."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "data_uri": data_uri}
    environment.filters |= {"marked": marked, "only": only, "enlarged": enlarged}
    licences: list[Any] = [smollm2.CARD, efficientnet_lite0.CARD]
    return environment.get_template("report.html").render(
        found=found,
        charts=charts(found),
        budgets=budget_chart(found),
        tile=TILE,
        colours=COLOURS,
        connectors={"classes": CLASSES, "pairs": PAIRS, "limber": LIMBER},
        parts=licences,
        twemoji=twemoji.ATTRIBUTION,
        total=sum(found.seconds.values()),
    )


def write(found: Findings, folder: Path) -> Path:
    """Write ``report.html`` into the folder, whole or not at all, and return its path."""
    path = folder / "report.html"
    write_atomically(path, render(found).encode())
    return path


def charts(found: Findings) -> list[dict[str, Any]]:
    """Two bar charts as numbers: rows of a label, an estimate, and the control to compare it with."""
    first = [_row(name, name, result.first, result.chance) for name, result in found.retrieval.items()]
    nouns = [_row(name, name, result.own, result.shuffled.value) for name, result in found.naming.items()]
    any_retrieval = next(iter(found.retrieval.values()))
    return [
        {
            "title": "Finds the right name first",
            "text": f"Of {any_retrieval.candidates} names, is the nearest one right?",
            "control": "a guess",
            "rows": first,
            "limit": _limit(first),
        },
        {
            "title": "Says the right noun",
            "text": "Does its caption (LiMBeR), or one of its four words (SITTA), name what is drawn?",
            "control": "said of another picture",
            "rows": nouns,
            "limit": _limit(nouns),
        },
    ]


def budget_chart(found: Findings) -> dict[str, Any]:
    """Right answers of nano-llava at each share of its visual tokens, beside as many chosen by chance."""
    assert found.fewer is not None
    budgets = found.fewer.budgets
    rows = [
        {
            "label": f"{percent(budget.share, 0)} of the visual tokens",
            "colour": "teal",
            "estimate": budget.right,
            "control": budget.random.value,
        }
        for budget in budgets
    ]
    return {
        "title": "Right answers with fewer visual tokens",
        "text": f"{budgets[0].questions} questions about other held-out scenes: which colour is it, or which "
        "thing? Dotted: as many patches, chosen by chance.",
        "control": "patches by chance",
        "rows": rows,
        "limit": 1.0,
    }


def _row(label: str, connector: str, estimate: Estimate, control: float) -> dict[str, Any]:
    return {"label": label, "colour": COLOURS[connector], "estimate": estimate, "control": control}


def _limit(rows: list[dict[str, Any]]) -> float:
    """Right end of an axis: the next tenth above all that is drawn."""
    highest = max(max(row["estimate"].high, row["control"]) for row in rows)
    return min(1.0, max(0.1, -(-highest // 0.1) * 0.1))


def percent(share: float, digits: int = 1) -> str:
    """0.123 as "12.3 %", with a no-break space."""
    return f"{100 * share:.{digits}f}\u00a0%"


def data_uri(image: Image, longest: int = PIXELS) -> str:
    """The picture inside the page: JPEG for what is large, PNG for drawings."""
    picture = Pillow.fromarray(image)
    drawing = max(picture.size) <= 160
    picture.thumbnail((longest, longest), Pillow.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG" if drawing else "JPEG", **({"optimize": True} if drawing else {"quality": 85}))
    return f"data:image/{'png' if drawing else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
