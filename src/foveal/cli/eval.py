"""Measure any model: a dual encoder, a vision-language model or a text-to-image pipeline."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from foveal.evaluate.models import Opened
    from foveal.evaluate.run import TaskResult


def main(
    model: Annotated[str, tyro.conf.Positional],
    task: str | None = None,
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    device: str = "auto",
    dtype: str = "auto",
    steps: int = 30,
    guidance: float = 3.0,
    decode: Literal["debias", "damro", "agla"] | None = None,
    matcher: str | None = None,
    data: Path | None = None,
    images: Path | None = None,
    fresh: bool = False,
    out: Path | None = None,
    card: Path | None = None,
    json: bool = False,
) -> None:
    """Measure a model on held-out scenes of the world, or on your own files. After Ctrl-C the same command goes on.

    Shares come with their 95 % interval and what chance would give. Outputs are kept in .foveal/evaluate of the folder
    you are in, so that nothing that is finished is asked again.

    Args:
        model: a reference model such as nano-clip, a folder made by save_pretrained, or a hub id owner/name; also a
            JSON file of answers from elsewhere, for --task pope, chair or vqa.
        task: only these, separated by commas; default: all that the model can take and that need no files.
        n: number of scenes, pictures or questions of each task; default: each task's own.
        seed: of the held-out scenes.
        batch_size: most pictures or texts at once.
        device: cpu, cuda, cuda:1, mps; auto is a GPU if there is one.
        dtype: auto, float32, bfloat16 or float16; auto is the checkpoint's own on a GPU, else float32.
        steps: denoising steps of a text-to-image pipeline.
        guidance: its scale of classifier-free guidance; 1 is none.
        decode: a decoder against invented objects, for the answers of a vision-language model.
        matcher: the CLIP or BLIP by which agla finds what a question is about: Salesforce/blip-itm-large-coco.
        data: file or folder of the task, such as a POPE file or a folder of class folders.
        images: folder of the pictures that the data file names.
        fresh: ask again what an earlier run has finished.
        out: JSON file for the result; the predictions go into files beside it.
        card: Markdown file for a model card of a model that `foveal train` made; its pictures go beside it.
        json: print the result as one JSON document instead of a table.
    """
    names = None if task is None else [name.strip() for name in task.split(",") if name.strip()]
    if out is not None and out.suffix != ".json":
        raise ValueError(f"out={str(out)!r}: give a file that ends in .json")
    if card is not None and card.suffix != ".md":
        raise ValueError(f"card={str(card)!r}: give a file that ends in .md")
    opening = {"device": device, "dtype": dtype, "batch_size": batch_size, "steps": steps, "guidance": guidance}
    given = {"seed": seed, "data": data, "images": images}
    if matcher is not None and decode is None:
        raise ValueError(f"matcher={matcher!r}: is for --decode agla")
    opened, results = measure(model, names, n, fresh, opening, given, (decode, matcher), needs_record=card is not None)
    result = as_json(opened, seed, n, results)
    written = [] if out is None else write(out, result, results)
    if card is not None:
        written += write_card(card, opened, result, results)
    if json:
        from foveal.cli import print_json

        print_json(result)
        return

    from rich.console import Console

    console = Console()
    console.print(table(opened, results))
    for path in written:
        console.print(f"[dim]wrote[/] {path}", highlight=False, soft_wrap=True)


def measure(
    model: str,
    names: list[str] | None,
    n: int | None,
    fresh: bool,
    opening: dict[str, Any],
    given: dict[str, Any],
    decoder: tuple[str | None, str | None],
    needs_record: bool,
) -> tuple[Opened, list[TaskResult]]:
    """Open the model and run its tasks behind a bar. A card that cannot be written is refused before.

    ``decoder``: its name and its matcher.
    """
    from foveal.cli._pictures import progress

    with progress() as report:
        report("loading", 0, 1)
        from foveal.evaluate.base import Setting
        from foveal.evaluate.models import open_model
        from foveal.evaluate.run import KEEP, run_task
        from foveal.evaluate.tasks import tasks_for
        from foveal.lab.environment import versions

        Setting(1 if n is None else n, **given)  # refused before anything is loaded
        opened = open_model(model, **opening)
        if not opened.parameters and names is None:
            raise ValueError(f"model={model!r} holds answers: say to which task, --task pope, chair or vqa")
        decode, matcher = decoder
        if decode is not None:
            from foveal.cli._eval_decode import with_decoder

            opened = with_decoder(opened, decode, matcher)
        if needs_record:
            from foveal.evaluate.card import read_record

            read_record(opened.folder)
        results = [
            run_task(
                task,
                opened,
                Setting(task.size if n is None else n, **given),
                keep=KEEP,
                fresh=fresh,
                versions=versions(),
                report=report,
            )
            for task in tasks_for(opened.kind, names)
        ]
    return opened, results


def as_json(opened: Opened, seed: int, n: int | None, results: list[TaskResult]) -> dict[str, Any]:
    """Everything that is needed to know what was measured and to measure it again; ``n`` is what was asked for."""
    from foveal.lab.environment import hardware, versions

    about = ("name", "kind", "class_name", "parameters", "weight_bytes", "sha256", "dtype", "device", "settings")
    return {
        "model": {name: getattr(opened, name) for name in about},
        "seed": seed,
        "n": n,
        "batch_size": opened.model.batch_size,
        "tasks": {result.task.name: result.as_json() for result in results},
        "versions": versions(),
        "hardware": hardware(),
    }


def write(out: Path, result: dict[str, Any], results: list[TaskResult]) -> list[Path]:
    """``out``, and beside it the judged predictions of each task as ``<out>.<task>.jsonl``; each whole or not there."""
    from foveal.lab.files import write_atomically

    written = []
    for found in results:
        path = out.with_name(f"{out.stem}.{found.task.name}.jsonl")
        lines = [json_module.dumps(row, ensure_ascii=False) for row in found.rows]
        write_atomically(path, ("\n".join(lines) + "\n").encode())
        result["tasks"][found.task.name]["predictions"] = path.name
        written.append(path)
    write_atomically(out, (json_module.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    return [*written, out]


def write_card(card: Path, opened: Opened, result: dict[str, Any], results: list[TaskResult]) -> list[Path]:
    """The card and its pictures, each file whole or not there."""
    from foveal.evaluate.card import card_files, read_record
    from foveal.lab.files import write_atomically

    pictures = [(row["prompt"], row["png"]) for found in results for row in found.rows if "png" in row]
    files = card_files(card.stem, result, read_record(opened.folder), pictures)
    for name, content in files.items():
        write_atomically(card.with_name(name), content)
    return [card.with_name(name) for name in files]


def table(opened: Opened, results: list[TaskResult]) -> Any:
    """One row for each metric."""
    from rich.table import Table
    from rich.text import Text

    from foveal.evaluate.base import shown

    size = f", {opened.parameters:,} parameters" if opened.parameters else ""
    title = f"{opened.name}: {opened.class_name}{size}"
    grid = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for column in ("task", "metric"):
        grid.add_column(column, style="cyan" if column == "task" else None)
    for column in ("value", "95 % interval", "chance", "n"):
        grid.add_column(column, justify="right")
    for result in results:
        task = result.task.name
        for metric in result.metrics:
            value, low, high, chance = (
                shown(part, metric.unit) for part in (metric.value, metric.low, metric.high, metric.chance)
            )
            inside = f"{low} – {high}" if low else ""
            grid.add_row(*map(Text, (task, metric.name, value, inside, chance, f"{metric.n:,}")))
            task = ""
    return grid
