"""One large picture with where a region focus module looks, and the tiles that are fetched for it."""

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from foveal.compress.lrs import LargeImageLlava
from foveal.lab import figures
from foveal.recipes._large import Picture, normalised, prompt


def where_it_looks(plugin: LargeImageLlava, picture: Picture, square: int = 0) -> Figure:
    """Left the attention to the tokens of the first level, right the tiles that were fetched of each finer one."""
    ids, size = prompt(picture.squares[square]), len(picture.image)
    image = normalised(picture.image)
    embeds, local = plugin.first_level(image, ids)
    with torch.no_grad():
        scores = plugin.rfm.scores(embeds, torch.tensor([embeds.shape[1] - 1]), local)[0]
    plugin.prepare(image, ids)
    assert plugin.last is not None
    side = round(len(scores) ** 0.5)
    figure, (left, right) = figures.subplots(1, 2, 8.0, 4.2)
    for axis in (left, right):
        axis.imshow(picture.image, interpolation="nearest")
        axis.axis("off")
        x0, y0, x1, y1 = picture.boxes[square]
        margin = size / 40
        frame = (x0 - margin, y0 - margin), x1 - x0 + 2 * margin, y1 - y0 + 2 * margin
        axis.add_patch(Rectangle(*frame, fill=False, edgecolor="black", linewidth=1.5, linestyle=":"))
    heat = left.imshow(scores.view(side, side), extent=(0, size, size, 0), cmap="magma", alpha=0.65)
    figure.colorbar(heat, ax=left, shrink=0.75, label="attention")
    left.set_title(f"looks for the {picture.squares[square]} square")
    colours = ("#0072B2", "#E69F00", "#D55E00")
    for number, (tiles, colour) in enumerate(zip(plugin.last.tiles[1:], colours)):
        step = size / 2 ** (number + 2)
        for row, column in tiles.tolist():
            cell = (column * step, row * step), step, step
            right.add_patch(Rectangle(*cell, fill=False, edgecolor=colour, linewidth=2.2 - 0.6 * number))
    right.set_title(f"{plugin.last.tiles_encoded + 1} tiles encoded")
    return figure
