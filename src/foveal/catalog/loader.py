"""Read ``papers.toml`` and say how far foveal has each paper. Nothing heavy is imported: ``foveal list`` is quick."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

import foveal
from foveal.lab.result import results_dir

Stage = Literal[
    "curate", "pretrain", "connect", "adapt", "align", "compress", "decode", "perceive", "generate", "evaluate"
]  # fmt: skip
Status = Literal["planned", "part", "recipe", "reproduced", "inconclusive", "not reproduced", "mixed"]
STAGES: tuple[Stage, ...] = get_args(Stage)
STATUSES: tuple[Status, ...] = get_args(Status)
VERDICTS = ("reproduced", "inconclusive", "not reproduced")
PACKAGE = Path(foveal.__file__).parent


@dataclass(frozen=True, slots=True)
class Paper:
    """One entry of the catalogue."""

    slug: str
    """Name of the method everywhere: ``foveal/<stage>/<slug>.py``, ``foveal/recipes/<slug>.py``, its tests and page."""
    title: str
    arxiv: str
    venue: str
    year: int
    stage: Stage
    summary: str
    """One line: what the method does for somebody who needs it."""
    keywords: tuple[str, ...]

    @property
    def url(self) -> str:
        """The paper's abstract page."""
        return f"https://arxiv.org/abs/{self.arxiv}"

    @property
    def citation(self) -> str:
        """Title, venue and arXiv id in one line."""
        return f"{self.title}. {self.venue}. arXiv:{self.arxiv}"


@cache
def papers() -> tuple[Paper, ...]:
    """All papers, ordered by stage and slug."""
    entries = tomllib.loads(Path(__file__).with_name("papers.toml").read_text(encoding="utf-8"))["paper"]
    return tuple(Paper(**{**entry, "keywords": tuple(entry["keywords"])}) for entry in entries)


def paper(slug: str) -> Paper:
    """The paper of that slug; ValueError that names the closest slugs when there is none."""
    known = {entry.slug: entry for entry in papers()}
    if slug in known:
        return known[slug]
    near = get_close_matches(slug.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`foveal list` shows all slugs"
    raise ValueError(f"slug={slug!r} is not in the catalogue; {hint}")


def part_file(entry: Paper, package: Path = PACKAGE) -> Path:
    """Where the method's code lives, written or not."""
    return package / entry.stage / f"{entry.slug}.py"


def recipe_file(entry: Paper, package: Path = PACKAGE) -> Path:
    """Where the recipe that measures the method lives, written or not."""
    return package / "recipes" / f"{entry.slug}.py"


def result(slug: str, results: Path | None = None) -> dict[str, Any] | None:
    """The lab's result file of that paper, or None when it has not been run. ValueError when it cannot be read."""
    path = (results or results_dir()) / f"{slug}.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); write it again with `foveal run {slug}`") from error


def status(slug: str, package: Path = PACKAGE, results: Path | None = None) -> Status:
    """How far foveal has the paper, computed from the files that exist: one of `STATUSES`.

    ``planned`` (nothing yet), ``part`` (code), ``recipe`` (code and its measurement, not run) or, once the lab has
    run it, the verdict on its claims; ``mixed`` when claims came out differently.
    """
    entry = paper(slug)
    if not part_file(entry, package).is_file():
        return "planned"
    if not recipe_file(entry, package).is_file():
        return "part"
    found = result(slug, results)
    return verdict(claim["verdict"] for claim in found["claims"]) if found and found.get("claims") else "recipe"


def verdict(verdicts: Iterable[str]) -> Status:
    """One word for several claims; ValueError without any, or for a verdict the lab does not give."""
    given = set(verdicts)
    if not given or not given <= set(VERDICTS):
        raise ValueError(f"verdicts={sorted(given)}: the lab gives one of {', '.join(VERDICTS)}")
    return cast(Status, given.pop()) if len(given) == 1 else "mixed"
