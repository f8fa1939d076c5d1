"""`foveal adapt glov`: a language model looks for the wording of the prompt that suits your model and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from foveal.cli._adapt_search_options import SearchOptions

if TYPE_CHECKING:
    from foveal.cli._adapt_search import Watch


@dataclass(frozen=True, kw_only=True)
class GlovOptions(SearchOptions):
    """Those of `glov`.

    Args:
        lm: smollm2, openai:URL[#model] (key: $OPENAI_API_KEY) or scripted:FILE.json. Local ones are also steered.
        out: folder for what is written.
        dataset: its name, for the language model; by default that of --train.
        description: what the pictures show, in a sentence, for the language model.
        initial: first prompt; <category> is where the class name is put.
        per_step: replies of each step, of which --budget makes several.
        alpha: of the steering; 0 does without.
        layer: block that is steered, from 0; by default 17/32 of the way up.
    """

    lm: str = "smollm2"
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("glov")
    dataset: str = ""
    description: str = ""
    initial: str = "a photo of a <category>."
    per_step: int = 10
    alpha: float = 1.0
    layer: int | None = None


def glov(given: Annotated[GlovOptions, tyro.conf.arg(name="")]) -> None:
    """GLOV: a language model, shown the best and the worst prompts so far, writes better ones for a CLIP.

    Writes prompts.json (the best prompts and all that were tried), history.png and journal.json. After Ctrl-C the same
    command goes on after the last reply, and so it does with a larger --budget.
    """
    if given.budget < 1 or given.per_step < 1:
        raise ValueError(f"budget={given.budget}, per_step={given.per_step}: both must be at least 1")
    from foveal.cli._adapt_search import carry_out

    carry_out(given, _search)


def _search(given: GlovOptions, watch: Watch) -> dict[str, Any]:
    from foveal.adapt.base_search import SearchJournal
    from foveal.adapt.glov import PLACEHOLDER, GLOVOptimizer
    from foveal.adapt.glov_list import as_list
    from foveal.cli import _adapt_search as search

    about = (given.dataset or given.train.stem, given.description)
    options: dict[str, Any] = {"alpha": given.alpha, "layer": given.layer, "seed": given.seed}
    options |= {"initial": given.initial, "per_step": given.per_step}
    opened, shots, tests = search.material(given, watch)
    settings = {"method": "glov", "model": opened.sha256, "data": shots.digest, "lm": given.lm, "about": about}
    journal = SearchJournal(given.out / "journal.json", {**settings, **options})
    fitness = search.Fitness(shots, opened.model, PLACEHOLDER, journal)
    # a budget below one step is the first part of it; the journal has the whole, for a larger budget to go on
    options["per_step"] = per_step = min(given.per_step, given.budget)
    steps = given.budget // per_step
    writer, heard = search.writer(given.lm, as_list, "", journal, steps * per_step, watch)
    result = GLOVOptimizer(writer, fitness, *about, steps=steps, ensemble=search.BEST, **options).run()
    journal.save()
    asked = {"name": given.lm, "replies": heard[-1], "steered steps": result.steered_steps}
    more = {"method": "glov", "model": opened.name, "language model": asked, "new prompts": len(result.history) - 1}
    return search.report(fitness, given.initial, tests, **more)
