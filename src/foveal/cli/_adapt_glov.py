"""`foveal adapt glov`: a language model looks for the wording of the prompt that suits your model and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro


def glov(
    model: str,
    train: Path,
    budget: int = 60,
    classes: Path | None = None,
    test: Path | None = None,
    lm: str = "smollm2",
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("glov"),
    dataset: str = "",
    description: str = "",
    initial: str = "a photo of a <category>.",
    per_step: int = 10,
    alpha: float = 1.0,
    layer: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    device: str = "auto",
    json: bool = False,
) -> None:
    """GLOV: a language model, shown the best and the worst prompts so far, writes better ones for a CLIP.

    Writes prompts.json (the best prompts and all that were tried), history.png and journal.json. After Ctrl-C the same
    command goes on after the last reply, and so it does with a larger --budget.

    Args:
        model: nano-clip, a folder made by save_pretrained, or a hub id owner/name; a CLIP, SigLIP or their like.
        train: CSV file with the columns image (path, from the file's folder) and label; a few pictures a class.
        budget: replies of the language model in all.
        classes: text file with a class name a line; by default the labels of --train.
        test: such a CSV file, of other pictures, on which the prompts that were found are measured.
        lm: smollm2, openai:URL[#model] (key: $OPENAI_API_KEY) or scripted:FILE.json. Local ones are also steered.
        out: folder for what is written.
        dataset: its name, for the language model; by default that of --train.
        description: what the pictures show, in a sentence, for the language model.
        initial: first prompt; <category> is where the class name is put.
        per_step: replies of each step, of which --budget makes several.
        alpha: of the steering; 0 does without.
        layer: block that is steered, from 0; by default 17/32 of the way up.
        seed: of the replies.
        batch_size: most pictures or texts at once.
        device: cpu, cuda, cuda:1, mps; auto is a GPU if there is one.
        json: print prompts.json instead of a table.
    """
    if budget < 1 or per_step < 1:
        raise ValueError(f"budget={budget}, per_step={per_step}: both must be at least 1")
    from foveal.cli._pictures import progress

    options = {"alpha": alpha, "layer": layer, "seed": seed, "initial": initial, "per_step": min(per_step, budget)}
    about = (dataset or train.stem, description)
    with progress() as watch:
        document = _search(model, (train, classes, test), budget, lm, out, about, options, (device, batch_size), watch)
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
    about: tuple[str, str],
    options: dict[str, Any],
    place: tuple[str, int],
    watch: Any,
) -> dict[str, Any]:
    from foveal.adapt.base_search import SearchJournal
    from foveal.adapt.glov import PLACEHOLDER, GLOVOptimizer
    from foveal.adapt.glov_list import as_list
    from foveal.cli import _adapt_search as search

    train, classes, test = files
    names = None if classes is None else search.read_classes(classes)
    opened = search.dual_encoder(model, *place)
    shots = search.read_shots(train, opened.model, names, watch)
    tests = None if test is None else search.read_shots(test, opened.model, shots.classes, watch)
    settings = {"method": "glov", "model": opened.sha256, "data": shots.digest, "lm": lm, "about": about, **options}
    journal = SearchJournal(out / "journal.json", settings)
    fitness = search.Fitness(shots, opened.model, PLACEHOLDER, journal)
    steps = budget // options["per_step"]
    writer, heard = search.writer(lm, as_list, "", journal, steps * options["per_step"], watch)
    result = GLOVOptimizer(writer, fitness, *about, steps=steps, ensemble=search.BEST, **options).run()
    journal.save()
    asked = {"name": lm, "replies": heard[-1], "steered steps": result.steered_steps}
    more = {"method": "glov", "model": opened.name, "language model": asked, "new prompts": len(result.history) - 1}
    document = search.report(fitness, options["initial"], tests, **more)
    search.write_report(out, document)
    return document
