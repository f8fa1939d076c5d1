"""What is told of a clip happened, in that order, and answers can be read off its frames."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from foveal.data.world.clips import clip
from foveal.data.world.config import WorldConfig
from foveal.data.world.narrate import CLIP_KINDS, DOES, clip_caption, clip_questions, story
from foveal.data.world.scene import Background, Clip, Event, Scene, Thing
from foveal.data.world.vocabulary import COLOURS, PLURALS

from .oracle import PHRASE

CONFIG = WorldConfig(things=(1, 4), repeats=0.3)
STAR = Thing("star", "shape", "small", 0.5, 0.5, 0.1, 4.0, "red")
RING = STAR.with_(noun="ring", x=0.2)


def film(*events, things=(STAR, RING)):
    """A hand-made clip of eight frames in which ``appears`` and ``disappears`` take effect."""
    ground, present = Background("place", "grass"), []
    for time in range(8):
        gone = {e.thing for e in events if e.kind == "appears" and time < e.start}
        gone |= {e.thing for e in events if e.kind == "disappears" and time >= e.start}
        present.append(tuple(i for i in range(len(things)) if i not in gone))
    frames = tuple(Scene("film", tuple(things[i] for i in there), ground) for there in present)
    return Clip("film", things, frames, events, tuple(present))


def doing(text):
    """The kind of event that a text speaks of and, for a change of colour, the colour."""
    for kind, forms in DOES.items():
        for form in forms:
            match = re.search(rf"\b{form.format('([a-z]+)')}\b", text)
            if match:
                return kind, match[1] if match.groups() else None
    return None


def test_a_story_tells_every_event_in_order():
    told = 0
    for index in range(150):
        made = clip(CONFIG, 51, index)
        opening, *sentences = story(made, np.random.default_rng(index))
        assert opening.things == ()
        assert [doing(s.text) for s in sentences] == [(e.kind, e.to) for e in made.events]
        assert [s.things for s in sentences] == [(e.thing,) for e in made.events]
        for sentence, event in zip(sentences, made.events):
            assert made.things[event.thing].noun in sentence.text
            told += 1
        line = clip_caption(made, np.random.default_rng(index))
        places = [line.index(made.things[event.thing].noun) for event in made.events]
        assert places == sorted(places)
    assert told > 150


def test_simultaneous_events_are_told_as_such():
    made = film(Event("moves left", 0, 0, 5), Event("grows", 1, 2, 7))
    texts = [story(made, np.random.default_rng(i))[2].text for i in range(10)]
    assert all(text.startswith(("Meanwhile", "At about the same time")) for text in texts)
    assert " while " in clip_caption(made, np.random.default_rng(0))
    assert not [q for q in clip_questions(made, np.random.default_rng(0)) if q.kind == "order"]


def test_order_questions_are_balanced_and_right():
    made = film(Event("moves left", 0, 0, 2), Event("disappears", 1, 5, 5))
    answers = Counter()
    for seed in range(200):
        yes_no, which = (q for q in clip_questions(made, np.random.default_rng(seed)) if q.kind == "order")
        first, second = yes_no.text.removeprefix("Is it true that ").split(" before ")
        assert yes_no.answers == (("yes",) if "star" in first and "ring" in second else ("no",))
        assert "star" in which.answers[0]
        assert doing(which.answers[0]) == ("moves left", None)
        answers[yes_no.answers[0]] += 1
    assert 70 < answers["yes"] < 130


def test_a_change_cannot_name_what_changes():
    blue = STAR.with_(colour="blue")
    made = film(Event("changes colour", 0, 3, 3, "blue"), things=(STAR, blue))
    for seed in range(20):
        assert not [q for q in clip_questions(made, np.random.default_rng(seed)) if q.kind in ("change", "action")]
        assert re.search("a (small )?star", story(made, np.random.default_rng(seed))[1].text.lower())


def test_colours_that_cannot_be_seen_are_not_told():
    made = film(Event("changes colour", 0, 3, 3, "blue"))
    made = replace(made, frames=tuple(frame.with_(style="grey") for frame in made.frames))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        told = [s.text for s in story(made, rng)] + [clip_caption(made, rng)]
        told += [text for q in clip_questions(made, rng) for text in (q.text, *q.answers)]
        assert not [text for text in told if "blue" in text or "red" in text.split()]


def test_questions_about_single_events():
    made = film(Event("moves up", 0, 0, 3), Event("changes colour", 1, 4, 4, "green"))
    asked = clip_questions(made, np.random.default_rng(0))
    by_kind = {kind: [q.answers[0] for q in asked if q.kind == kind] for kind in CLIP_KINDS}
    assert by_kind["direction"] == ["up"]
    assert by_kind["change"] == ["green"]
    assert by_kind["actor"] == ["the star", "the ring"]
    assert by_kind["action"] == ["moves up", "turns green"]
    assert all(q.kind in CLIP_KINDS for q in asked)


def test_answers_follow_from_the_frames():
    asked = Counter()
    for index in range(200):
        made = clip(CONFIG, 52, index)
        for question in clip_questions(made, np.random.default_rng(index)):
            asked[question.kind] += 1
            if question.kind == "count":
                frame = made.frames[0 if "beginning" in question.text else -1]
                nouns = Counter(PLURALS[thing.noun] for thing in frame.things)
                noun = re.match(r"How many ([a-z ]+) are there", question.text)[1]
                assert question.answers[0] == str(len(frame.things) if noun == "things" else nouns[noun])
            elif question.kind == "change":
                assert question.answers[0] in COLOURS
                assert question.answers[0] in {thing.colour for thing in made.frames[-1].things}
            elif question.kind == "direction":
                ways = {"left": ("x", -1), "right": ("x", 1), "up": ("y", -1), "down": ("y", 1)}
                axis, sign = ways[question.answers[0]]
                first, last = (dict(zip(made.present[t], made.frames[t].things)) for t in (0, -1))
                moved = [
                    i for i in first if i in last and sign * (getattr(last[i], axis) - getattr(first[i], axis)) > 0
                ]
                phrase = re.search(PHRASE, question.text)[0]
                assert any(phrase.endswith(made.things[i].noun) for i in moved)
    assert min(asked[kind] for kind in CLIP_KINDS) >= 5, asked


def test_no_events_no_things():
    still = film()
    assert clip_caption(still, np.random.default_rng(0))
    assert len(story(still, np.random.default_rng(0))) == 1
    empty = film(things=())
    assert {q.answers[0] for q in clip_questions(empty, np.random.default_rng(0))} == {"0"}


@pytest.mark.parametrize("kind", DOES)
def test_every_kind_of_event_reads_well(kind):
    made = film(Event(kind, 0, 3, 3, "green" if kind == "changes colour" else None))
    for seed in range(10):
        text = story(made, np.random.default_rng(seed))[1].text
        assert re.fullmatch(r"(First, the|At first, the|The) (?:red )?star [a-z ]+\.", text), text
