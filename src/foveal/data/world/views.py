"""The same things seen again: from another place with every correspondence known, or almost unchanged."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from foveal.data.world.backgrounds import from_plane, to_plane
from foveal.data.world.draw import Drawing
from foveal.data.world.layout import Dice
from foveal.data.world.scene import Scene, Thing
from foveal.data.world.vocabulary import SPRITE


@dataclass(frozen=True, slots=True)
class View:
    """A second view. ``matches[i]`` is the index in ``scene.things`` of thing i of ``first``, or None if it left."""

    first: Scene
    scene: Scene
    matches: tuple[int | None, ...]


def second_view(
    scene: Scene,
    rng: np.random.Generator,
    *,
    shift: float = 0.6,
    zoom: float = 1.25,
    style: str | None = None,
    distractors: int = 0,
) -> View:
    """The scene after the camera has moved sideways and zoomed: near things move more than far ones.

    Args:
        scene: what is looked at; it may itself be a view.
        rng: where the move comes from.
        shift: metres that the camera moves at most, right or left, and half as much up or down.
        zoom: factor, at least 1, by which the focal length grows or shrinks at most.
        style: style of the second picture (another light, another season); None keeps that of the first.
        distractors: sprites that only the second view has, behind all other things.

    Raises:
        ValueError: when ``shift`` is negative, ``zoom`` below 1 or ``distractors`` not 0 to 10.
    """
    if shift < 0 or zoom < 1 or not 0 <= distractors <= 10:
        values = f"shift is {shift}, zoom is {zoom}, distractors is {distractors}"
        raise ValueError(f"{values}; they must be at least 0, at least 1 and 0 to 10")
    dice = Dice(rng)
    move = (dice.between(-shift, shift), dice.between(-shift / 2, shift / 2))
    factor = zoom ** dice.between(-1.0, 1.0)
    ground = scene.background
    moved = [_moved(thing, move, ground.zoom, factor) for thing in scene.things]
    stays = [0.0 < thing.x < 1.0 and 0.0 < thing.y < 1.0 for thing in moved]
    things = [thing for thing, seen in zip(moved, stays) if seen]
    matches = tuple(sum(stays[:number]) if seen else None for number, seen in enumerate(stays))
    things += [_distractor(dice, scene) for _ in range(distractors)]
    camera = (ground.camera[0] + move[0], ground.camera[1] + move[1])
    background = replace(ground, camera=camera, zoom=ground.zoom * factor)
    second = scene.with_(
        key=f"{scene.key}-view",
        things=tuple(things),
        background=background,
        style=style or scene.style,
        writings=(),  # written on the first picture, not in the world
        variant=dice.integer(2**31),
    )
    return View(scene, second, matches)


def correspond(
    view: View, points: Float[np.ndarray, "n 2"], instances: Int[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "n 2"], Bool[np.ndarray, "n"]]:
    """Where points of the first picture are in the second.

    Args:
        view: what `second_view` gave.
        points: x and y as shares of the first picture.
        instances: what is seen there: 0 for the background, i + 1 for thing i, as in `Drawing.instance`.

    Returns:
        Shares of the second picture, and whether the point is in it (what hides it there is for `flow` to say).
        The place of a point that is not is kept finite.
    """
    found = from_plane(view.scene.background, to_plane(view.first.background, points))
    there = np.ones(len(points), dtype=bool)
    for number, match in enumerate(view.matches):
        on_it = instances == number + 1
        if match is None:
            there &= ~on_it
            continue
        before, after = view.first.things[number], view.scene.things[match]
        scale = after.radius / before.radius
        found[on_it] = (points[on_it] - [before.x, before.y]) * scale + [after.x, after.y]
    return found, there & ((found >= 0) & (found < 1)).all(axis=1)


def flow(view: View, first: Drawing, second: Drawing) -> tuple[Float[np.ndarray, "h w 2"], Bool[np.ndarray, "h w"]]:
    """For each pixel of the first drawing, where it is in the second (x, y in pixels), and whether it is seen there.

    The centre of the pixel in column i is at x = i + 0.5.
    """
    height, width = first.instance.shape
    rows, columns = second.instance.shape
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    ids = first.instance.ravel()
    found, seen = correspond(view, np.stack([x.ravel(), y.ravel()], axis=1), ids)
    found = found * [columns, rows]
    expected = np.array([0, *(0 if match is None else match + 1 for match in view.matches)])[ids]
    inside = found[seen].astype(np.int64)
    seen[seen] = second.instance[inside[:, 1], inside[:, 0]] == expected[seen]
    return found.reshape(height, width, 2).astype(np.float32), seen.reshape(height, width)


def jitter(scene: Scene, rng: np.random.Generator, amount: float = 0.02) -> Scene:
    """A near-duplicate: each thing moved by at most ``amount`` of the picture, its radius changed by at most as much.

    Raises:
        ValueError: when ``amount`` is not 0 to 0.2.
    """
    if not 0 <= amount <= 0.2:
        raise ValueError(f"amount is {amount}; it must be 0 to 0.2, beyond which it is another scene")
    dice = Dice(rng)
    things = []
    for thing in scene.things:
        radius = thing.radius * dice.between(1 - amount, 1 + amount)
        x = min(max(thing.x + dice.between(-amount, amount), radius), 1 - radius)
        y = min(max(thing.y + dice.between(-amount, amount), radius), 1 - radius)
        things.append(thing.with_(x=x, y=y, radius=radius))
    return scene.with_(key=f"{scene.key}-near", things=tuple(things), variant=dice.integer(2**31))


def _moved(thing: Thing, move: tuple[float, float], zoom: float, factor: float) -> Thing:
    x, y = ((place - 0.5 - zoom * step / thing.depth) * factor + 0.5 for place, step in zip((thing.x, thing.y), move))
    return thing.with_(x=x, y=y, radius=thing.radius * factor)


def _distractor(dice: Dice, scene: Scene) -> Thing:
    taken = {thing.noun for thing in scene.things}
    noun = dice.choose([noun for noun in SPRITE if noun not in taken])
    farthest = max((thing.depth for thing in scene.things), default=5.0)
    depth = min(10.0, farthest + dice.between(0.0, 0.5))
    x, y = dice.between(0.15, 0.85), dice.between(0.15, 0.85)
    return Thing(noun, SPRITE[noun].category, "small", x, y, 0.4 / depth, depth)
