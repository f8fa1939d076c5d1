"""The scenes that the demo shows: held out, the same each time, and with the questions that they should have."""

import numpy as np

from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.demo.scenes import QUIZ, quiz, views
from foveal.evaluate.tasks.worlds import LLAVA_WORLD
from foveal.zoo.nano.scenes import HELD_OUT_SEED


def test_scenes_to_look_at():
    found = views(0, 3)
    assert [[question.kind for question in view.questions] for view in found] == [
        ["colour", "object"],
        ["colour", "count"],
        ["colour", "existence"],
    ]
    for view in found:
        world, index = (int(part) for part in view.key.split("-")[-2:])
        scene = lay_out(LLAVA_WORLD, world, index)
        assert world >= HELD_OUT_SEED
        assert scene.style == "flat"
        assert len(scene.things) >= 3
        assert set(view.objects) == {thing.noun for thing in scene.things}
        assert np.array_equal(view.small, draw(scene, 96).image)
        assert view.large.shape == (384, 384, 3)
    assert int(found[1].questions[1].answers[0]) >= 2


def test_they_follow_the_seed():
    first, again, other = views(0, 1), views(0, 2), views(1, 1)
    assert first[0].key == again[0].key != other[0].key
    assert first[0].questions == again[0].questions


def test_the_quiz_has_every_kind():
    items = quiz(0, 2)
    assert len(items) == 2 * len(QUIZ)
    assert len({item.texts[0] for item in items}) > 2
    assert all(item.pictures()[0].shape == (96, 96, 3) for item in items)
