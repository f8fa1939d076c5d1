"""Puts a measurement on disk: the result file, its pictures and the method's page."""

from pathlib import Path

from foveal.lab import figures
from foveal.lab.files import write_atomically
from foveal.lab.page import LOSS, SUMMARY, Subject, method_page
from foveal.lab.recipe import Recipe
from foveal.lab.result import FEWEST_SEEDS, write_result
from foveal.lab.run import Picture
from foveal.lab.runner import Outcome


def check_destination(out: Path, smoke: bool, partial: bool, seeds: int) -> None:
    """ValueError when ``out`` is where the project's published results live and the run is not a whole measurement."""
    if is_published(out) and (smoke or partial or seeds < FEWEST_SEEDS):
        what = "a smoke run" if smoke else "part of the arms" if partial else f"{seeds} seeds"
        raise ValueError(f"out={out}: published results need all arms and {FEWEST_SEEDS} seeds, this is {what}")


def is_published(out: Path) -> bool:
    """Is this ``docs/results`` of a checkout, whose pages belong into ``docs/methods``?"""
    return out.resolve().parts[-2:] == ("docs", "results")


def publish(outcome: Outcome, recipe: Recipe, subject: Subject, out: Path) -> list[Path]:
    """Write ``<slug>.json``, ``<slug>/*.png`` and ``<slug>.md`` into ``out``; from ``docs/results``, the page goes to
    ``docs/methods``. Returns the paths of result and page."""
    result, slug = outcome.result, recipe.paper
    check_destination(out, result["smoke"], result["partial"], len(result["seeds"]))
    pictures = _summary(outcome) | outcome.pictures
    for name, picture in pictures.items():
        write_atomically(out / slug / name, picture.png)
    for leftover in {path.name for path in (out / slug).glob("*.png")} - pictures.keys():
        (out / slug / leftover).unlink()
    page, prefix = out / f"{slug}.md", ""
    if is_published(out):
        page, prefix = out.parent / "methods" / f"{slug}.md", "../results/"
    text = method_page(
        result, recipe, subject, {f"{prefix}{slug}/{name}": picture.caption for name, picture in pictures.items()}
    )
    write_atomically(page, text.encode())
    write_result(out / f"{slug}.json", result)
    return [out / f"{slug}.json", page]


def _summary(outcome: Outcome) -> dict[str, Picture]:
    """What every page shows: the claimed metrics, and the losses where an arm has recorded some."""
    drawn = {}
    if outcome.result["claims"]:
        caption = (
            "Bars are means over the seeds, whiskers standard deviations, dots single seeds; claimed methods in blue."
        )
        drawn[SUMMARY] = Picture(figures.png(figures.bars(outcome.result)), caption)
    if loss := figures.curves(outcome.result):
        drawn[LOSS] = Picture(figures.png(loss), "Training loss: mean over the seeds, and their range.")
    return drawn
