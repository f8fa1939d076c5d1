"""Tasks for vision–language models: scripted models get what they must."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from foveal.data.box_text import format_box
from foveal.data.world.absent import absent_of
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.vocabulary import COMPANIONS
from foveal.evaluate.base import Item, Setting
from foveal.evaluate.tasks import TASKS
from foveal.evaluate.tasks.answers import question_items
from foveal.evaluate.tasks.existence import BINS, frequency_bins, pope_metrics
from foveal.evaluate.tasks.grounding import iou
from foveal.evaluate.tasks.grounding import world_items as grounding_items
from foveal.zoo.nano.scenes import HELD_OUT_SEED, LLAVA_WORLD

from .tiny import ScriptedAnswers

KINDS = ["count", "colour", "texture", "shape", "object", "relation", "comparison", "position", "place", "ocr"]


def scored(task, items, say):
    """What a model gets that answers from the item."""
    by_key = iter(items)
    model = ScriptedAnswers(lambda images, prompt: say(next(by_key)))
    return task.score(items, task.ask(model, items))


def values(found):
    return {metric.name: metric.value for metric in found.metrics}


def scene_of(item):
    seed, index = item.key.split()[0].split("-")[1:]
    return lay_out(LLAVA_WORLD, int(seed), int(index))


@pytest.mark.parametrize("make", [partial(question_items, "position"), grounding_items])
def test_questions_about_another_world(make):
    """Scenes, boxes and pictures are of the world that is given, for what the default one would not hold."""
    alone = replace(LLAVA_WORLD, things=(1, 1), nouns=("dog",), size=64)
    items = make(Setting(4), world=alone)
    for item in items:
        seed, index = item.key.split()[0].split("-")[1:]
        scene = lay_out(alone, int(seed), int(index))
        assert [thing.noun for thing in scene.things] == ["dog"]
        assert "dog" in item.texts[0]
        assert item.pictures()[0].shape == (64, 64, 3)
        if "box" in item.truth:
            assert item.truth["box"] == pytest.approx([side / 64 for side in draw(scene, 64).boxes[0]])


@pytest.fixture(scope="module")
def existence():
    return TASKS["world-existence"].make(Setting(50))


def test_existence_asks_the_truth(existence):
    assert len(existence) == 200
    for item in existence:
        scene = scene_of(item)
        assert int(scene.key.split("-")[1]) >= HELD_OUT_SEED
        present = {thing.noun for thing in scene.things}
        assert (item.truth["noun"] in present) == (item.truth["answer"] == "yes")
        assert item.truth["answer"] == "yes" or absent_of(scene, [item.truth["noun"]])
        assert item.truth["noun"] in item.texts[0]
        if item.truth["choice"] == "adversarial":
            assert any(item.truth["noun"] in COMPANIONS.get(noun, ()) for noun in present)
            assert item.truth["companion"]
    np.testing.assert_array_equal(existence[0].pictures()[0], draw(scene_of(existence[0]), LLAVA_WORLD.size).image)


def test_existence_of_a_model_that_knows(existence):
    found = values(scored(TASKS["world-existence"], existence, lambda item: item.truth["answer"].capitalize() + "."))
    for choice in ("random", "popular", "adversarial"):
        assert {found[f"{choice} {name}"] for name in ("accuracy", "precision", "recall", "F1")} == {1.0}
        assert found[f"{choice} yes share"] == 0.5
    assert all(value == 0 for name, value in found.items() if name.startswith(("missed", "invented", "neither")))


def test_existence_of_a_model_that_always_says_yes(existence):
    result = scored(TASKS["world-existence"], existence, lambda item: "Yes")
    found = values(result)
    for choice in ("random", "popular", "adversarial"):
        assert (found[f"{choice} accuracy"], found[f"{choice} yes share"]) == (0.5, 1.0)
        assert (found[f"{choice} precision"], found[f"{choice} recall"]) == (0.5, 1.0)
        assert found[f"{choice} F1"] == pytest.approx(2 / 3)
    assert {found[f"invented, {part}"] for part in ("usual companions", "others")} == {1.0}
    assert sum(row["right"] for row in result.rows) == 50


def test_existence_of_a_model_that_says_no_or_neither(existence):
    found = values(scored(TASKS["world-existence"], existence, lambda item: "no"))
    assert (found["random accuracy"], found["random F1"], found["random yes share"]) == (0.5, 0.0, 0.0)
    assert "random precision" not in found
    found = values(scored(TASKS["world-existence"], existence, lambda item: "purple"))
    assert (found["neither yes nor no"], found["random yes share"]) == (1.0, 1.0)


def test_existence_of_a_model_that_expects_companions(existence):
    """It sees what is there, and invents what usually goes with it."""
    found = values(
        scored(
            TASKS["world-existence"],
            existence,
            lambda item: "yes" if item.truth["answer"] == "yes" or item.truth["companion"] else "no",
        )
    )
    assert (found["invented, usual companions"], found["invented, others"]) == (1.0, 0.0)
    assert found["adversarial accuracy"] == 0.5
    assert found["random accuracy"] > 0.8


def test_pope_metrics_by_hand():
    rows = [{"answer": a, "right": a == b} for a, b in zip(["yes", "yes", "yes", "no"], ["yes", "no", "yes", "yes"])]
    found = {metric.name: metric for metric in pope_metrics(rows)}
    assert found["accuracy"].value == 0.5
    assert found["precision"].value == pytest.approx(2 / 3)
    assert found["recall"].value == pytest.approx(2 / 3)
    assert found["F1"].value == pytest.approx(2 / 3)
    assert found["yes share"].value == 0.75
    assert found["precision"].chance == 0.75


def test_frequent_nouns_are_frequent():
    bins = frequency_bins()
    assert set(bins) == set(LLAVA_WORLD.noun_shares)
    share = {part: np.mean([LLAVA_WORLD.noun_shares[noun] for noun in bins if bins[noun] == part]) for part in BINS}
    assert share["frequent"] > share["middling"] > share["rare"]


@pytest.mark.parametrize("kind", KINDS)
def test_short_answers(kind):
    task = TASKS[f"world-{kind}"]
    items = task.make(Setting(12))
    assert len(items) == 12
    assert len({item.key for item in items}) == 12
    knowing = scored(task, items, lambda item: f"{item.truth['accepted'][-1].upper()}.")
    assert values(knowing) == {"accuracy": 1.0}
    wrong = scored(task, items, lambda item: "no" if item.truth["accepted"][0] == "yes" else "yes")
    assert values(wrong) == {"accuracy": 0.0}
    constant = max((item.truth["accepted"][0] for item in items), key=[i.truth["accepted"][0] for i in items].count)
    found = scored(task, items, lambda item: constant)
    assert found.metrics[0].chance <= found.metrics[0].value


def test_yes_may_be_followed_by_more():
    task = TASKS["world-relation"]
    items = task.make(Setting(12))
    assert values(scored(task, items, lambda item: f"{item.truth['accepted'][0]}, it is so")) == {"accuracy": 1.0}
    assert values(scored(task, items, lambda item: "I think it is left of it")) == {"accuracy": 0.0}


def test_boxes():
    task = TASKS["world-rec"]
    items = task.make(Setting(30))
    width = LLAVA_WORLD.shape[1]

    def write(item):
        return format_box([share * width for share in item.truth["box"]], width, width)

    knowing = scored(task, items, lambda item: f"It is at [{write(item).replace(' ', ', ')}].")
    assert knowing.metrics[0].chance < 0.2  # the boxes of other pictures
    found = values(knowing)
    assert found["accuracy@0.5"] == 1.0
    assert found["mean IoU"] > 0.9
    assert found["no box"] == 0
    silent = values(scored(task, items, lambda item: "I cannot see it"))
    assert silent == {"accuracy@0.5": 0.0, "mean IoU": 0.0, "no box": 1.0}
    everything = scored(task, items, lambda item: "0 0 99 99")
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (item.truth["box"] for item in items)]
    assert values(everything)["mean IoU"] == pytest.approx(np.mean(areas))
    assert everything.metrics[1].chance == pytest.approx(np.mean(areas))


def test_iou():
    assert iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 1, 1), (1, 1, 2, 2)) == 0
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_boxes_are_about_the_things_that_are_meant():
    for item in TASKS["world-rec"].make(Setting(10)):
        scene = scene_of(item)
        drawing = draw(scene, LLAVA_WORLD.size)
        boxes = [[value / LLAVA_WORLD.shape[1] for value in box] for box in drawing.boxes]
        thing = scene.things[boxes.index(item.truth["box"])]
        assert thing.noun in item.truth["phrase"]
        assert item.truth["phrase"] in item.texts[0]


def test_an_item_without_pictures_is_asked_without():
    seen = []
    model = ScriptedAnswers(lambda images, prompt: seen.append((images, prompt)) or "x")
    assert TASKS["world-count"].ask(model, [Item("a", ("how many?",))]) == [{"answer": "x"}]
    assert seen == [([], "how many?")]
