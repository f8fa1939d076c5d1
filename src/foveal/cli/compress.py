"""Fewer image tokens for a vision-language model: find a schedule on your own examples, compare every method."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from foveal.cli._compress_examples import Asked
    from foveal.cli._compress_run import Found, Plan
    from foveal.evaluate.models import Opened


def main(
    model: Annotated[str, tyro.conf.Positional],
    calibrate: Path,
    budget: float | None = None,
    method: Literal["psigmoid", "gsearch"] = "psigmoid",
    tolerance: float = 0.5,
    images: Path | None = None,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("schedule.json"),
    metric: Literal["auto", "accuracy", "log-likelihood"] = "auto",
    points: int = 3,
    tries: int = 20,
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    device: str = "auto",
    dtype: str = "auto",
    json: bool = False,
) -> None:
    """Find how many image tokens each decoder layer needs for your questions, and write that schedule to a file.

    One half of the examples is searched on, all numbers are of the other half. Beside the schedule go a picture of
    accuracy against FLOPs with every method of ours that the model allows, and its numbers. In your program:
    foveal.compress.load("schedule.json").attach(model).

    Args:
        model: nano-llava, a folder made by save_pretrained, or a hub id owner/name.
        calibrate: a few hundred examples: JSON lines like {"image": "a.jpg", "question": "...", "answer": "..."}, or
            LLaVA's conversations, of which the first question counts.
        budget: mean share of the image tokens that a decoder layer processes; 1 keeps all. Default 0.25.
        method: psigmoid finds the best schedule of that budget; gsearch the smallest one that loses no more than the
            tolerance.
        tolerance: what gsearch may lose, in points of accuracy, or hundredths of a nat.
        images: folder that image names are relative to; by default that of the examples.
        out: JSON file for the schedule; picture and numbers go beside it.
        metric: auto is accuracy, or for answers that are mostly longer than five words the log-likelihood of the
            reference.
        points: budgets on the picture, the one that is asked for in their middle; psigmoid searches at each.
        tries: schedules that psigmoid tries at each budget.
        n: so many examples, drawn by the seed; default: all.
        seed: of the halves, the search and the random control.
        batch_size: most questions at once.
        device: cpu, cuda, cuda:1, mps; auto is a GPU if there is one.
        dtype: auto, float32, bfloat16 or float16; auto is the checkpoint's own on a GPU, else float32.
        json: print the numbers as one JSON document instead of a table.
    """
    if out.suffix != ".json":
        raise ValueError(f"out={str(out)!r}: give a file that ends in .json")
    if out.is_dir() or any(parent.is_file() for parent in out.parents):
        raise ValueError(f"out={str(out)!r} is a folder, or lies in a file: give a file name")
    if out.resolve() == calibrate.resolve():
        raise ValueError(f"out={str(out)!r} would write over the examples: give another file")
    if n is not None and n < 2:
        raise ValueError(f"n={n}: give two examples at least, one half is searched on, the other reported on")
    if budget is None and method == "psigmoid":
        budget = 0.25
    wish = {"budget": budget, "method": method, "tolerance": tolerance, "metric": metric}
    wish |= {"points": points, "tries": tries, "seed": seed}
    opening = {"device": device, "dtype": dtype, "batch_size": batch_size}
    document = measure(model, opening, wish, calibrate, images, n)
    written = write(out, document)
    if json:
        from foveal.cli import print_json

        print_json(document)
        return

    from rich.console import Console

    from foveal.cli._compress_show import remarks, table

    console = Console()
    console.print(table(document))
    for line in remarks(document):
        console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)
    for path in written:
        console.print(f"[dim]wrote[/] {path}", highlight=False, soft_wrap=True)


def measure(
    model: str, opening: dict[str, Any], wish: dict[str, Any], calibrate: Path, images: Path | None, n: int | None
) -> dict[str, Any]:
    """Open model and examples, search and measure behind a bar; the document of everything that was found."""
    from foveal.cli._pictures import progress

    with progress() as report:
        report("loading", 0, 1)
        from foveal.cli._compress_examples import Asked
        from foveal.cli._compress_run import Plan, check_depth, run
        from foveal.evaluate.models import VisionLanguage, open_model

        plan = Plan(**wish)
        asked = Asked(calibrate, images, n, plan.seed)
        opened = open_model(model, **opening)
        if not isinstance(opened.model, VisionLanguage):
            raise ValueError(f"model={model!r} is {_what(opened)}: give a vision-language model such as nano-llava")
        check_depth(opened.model.model, plan)
        found = run(opened.model, asked, plan, report)
    return as_json(opened, asked, calibrate, plan, found)


def as_json(opened: Opened, asked: Asked, calibrate: Path, plan: Plan, found: Found) -> dict[str, Any]:
    """What was measured, on what, and what is needed to measure it again; nothing in it depends on the clock."""
    from foveal.cli._compress_run import NAMES
    from foveal.lab.environment import versions

    about = ("name", "class_name", "parameters", "sha256", "dtype", "device")
    return {
        "model": {name: getattr(opened, name) for name in about},
        "examples": {
            "file": str(calibrate),
            "searched": found.searched,
            "reported": found.reported,
            "skipped": {reason: asked.faults.counts[reason] for reason in sorted(asked.faults.counts)},
            "skipped_keys": {reason: asked.faults.keys[reason] for reason in sorted(asked.faults.keys)},
            "metric": found.metric,
            "answer_words": found.words,
        },
        "method": NAMES[plan.method],
        "budget": found.budget,
        "tolerance": plan.tolerance if plan.budget is None else None,
        "seed": plan.seed,
        "evaluations": found.evaluations,
        "rates": found.rates,
        "points": [point.as_json() for point in found.points],
        "refused": found.refused,
        "batch_size": opened.model.batch_size,
        "versions": versions(),
    }


def write(out: Path, document: dict[str, Any]) -> list[Path]:
    """Picture, numbers and schedule, each whole or not there; the schedule last."""
    from foveal.cli._compress_show import picture, rows
    from foveal.compress.schedule import save
    from foveal.lab.files import write_atomically

    chart, numbers = out.with_suffix(".png"), out.with_suffix(".curve.json")
    write_atomically(chart, picture(document))
    write_atomically(numbers, (json_module.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    examples, (before, after) = document["examples"], rows(document)[:2]
    metric = examples["metric"]
    save(
        document["rates"],
        out,
        model=document["model"]["name"],
        method=document["method"],
        budget=document["budget"],
        **{f"{metric} {when}": row[metric]["value"] for when, row in (("before", before), ("after", after))},
        flops=after["flops"],
        examples_searched=examples["searched"],
        examples_reported=examples["reported"],
        evaluations=document["evaluations"],
        seed=document["seed"],
    )
    return [out, chart, numbers]


def _what(opened: Opened) -> str:
    return f"a {opened.kind} model" if opened.parameters else "a file of answers"
