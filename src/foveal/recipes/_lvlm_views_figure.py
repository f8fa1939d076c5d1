"""A picture of what nano-clip's maps leave of four scenes."""

import torch
from matplotlib.figure import Figure

from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.evaluate.tasks.worlds import LLAVA_WORLD, held_out
from foveal.lab import Run, figures
from foveal.recipes._lvlm_views import maps, views


def figure(run: Run) -> tuple[Figure, str]:
    """Four pictures, and what the map of a question about one thing in each leaves of them."""
    scenes = [lay_out(LLAVA_WORLD, held_out(run.seed, 70), i) for i in range(4)]
    images = [draw(scene, LLAVA_WORLD.size).image for scene in scenes]
    questions = [f"Is there a {scene.things[0].noun} in the image?" for scene in scenes]
    pictures = [torch.from_numpy(image).permute(2, 0, 1) / 255 for image in images]
    left = [view.permute(1, 2, 0).numpy() for view in views(pictures, maps(run, images, questions))]
    grid = figures.picture_grid([*images, *left], [*questions, *[""] * 4])
    return grid, "Below: what the map of the question leaves of the picture."
