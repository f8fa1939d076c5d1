"""Scenes per second on one core: ``python benchmarks/world.py [--scenes N] [--size PIXELS]``.

Seconds are those of the process, since other work on the machine should not count. The first row starts with empty
caches; the others show what a long run settles at. "sample" is the short caption and the record around it, and the
scenes/s include it; "every word" is what all captions, relations and questions take instead.
"""

import argparse
import time

from rich.console import Console
from rich.table import Table

from foveal.data.world.config import WorldConfig
from foveal.data.world.dataset import World
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=4000, help="scenes in each row")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    given = parser.parse_args()
    config = WorldConfig(size=given.size)
    bare, full = World(config, extras=()), World(config)
    table = Table(
        title=f"{given.scenes} scenes of {given.size} pixels a row, with caption, boxes, masks and depth, one core"
    )
    columns = ("scenes before", "things a scene", "layout µs", "drawing µs", "sample µs", "scenes/s", "every word µs")
    for column in columns:
        table.add_column(column, justify="right")
    for row in range(5):
        things, spent = 0, [0.0] * 4
        for index in range(row * given.scenes, (row + 1) * given.scenes):
            times = [time.process_time()]
            made = scene(config, 0, index)
            times.append(time.process_time())
            drawing = draw(made, given.size)
            times.append(time.process_time())
            bare.describe(made, drawing, index)
            times.append(time.process_time())
            full.describe(made, drawing, index)
            times.append(time.process_time())
            spent = [total + after - before for total, before, after in zip(spent, times, times[1:])]
            things += len(made.things)
        micros = [1e6 * seconds / given.scenes for seconds in spent]
        table.add_row(
            f"{row * given.scenes}",
            f"{things / given.scenes:.2f}",
            *(f"{value:.0f}" for value in micros[:3]),
            f"{1e6 / sum(micros[:3]):,.0f}",
            f"{micros[3]:.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
