"""`foveal adapt llm_bbo`: hill climbing for a prompt, with a language model that sees good and bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

FIRST = "a photo of a {}."
"""What the prompts that were found are compared with."""


def llm_bbo(
    model: str,
    train: Path,
    budget: int = 60,
    classes: Path | None = None,
    test: Path | None = None,
    lm: str = "smollm2",
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("llm_bbo"),
    pool: Path | None = None,
    sample_size: int = 100,
    k: int = 15,
    iterations: int = 10,
    resets: int = 50,
    mode: Literal["both", "positive", "none"] = "both",
    seed: int = 0,
    batch_size: int = 32,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Black-box search: templates from a pool are scored, and a language model that sees both ends writes better ones.

    Writes prompts.json (the best prompts and all that were tried), history.png and journal.json. After Ctrl-C the same
    command goes on after the last reply, and so it does with a larger --budget.

    Args:
        model: nano-clip, a folder made by save_pretrained, or a hub id owner/name; a CLIP, SigLIP or their like.
        train: CSV file with the columns image (path, from the file's folder) and label; a few pictures a class.
        budget: replies of the language model in all, those of no use counted.
        classes: text file with a class name a line; by default the labels of --train.
        test: such a CSV file, of other pictures, on which the prompts that were found are measured.
        lm: smollm2, openai:URL[#model] (key: $OPENAI_API_KEY) or scripted:FILE.json.
        out: folder for what is written.
        pool: text file of templates, one a line, {} where the class name is put; by default some 200 of foveal's own.
        sample_size: templates of the pool to start from.
        k: how many good and how many bad templates are shown.
        iterations: requests before what the language model added is forgotten.
        resets: times that this happens before other templates are drawn.
        mode: both ends, the good ones alone, or no template at all.
        seed: of draws and replies.
        batch_size: most pictures or texts at once.
        device: cpu, cuda, cuda:1, mps; auto is a GPU if there is one.
        json: print prompts.json instead of a table.
    """
    if budget < 1:
        raise ValueError(f"budget={budget}: must be at least 1")
    from foveal.cli._pictures import progress

    sizes = {"sample_size": sample_size, "k": k, "n_iter": iterations, "n_reset": resets, "mode": mode}
    with progress() as watch:
        document = _search(
            model, (train, classes, test), budget, lm, out, pool, sizes, seed, (device, batch_size), watch
        )
    if json:
        from foveal.cli import print_json

        print_json(document)
        return
    from foveal.cli._adapt_search import show

    show(document, [out / "prompts.json", out / "history.png"])


def _search(
    model: str,
    files: tuple[Path, Path | None, Path | None],
    budget: int,
    lm: str,
    out: Path,
    pool: Path | None,
    sizes: dict[str, Any],
    seed: int,
    place: tuple[str, int],
    watch: Any,
) -> dict[str, Any]:
    import torch

    from foveal.adapt.base_search import SearchJournal
    from foveal.adapt.llm_bbo import DEFAULT_POOL, PromptHillClimber
    from foveal.adapt.llm_bbo_list import as_list
    from foveal.cli import _adapt_search as search

    train, classes, test = files
    templates = list(DEFAULT_POOL) if pool is None else _templates(pool)
    names = None if classes is None else search.read_classes(classes)
    opened = search.dual_encoder(model, *place)
    shots = search.read_shots(train, opened.model, names, watch)
    tests = None if test is None else search.read_shots(test, opened.model, shots.classes, watch)
    settings = {"method": "llm_bbo", "model": opened.sha256, "data": shots.digest, "lm": lm, "pool": templates}
    journal = SearchJournal(out / "journal.json", {**settings, **sizes, "seed": seed})
    fitness = search.Fitness(shots, opened.model, "{}", journal)
    writer, heard = search.writer(lm, as_list, "- ", journal, budget, watch)
    climber = PromptHillClimber(lambda prompt: fitness(prompt) / 100, writer, max_calls=budget, **sizes)
    result = climber.run(templates, torch.Generator().manual_seed(seed))
    journal.save()
    asked = {"name": lm, "replies": heard[-1]}
    new = sum(prompt not in templates for prompt in fitness.history)
    more = {"method": "llm_bbo", "model": opened.name, "language model": asked, "new prompts": new}
    document = search.report(fitness, FIRST, tests, **more, trace=result.trace)
    search.write_report(out, document)
    return document


def _templates(file: Path) -> list[str]:
    from foveal.adapt.llm_bbo import parse_templates

    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if bad := [line for line in lines if parse_templates(f"- {line}") is None]:
        raise ValueError(f"{file} holds {bad[0]!r}: write {{}} once or more, and no other brace")
    return lines
