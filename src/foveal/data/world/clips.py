"""Short films: a scene whose things move, come and go, one event after the other, so that a sentence can tell them."""

from __future__ import annotations

import numpy as np

from foveal.data.world.config import WorldConfig
from foveal.data.world.layout import Dice, scene
from foveal.data.world.scene import Clip, Event, Scene, Thing

DIRECTIONS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
ROOM, FARTHEST = 0.2, 0.5
"""Shares of the picture that a thing moves at least and at most."""
GROWTH = 1.7


def clip(config: WorldConfig, seed: int, index: int, frames: int = 8) -> Clip:
    """The film number ``index`` of the world ``seed``: its scene, and up to two events to two of its things.

    Whatever has no event stands still; what moves does so at a constant speed. With fewer than four frames there is
    one event, and there is none where there is no thing.

    Raises:
        ValueError: when ``frames`` is not 2 to 256.
    """
    if not 2 <= frames <= 256:
        raise ValueError(f"frames is {frames}; it must be 2 to 256")
    start = scene(config, seed, index)
    dice = Dice(np.random.default_rng((seed, index, 1)))
    wanted = min(len(start.things), 1 if frames < 4 else 1 + dice.integer(2))
    actors: list[int] = []
    while len(actors) < wanted:
        actor = dice.integer(len(start.things))
        if actor not in actors:
            actors.append(actor)
    length = frames // max(1, wanted)
    events = []
    paths = {}
    for number, actor in enumerate(actors):
        event, path = _event(config, dice, start.things[actor], actor, number * length, (number + 1) * length - 1)
        events.append(event)
        paths[actor] = event, path
    present = [_present(len(start.things), events, time) for time in range(frames)]
    pictures = [_frame(start, time, there, paths) for time, there in enumerate(present)]
    return Clip(f"{start.key}-clip", start.things, tuple(pictures), tuple(events), tuple(present))


Change = dict[str, float | str]


def _event(config: WorldConfig, dice: Dice, thing: Thing, number: int, first: int, last: int) -> tuple[Event, Change]:
    """An event that the thing has room for within the frames, and what it makes of the thing in the end."""
    short = min(config.shape)
    reach = (thing.radius * short / config.shape[1], thing.radius * short / config.shape[0])
    changes: dict[str, Change] = {"appears": {}, "disappears": {}, "changes colour": {}}
    for kind, direction in DIRECTIONS.items():
        axis = 0 if direction[0] else 1
        place, sign = (thing.x, thing.y)[axis], direction[axis]
        room = (1 - reach[axis] - place) if sign > 0 else place - reach[axis]
        if room >= ROOM:
            changes[kind] = {"xy"[axis]: place + sign * dice.between(ROOM, min(room, FARTHEST))}
    if all(GROWTH * r <= min(place, 1 - place) for r, place in zip(reach, (thing.x, thing.y))):
        changes["grows"] = {"radius": thing.radius * GROWTH}
    if thing.radius * short / GROWTH >= 3:  # smaller than six pixels it would vanish
        changes["shrinks"] = {"radius": thing.radius / GROWTH}
    kind = dice.choose(tuple(changes))
    if kind in ("appears", "disappears", "changes colour"):
        first = last = max(1, (first + last + 1) // 2)  # at once, and there is a before
    if kind != "changes colour":
        return Event(kind, number, first, last), changes[kind]
    colour = dice.choose([name for name in config.colours if name != thing.colour])
    return Event(kind, number, first, last, colour), {"colour": colour}


def _present(count: int, events: list[Event], time: int) -> tuple[int, ...]:
    gone = {event.thing for event in events if event.kind == "appears" and time < event.start}
    gone |= {event.thing for event in events if event.kind == "disappears" and time >= event.start}
    return tuple(number for number in range(count) if number not in gone)


def _frame(start: Scene, time: int, there: tuple[int, ...], paths: dict[int, tuple[Event, Change]]) -> Scene:
    things = []
    for number in there:
        thing = start.things[number]
        if number in paths:
            event, change = paths[number]
            done = min(1.0, max(0.0, (time - event.start) / max(1, event.end - event.start)))
            thing = thing.with_(**{name: _between(thing, name, end, done) for name, end in change.items()})
            if event.kind == "changes colour" and time >= event.start:
                thing = thing.with_(colour=event.to)
        things.append(thing)
    return start.with_(key=f"{start.key}-clip-{time}", things=tuple(things))


def _between(thing: Thing, name: str, end: float | str, done: float) -> float | str | None:
    begin = getattr(thing, name)
    return begin + (end - begin) * done if isinstance(end, float) else begin
