"""How long ``foveal train nano-llava`` takes here: ``python benchmarks/nano_llava.py [--steps 20]``.

A few steps of every stage, as the training takes them, on fewer scenes. The training draws 57,000 scenes before its
first step, once, some 4 ms each.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path


def measure(steps: int) -> list[tuple[str, int, float]]:
    """Stage, its steps in the training, and the mean seconds of one."""
    from foveal.zoo import nano
    from foveal.zoo.nano import llava
    from foveal.zoo.nano.films import DrawnFilms
    from foveal.zoo.nano.lessons import Writer
    from foveal.zoo.nano.scenes import LLAVA_LESSONS, LLAVA_WORLD, DrawnScenes

    whole = llava.LlavaTraining()
    short = tuple(replace(stage, steps=steps) for stage in whole.stages)
    settings = replace(whole, scenes=1000, clear_scenes=1000, films=100, stages=short)
    scenes = DrawnScenes(LLAVA_LESSONS, settings.seed, settings.scenes)
    clear = DrawnScenes(LLAVA_WORLD, settings.seed, settings.clear_scenes)
    films = DrawnFilms(LLAVA_LESSONS, settings.seed, settings.films)
    for drawn in (scenes, clear, films):
        _ = drawn.images
    model, processor = llava.build(nano.folder("nano-clip"), llava.corpus(scenes, films, 300), settings)
    writer = Writer(processor, model.config.image_seq_length)
    found = []
    for number, stage in enumerate(whole.stages):
        with tempfile.TemporaryDirectory() as work:
            report = llava.Course(model, writer, scenes, clear, films, settings, Path(work)).take(number)
        found.append((stage.name, stage.steps, report.seconds / report.steps))
    return found


def main() -> None:
    import torch
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="of every stage")
    options = parser.parse_args()
    found = measure(options.steps)
    table = Table(title=f"foveal train nano-llava, {torch.get_num_threads()} threads")
    for header in ("stage", "steps", "s a step", "minutes"):
        table.add_column(header, justify="left" if header == "stage" else "right")
    for name, steps, seconds in found:
        table.add_row(name, f"{steps:,}", f"{seconds:.2f}", f"{steps * seconds / 60:.0f}")
    minutes = sum(steps * seconds for _, steps, seconds in found) / 60
    table.add_row("all", f"{sum(steps for _, steps, _ in found):,}", "", f"{minutes:.0f}", style="bold")
    Console().print(table)


if __name__ == "__main__":
    main()
