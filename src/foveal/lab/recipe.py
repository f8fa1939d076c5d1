"""What a recipe states: arms that share data, backbone and budget, and the claims that they are to bear out."""

import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from foveal.lab.result import FEWEST_SEEDS
from foveal.lab.run import Run

Arm = Callable[[Run], Mapping[str, float]]
NAME = re.compile(r"[a-z0-9][a-z0-9_.+-]*")  # arms are parts of file names


@dataclass(frozen=True)
class Claim:
    """``Claim("filip", beats="clip", on="r@1")``: the first arm's metric exceeds the second's.

    Attributes:
        arm: the method.
        beats: the arm it is compared with, seed by seed.
        on: a metric that both arms return.
        by: margin, in the metric's unit, that the difference has to exceed. A negative one states that little is lost:
            ``by=-1.0`` reads "at most 1 worse than".
        lower: smaller values are better (errors, tokens, seconds).
        published: what the paper reports, for the reader; no verdict depends on it.
    """

    arm: str
    _: KW_ONLY
    beats: str
    on: str
    by: float = 0.0
    lower: bool = False
    published: str = ""

    def __post_init__(self) -> None:
        if self.arm == self.beats:
            raise ValueError(f"Claim(arm={self.arm!r}) is compared with itself: name another arm in beats")
        if not math.isfinite(self.by):
            raise ValueError(f"Claim(by={self.by!r}): must be a finite margin in the unit of {self.on!r}")


@dataclass(frozen=True)
class Recipe:
    """A paper's claims and the arms that measure them; every recipe module has one, called ``RECIPE``.

    Attributes:
        paper: slug of the paper, which is also the name of the recipe's file.
        arms: name -> function of a `Run` that trains, evaluates and returns its metrics (name -> finite number).
        claims: what the paper says, one `Claim` each.
        controls: arms that are trivial (random choice, shuffled images, same extra parameters). Each is compared with
            every claimed method that returns the same metric, and the page says first where one does as well: metrics
            taken on different data need different names.
        real: one command that uses the method on a real model or on the user's own files.
        seeds: of a full run; arms are paired by them.
        example: Python lines, shown on the page, that use the method; a test executes them.
        about: the recipe's story; `load` takes it from the docstring of the module.

    Raises:
        ValueError: naming the field, its value and what is missing.
    """

    paper: str
    _: KW_ONLY
    arms: Mapping[str, Arm]
    claims: Sequence[Claim]
    controls: Sequence[str]
    real: str
    seeds: Sequence[int] = (0, 1, 2)
    example: str = ""
    about: str = ""

    def __post_init__(self) -> None:
        for name in self.arms:
            if not NAME.fullmatch(name):
                raise ValueError(f"arms has {name!r}: use lower-case letters, digits and any of _.+-")
        if not self.claims:
            raise ValueError(f"claims={self.claims!r}: a recipe measures at least one claim")
        claimed = [name for claim in self.claims for name in (claim.arm, claim.beats)]
        for field, names in (("claims", claimed), ("controls", self.controls)):
            missing = sorted(set(names) - set(self.arms))
            if missing:
                raise ValueError(f"{field} name {', '.join(missing)}, but the arms are {', '.join(self.arms)}")
        if not self.controls:
            raise ValueError(f"controls={self.controls!r}: name at least one trivial arm, such as random or shuffled")
        if len(set(self.seeds)) != len(self.seeds) or len(self.seeds) < FEWEST_SEEDS or min(self.seeds) < 0:
            raise ValueError(f"seeds={self.seeds!r}: must be at least {FEWEST_SEEDS} different whole numbers ≥ 0")
        if not self.real.strip():
            raise ValueError(f"real={self.real!r}: give the command that uses {self.paper} on a real model")


def available() -> list[str]:
    """Slugs of all recipes there are, found by their files; names that start with an underscore are no recipes."""
    spec = find_spec("foveal.recipes")
    folders = spec.submodule_search_locations if spec else None
    return sorted(path.stem for folder in folders or () for path in Path(folder).glob("[!_]*.py"))


def load(slug: str) -> Recipe:
    """The recipe of a paper. ValueError when there is none, or when its file states none."""
    slugs = available()
    if slug not in slugs:
        near = get_close_matches(slug, slugs, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(slugs) or 'none yet'}"
        raise ValueError(f"slug={slug!r} has no recipe; {hint}")
    module = importlib.import_module(f"foveal.recipes.{slug}")
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe) or recipe.paper != slug:
        raise ValueError(f"{module.__file__} must define RECIPE = Recipe(paper={slug!r}, ...)")
    return replace(recipe, about=(module.__doc__ or "").strip())
