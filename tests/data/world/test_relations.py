"""Every stated fact is measured again in pixels; facts and opposites mirror each other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.data.world.config import WorldConfig
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.referring import referring_expression, unique_phrase
from foveal.data.world.relations import OPPOSITE, RELATIONS, Relation, holds, relations
from foveal.data.world.scene import Background, Scene, Thing

from .oracle import Picture, one, relation_in, resolve

CROWDED = WorldConfig(things=(2, 6), repeats=0.4, sizes=("medium", "large"))


def thing(noun="star", **changes):
    values = {"category": "shape", "size": "medium", "x": 0.5, "y": 0.5, "radius": 0.1, "depth": 4.0, "colour": "red"}
    return Thing(noun, **{**values, **changes})


def scene(*things, style="flat"):
    return Scene("hand-made", things, Background("place", "grass"), style)


def test_stated_facts_are_what_the_pixels_say():
    stated = dict.fromkeys(RELATIONS, 0)
    for index in range(250):
        picture = Picture(lay_out(CROWDED, 11, index))
        for fact in relations(picture.scene):
            stated[fact.name] += 1
            assert picture.true(fact.subject, fact.name, fact.object), (fact, picture.scene)
    assert min(stated.values()) >= 10, stated


@pytest.mark.parametrize("size", [(96, 288), (288, 96)])
def test_overlap_is_judged_in_pixels_of_long_pictures_too(size):
    config, stated = WorldConfig(size=size, things=(6, 10), sizes=("large",), min_visible=0.1), 0
    for index in range(1500):
        scene = lay_out(config, 12, index)
        facts = relations(scene, ("in front of",))
        picture = Picture(scene, size) if facts else None
        for fact in facts:
            stated += 1
            assert picture.true(fact.subject, fact.name, fact.object), (fact, scene)
    assert stated >= 5


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 2**32))
def test_facts_mirror_each_other_and_never_contradict(seed, index):
    facts = set(relations(lay_out(CROWDED, seed, index)))
    for fact in facts:
        assert Relation(fact.object, OPPOSITE[fact.name], fact.subject) in facts
        assert Relation(fact.subject, OPPOSITE[fact.name], fact.object) not in facts


def test_near_the_margin_nothing_is_said():
    a, b = thing(x=0.45), thing(x=0.55)
    assert not holds(a, "left of", b)
    assert not holds(a, "right of", b)
    assert holds(thing(x=0.3), "left of", thing(x=0.7))
    assert not holds(thing(x=0.4, y=0.1), "left of", thing(x=0.55, y=0.9))  # far above rather


def test_bigger_is_apparent_but_never_against_the_real_size():
    near_mouse, far_house = thing(size="small", radius=0.2), thing(size="large", radius=0.1)
    assert not holds(near_mouse, "bigger than", far_house)
    assert not holds(far_house, "smaller than", near_mouse)
    assert holds(near_mouse.with_(size="large"), "bigger than", far_house)


def test_unknown_relation():
    with pytest.raises(ValueError, match="'beside'"):
        holds(thing(), "beside", thing())


def test_referring_expressions_by_hand():
    left, right = thing(x=0.2), thing(x=0.8, colour="blue")
    assert referring_expression(scene(left), 0) == "the star"
    assert referring_expression(scene(left, right), 1) == "the blue star"
    twin = right.with_(colour="red")
    assert referring_expression(scene(left, twin), 0) == "the star on the left"
    small = scene(thing(size="small"), thing(size="large", colour="blue"))
    assert unique_phrase(small, 0, avoid="colour") == "the small star"
    assert unique_phrase(scene(left, right), 1, avoid="noun") == "the blue thing"
    assert referring_expression(scene(left, left), 0) is None
    # on lines of the grid, so that only the ring can tell them apart
    pair = scene(thing(x=0.34), thing(x=0.66), thing("ring", x=0.5, y=0.5, radius=0.05))
    assert referring_expression(pair, 0) == "the star left of the ring"
    with pytest.raises(IndexError, match="index=3"):
        referring_expression(pair, 3)


def test_doubtful_words_do_not_identify():
    own, painted = thing("dog", category="animal", colour=None), thing("dog", category="animal", colour="brown")
    assert unique_phrase(scene(own, painted), 1) is None  # a dog in its own colours may be called brown
    assert unique_phrase(scene(thing(size="small"), thing(size="medium")), 0) is None
    assert unique_phrase(scene(thing(), thing(colour="blue"), style="grey"), 0) is None
    assert unique_phrase(scene(thing("tree", colour=None), thing("palm", colour=None)), 0) is None  # a palm is a tree


def test_referring_expressions_fit_one_thing_only():
    kinds = {"plain": 0, "placed": 0, "related": 0}
    for index in range(400):
        picture = Picture(lay_out(CROWDED, 12, index))
        for i in range(len(picture.scene.things)):
            text = referring_expression(picture.scene, i)
            if text is None:
                continue
            related = relation_in(text)
            if related:
                subject, name, landmark = related
                there = one(picture.scene, landmark)
                fitting = [j for j in resolve(picture.scene, subject) if j != there and picture.true(j, name, there)]
                assert fitting == [i], (text, picture.scene)
                kinds["related"] += 1
            elif " in the " in text or " on the " in text or " at the " in text:
                kinds["placed"] += 1
                assert i in resolve(picture.scene, text.split(" in the ")[0].split(" on the ")[0].split(" at the ")[0])
            else:
                assert one(picture.scene, text) == i
                kinds["plain"] += 1
    assert min(kinds.values()) >= 10, kinds
