"""What happens in a clip, told and asked: who did what, which came first, how many there are by the end."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np

from foveal.data.record import Question
from foveal.data.world.captions import Sentence, short_caption
from foveal.data.world.phrases import ALIKE, COLOURLESS, NUMBERS, capitalised, counted, pick
from foveal.data.world.referring import unique_phrase
from foveal.data.world.scene import Clip, Event, Scene
from foveal.data.world.vocabulary import PLURALS

DOES = {
    "appears": ("appears", "comes into the picture"),
    "disappears": ("disappears", "vanishes"),
    "moves left": ("moves left", "moves to the left", "goes left"),
    "moves right": ("moves right", "moves to the right", "goes right"),
    "moves up": ("moves up", "goes up", "rises"),
    "moves down": ("moves down", "goes down", "sinks"),
    "grows": ("grows", "gets bigger"),
    "shrinks": ("shrinks", "gets smaller"),
    "changes colour": ("turns {0}", "becomes {0}"),
}
"""Event kind -> ways to say what the thing does."""

CLIP_KINDS = ("action", "actor", "direction", "change", "order", "count")


def story(clip: Clip, rng: np.random.Generator) -> tuple[Sentence, ...]:
    """The clip in sentences: how it begins, then every event in the order of its start.

    ``things`` of a sentence are indices into ``clip.things``.
    """
    opening = Sentence(capitalised(f"{short_caption(clip.frames[0], rng)}."))
    cast, told = _cast(clip), [opening]
    for event, before in zip(ordered := _ordered(clip), (None, *ordered)):
        if before is None:
            link = pick(rng, ("First, ", "At first, ", ""))
        elif event.start > before.end:
            link = pick(rng, ("Then ", "After that, ", "Next, "))
        else:
            link = pick(rng, ("Meanwhile, ", "At about the same time, "))
        told.append(
            Sentence(capitalised(f"{link}{_name(cast, event.thing)} {_does(cast, event, rng)}."), (event.thing,))
        )
    return tuple(told)


def clip_caption(clip: Clip, rng: np.random.Generator) -> str:
    """One line: "the dog moves left, then the ring disappears"; the first frame's caption when nothing happens."""
    if not clip.events:
        return short_caption(clip.frames[0], rng)
    cast, ordered = _cast(clip), _ordered(clip)
    line = f"{_name(cast, ordered[0].thing)} {_does(cast, ordered[0], rng)}"
    for before, event in pairwise(ordered):
        link = ", then" if event.start > before.end else " while"
        line += f"{link} {_name(cast, event.thing)} {_does(cast, event, rng)}"
    return line


def clip_questions(clip: Clip, rng: np.random.Generator) -> tuple[Question, ...]:
    """Every question of `CLIP_KINDS` that the clip answers without doubt."""
    cast = _cast(clip)
    return (*_single(clip, cast, rng), *_order(clip, cast, rng), *_counts(clip, rng))


def _cast(clip: Clip) -> Scene:
    """All things as they are throughout; what changes in a thing cannot name it."""
    things = list(clip.things)
    for event in clip.events:
        if event.kind == "changes colour":
            things[event.thing] = things[event.thing].with_(colour=None)
        elif event.kind in ("grows", "shrinks"):
            things[event.thing] = things[event.thing].with_(size="medium")
    return clip.frames[0].with_(things=tuple(things))


def _ordered(clip: Clip) -> list[Event]:
    return sorted(clip.events, key=lambda event: (event.start, event.end, event.thing))


def _name(cast: Scene, index: int) -> str:
    return unique_phrase(cast, index) or counted(cast, cast.things[index])


def _does(cast: Scene, event: Event, rng: np.random.Generator) -> str:
    return pick(rng, _forms(cast, event))


def _forms(cast: Scene, event: Event) -> tuple[str, ...]:
    if event.kind == "changes colour" and cast.style in COLOURLESS:
        return ("changes its shade",)
    return tuple(form.format(event.to) for form in DOES[event.kind])


def _single(clip: Clip, cast: Scene, rng: np.random.Generator) -> list[Question]:
    """Questions about one event."""
    asked = []
    acts = Counter(event.thing for event in clip.events)
    kinds = Counter(event.kind for event in clip.events)
    for event in clip.events:
        name = unique_phrase(cast, event.thing)
        if name is None:
            continue
        if acts[event.thing] == 1:
            text = pick(rng, ("What does {0} do?", "What happens to {0}?")).format(name)
            asked.append(Question(text, _forms(cast, event), "action"))
            if event.kind.startswith("moves"):
                text = pick(rng, ("In which direction does {0} move?", "Which way does {0} go?")).format(name)
                asked.append(Question(text, (event.kind.removeprefix("moves "),), "direction"))
        if event.kind == "changes colour" and cast.style not in COLOURLESS:
            text = pick(rng, ("What colour does {0} turn?", "Which colour does {0} have at the end?")).format(name)
            if sum(other.thing == event.thing and other.kind == event.kind for other in clip.events) == 1:
                asked.append(Question(text, (str(event.to),), "change"))
        if kinds[event.kind] == 1:
            text = pick(rng, ("What {0}?", "Which thing {0}?")).format(_does(cast, event, rng))
            asked.append(Question(text, (name, name.removeprefix("the ")), "actor"))
    return asked


def _order(clip: Clip, cast: Scene, rng: np.random.Generator) -> list[Question]:
    """Pairs of which one is over before the other begins."""
    asked = []
    told = [(e, name) for e in _ordered(clip) if (name := unique_phrase(cast, e.thing))]
    repeated = {key for key, count in Counter((e.thing, e.kind) for e in clip.events).items() if count > 1}
    told = [(e, f"{name} {_does(cast, e, rng)}") for e, name in told if (e.thing, e.kind) not in repeated]
    for i, (first, early) in enumerate(told):
        for second, late in told[i + 1 :]:
            if first.end >= second.start:
                continue
            swap = rng.random() < 0.5
            a, b = (late, early) if swap else (early, late)
            asked.append(Question(f"Is it true that {a} before {b}?", ("no" if swap else "yes",), "order"))
            a, b = (late, early) if rng.random() < 0.5 else (early, late)
            asked.append(Question(f"What happens first: {a} or {b}?", (early,), "order"))
    return asked


def _counts(clip: Clip, rng: np.random.Generator) -> list[Question]:
    """How many at the beginning and at the end, of all and of one noun."""
    asked = []
    nouns = {thing.noun for thing in clip.things}
    clear = [thing.noun for thing in clip.things if not ALIKE[thing.noun] & nouns]
    for when, frame in (("at the beginning", clip.frames[0]), ("at the end", clip.frames[-1])):
        counts = {"things": len(frame.things)}
        if clear:
            noun = pick(rng, clear)
            counts[PLURALS[noun]] = sum(thing.noun == noun for thing in frame.things)
        for name, count in counts.items():
            text = f"How many {name} are there {when}?"
            asked.append(Question(text, (str(count), NUMBERS[count]), "count"))
    return asked
