"""What an event says is what the frames show, and nothing else changes."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from foveal.data.world.clips import clip
from foveal.data.world.config import WorldConfig
from foveal.data.world.draw import draw

CONFIG = WorldConfig(things=(1, 4), min_visible=0.6)
CLIPS = [clip(CONFIG, 0, index) for index in range(120)]


def states(film, number):
    """The thing in each frame, None where it is not there."""
    return [
        frame.things[there.index(number)] if number in there else None
        for frame, there in zip(film.frames, film.present)
    ]


def test_all_kinds_of_events_occur():
    kinds = Counter(event.kind for film in CLIPS for event in film.events)
    assert set(kinds) == {
        *("appears", "disappears", "changes colour", "grows", "shrinks"),
        *("moves left", "moves right", "moves up", "moves down"),
    }
    assert {len(film.events) for film in CLIPS} == {1, 2}


@pytest.mark.parametrize("index", range(120))
def test_frames_show_what_events_say(index):
    film = CLIPS[index]
    assert len(film.frames) == len(film.present) == 8
    acting = {event.thing: event for event in film.events}
    assert len(acting) == len(film.events)
    for first, second in pairwise(film.events):
        assert first.end < second.start
    for number, thing in enumerate(film.things):
        path = states(film, number)
        if number not in acting:
            assert path == [thing] * 8
            continue
        event = acting[number]
        assert 0 <= event.start <= event.end < 8
        if event.kind in ("appears", "disappears"):
            there = [state is not None for state in path]
            before = event.kind == "disappears"
            assert there == [before] * event.start + [not before] * (8 - event.start)
            assert event.start > 0
            continue
        check_change(event, path)


def check_change(event, path):
    assert path[0] is not None
    if event.kind == "changes colour":
        assert [state.colour for state in path[event.start :]] == [event.to] * (8 - event.start)
        assert path[event.start - 1].colour != event.to
        return
    axis, sign = {
        "moves left": ("x", -1),
        "moves right": ("x", 1),
        "moves up": ("y", -1),
        "moves down": ("y", 1),
        "grows": ("radius", 1),
        "shrinks": ("radius", -1),
    }[event.kind]
    values = np.array([getattr(state, axis) for state in path])
    steps = np.diff(values)
    assert (sign * steps[event.start : event.end] > 0).all()
    assert np.allclose(steps[event.start : event.end], steps[event.start])  # constant speed
    assert np.allclose(np.delete(steps, range(event.start, event.end)), 0)
    assert {state.with_(**{axis: 0.0}) for state in path} == {path[0].with_(**{axis: 0.0})}


def test_things_stay_in_the_picture():
    for film in CLIPS[:40]:
        for frame in film.frames:
            drawing = draw(frame, 64)
            assert all(0 <= thing.x <= 1 and 0 <= thing.y <= 1 for thing in frame.things)
            assert drawing.instance.max() <= len(frame.things)


def test_deterministic_and_of_any_length():
    assert clip(CONFIG, 0, 3) == CLIPS[3]
    assert clip(CONFIG, 1, 3) != CLIPS[3]
    for frames in (2, 3, 4, 30):
        film = clip(CONFIG, 0, 3, frames)
        assert len(film.frames) == frames
        assert all(event.end < frames for event in film.events)
    empty = clip(WorldConfig(things=(0, 0)), 0, 0)
    assert empty.events == ()
    with pytest.raises(ValueError, match="frames"):
        clip(CONFIG, 0, 0, 1)
