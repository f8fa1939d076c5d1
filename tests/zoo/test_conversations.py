"""What nano-llava is taught is true of the scenes, fair and varied."""

import re
from collections import Counter

import numpy as np
import pytest

from foveal.data.box_text import format_box, parse_box
from foveal.data.world.clips import clip
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene
from foveal.data.world.questions import KINDS
from foveal.data.world.referring import referring_expression
from foveal.data.world.vocabulary import NOVEL_NOUNS
from foveal.zoo.nano.conversations import CAPTIONS, EVERYTHING, PROMPTS, clip_exchanges, exchanges
from foveal.zoo.nano.scenes import LLAVA_LESSONS


@pytest.fixture(scope="module")
def rounds():
    """Scenes with the boxes of their things and one round about each."""
    found = []
    for i in range(120):
        pictured = scene(LLAVA_LESSONS, 3, i)
        boxes = np.array(draw(pictured, 96).boxes).reshape(-1, 4)
        found.append((pictured, boxes, exchanges(pictured, boxes, LLAVA_LESSONS, np.random.default_rng(i))))
    return found


def test_every_task_is_taught_and_none_too_often(rounds):
    seen = Counter()
    for _, _, items in rounds:
        counts = Counter(item.task for item in items)
        assert all(counts[task] <= EVERYTHING[task] for task in counts)
        seen += counts
    assert seen.keys() == {"short", "long", "objects", "region", "grounding", *KINDS}


def test_existence_is_true_and_balanced(rounds):
    answers = Counter()
    for pictured, _, items in rounds:
        nouns = {thing.noun for thing in pictured.things}
        for item in (item for item in items if item.task == "existence"):
            named = any(re.search(rf"\b{noun}\b", item.prompt) for noun in nouns)
            assert item.answer == ("yes" if named else "no")
            answers[item.answer] += 1
    assert answers["yes"] == answers["no"] > 50


def test_boxes_are_those_of_the_things(rounds):
    checked = Counter()
    for pictured, boxes, items in rounds:
        texts = [format_box(box, 96, 96) for box in boxes.tolist()]
        for item in items:
            if item.task == "grounding":
                phrases = [referring_expression(pictured, i) or "?" for i in range(len(texts))]
                told = max((i for i in range(len(texts)) if phrases[i] in item.prompt), key=lambda i: len(phrases[i]))
                assert item.answer == texts[told]
                assert parse_box(item.answer) is not None
            elif item.task == "region":
                told = next(i for i, text in enumerate(texts) if text in item.prompt)
                assert pictured.things[told].noun in item.answer
            checked[item.task] += 1
    assert min(checked["grounding"], checked["region"]) > 100


def test_a_thing_without_a_box_is_neither_asked_for_nor_described():
    pictured = next(s for s in (scene(LLAVA_LESSONS, 3, i) for i in range(50)) if len(s.things) == 1)
    items = exchanges(pictured, np.zeros((4, 4), np.int16), LLAVA_LESSONS, np.random.default_rng(0))
    assert not {"region", "grounding"} & {item.task for item in items}
    assert "long" in {item.task for item in items}


def test_objects_are_listed_with_their_numbers(rounds):
    for pictured, _, items in rounds:
        answer = next(item.answer for item in items if item.task == "objects")
        counts = Counter(thing.noun for thing in pictured.things)
        assert len(re.split(r", | and ", answer)) == len(counts)
        assert ("two " in answer) == (2 in counts.values())


def test_suffixes_are_obeyed_and_wordings_vary(rounds):
    prompts = [item for _, _, items in rounds for item in items]
    suffixed = [item for item in prompts if item.prompt.endswith(("word.", "phrase.", "yes or no."))]
    assert 50 < len(suffixed) < len(prompts) / 4
    assert all(" " not in item.answer for item in suffixed)
    assert all(item.answer in ("yes", "no") for item in suffixed if item.prompt.endswith("no."))
    assert {"Describe the picture.", "Describe the image."} <= {item.prompt for item in prompts}


def test_novel_nouns_are_never_named(rounds):
    words = set(re.findall(r"\w+", " ".join(f"{item.prompt} {item.answer}" for *_, items in rounds for item in items)))
    assert not words & set(NOVEL_NOUNS)


def test_tasks_choose_what_is_taught():
    pictured = scene(LLAVA_LESSONS, 3, 0)
    boxes = np.array(draw(pictured, 96).boxes)
    items = exchanges(pictured, boxes, LLAVA_LESSONS, np.random.default_rng(0), CAPTIONS)
    assert {item.task for item in items} == set(CAPTIONS)
    assert items == exchanges(pictured, boxes, LLAVA_LESSONS, np.random.default_rng(0), CAPTIONS)
    with pytest.raises(ValueError, match="task='poem'"):
        exchanges(pictured, boxes, LLAVA_LESSONS, np.random.default_rng(0), {"poem": 1})


def test_clips_are_told_and_asked_about():
    seen = Counter()
    for i in range(40):
        film = clip(LLAVA_LESSONS, 3, i, 3)
        items = clip_exchanges(film, np.random.default_rng(i))
        event = next(item for item in items if item.task == "event")
        assert event.prompt.replace("image", "picture") in PROMPTS["event"]
        seen.update(item.task for item in items)
    assert {"event", "story", "action", "direction", "actor", "count"} <= seen.keys()
