"""`foveal adapt llm_bbo`: hill climbing for a prompt, with a language model that sees good and bad ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from foveal.cli._adapt_search_options import SearchOptions

if TYPE_CHECKING:
    from foveal.cli._adapt_search import Watch

FIRST = "a photo of a {}."
"""What the prompts that were found are compared with."""


@dataclass(frozen=True, kw_only=True)
class ClimberOptions(SearchOptions):
    """Those of `llm_bbo`.

    Args:
        budget: replies of the language model in all, those of no use counted.
        out: folder for what is written.
        pool: text file of templates, one a line, {} where the class name is put; by default some 200 of foveal's own.
        sample_size: templates of the pool to start from.
        k: how many good and how many bad templates are shown.
        iterations: requests before what the language model added is forgotten.
        resets: times that this happens before other templates are drawn.
        mode: both ends, the good ones alone, or no template at all.
        seed: of draws and replies.
    """

    budget: int = 60
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("llm_bbo")
    pool: Path | None = None
    sample_size: int = 100
    k: int = 15
    iterations: int = 10
    resets: int = 50
    mode: Literal["both", "positive", "none"] = "both"
    seed: int = 0


def llm_bbo(given: Annotated[ClimberOptions, tyro.conf.arg(name="")]) -> None:
    """Black-box search: templates from a pool are scored, and a language model that sees both ends writes better ones.

    Writes prompts.json (the best prompts and all that were tried), history.png and journal.json. After Ctrl-C the same
    command goes on after the last reply, and so it does with a larger --budget.
    """
    if given.budget < 1:
        raise ValueError(f"budget={given.budget}: must be at least 1")
    from foveal.cli._adapt_search import carry_out

    carry_out(given, _search)


def _search(given: ClimberOptions, watch: Watch) -> dict[str, Any]:
    import torch

    from foveal.adapt.base_search import SearchJournal
    from foveal.adapt.llm_bbo import DEFAULT_POOL, PromptHillClimber
    from foveal.adapt.llm_bbo_list import as_list
    from foveal.cli import _adapt_search as search

    templates = list(DEFAULT_POOL) if given.pool is None else _templates(given.pool)
    sizes: dict[str, Any] = {"sample_size": given.sample_size, "k": given.k, "n_iter": given.iterations}
    sizes |= {"n_reset": given.resets, "mode": given.mode}
    opened, shots, tests = search.material(given, watch)
    settings = {"method": "llm_bbo", "model": opened.sha256, "data": shots.digest, "lm": given.lm, "pool": templates}
    journal = SearchJournal(given.out / "journal.json", {**settings, **sizes, "seed": given.seed})
    fitness = search.Fitness(shots, opened.model, "{}", journal)
    writer, heard = search.writer(given.lm, as_list, "- ", journal, given.budget, watch)
    climber = PromptHillClimber(lambda prompt: fitness(prompt) / 100, writer, max_calls=given.budget, **sizes)
    result = climber.run(templates, torch.Generator().manual_seed(given.seed))
    journal.save()
    asked = {"name": given.lm, "replies": heard[-1]}
    new = sum(prompt not in templates for prompt in fitness.history)
    more = {"method": "llm_bbo", "model": opened.name, "language model": asked, "new prompts": new}
    return search.report(fitness, FIRST, tests, **more, trace=result.trace)


def _templates(file: Path) -> list[str]:
    from foveal.adapt.llm_bbo import parse_templates

    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if bad := [line for line in lines if parse_templates(f"- {line}") is None]:
        raise ValueError(f"{file} holds {bad[0]!r}: write {{}} once or more, and no other brace")
    return lines
