"""Captions are true, name only what can be seen, and are English."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.data.world.captions import (
    TEMPLATES,
    attributes,
    long_caption,
    paraphrases,
    prompts,
    region_caption,
    short_caption,
)
from foveal.data.world.config import WorldConfig
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.phrases import COLOURLESS, GROUNDS, LOOKS, NUMBERS, article, ground, listed
from foveal.data.world.scene import Background, Scene, Thing
from foveal.data.world.vocabulary import COLOURS, NOUNS, PLACES, PLURALS, STYLES

from .oracle import WORD, Picture, one, relation_in

CONFIG = WorldConfig(things=(0, 8), repeats=0.3, writing=0.3, styles=STYLES)
NAMES = {**{noun: noun for noun in NOUNS}, **{plural: noun for noun, plural in PLURALS.items()}}
MENTION = re.compile(rf"\b({'|'.join(sorted(NAMES, key=len, reverse=True))})\b")
GROUP = re.compile(
    rf"\b(an?|{'|'.join(NUMBERS[2:])}) ((?:(?:{WORD}) )*)({'|'.join(sorted(NAMES, key=len, reverse=True))})\b"
)


def captions(scene, rng):
    """Everything that is said of the scene, without the words that are written in it."""
    said = [short_caption(scene, rng), *(sentence.text for sentence in long_caption(scene, rng))]
    said += [region_caption(scene, i, rng) for i in range(len(scene.things))]
    return [re.sub(r'"[^"]*"', '"…"', text) for text in said]


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), style=st.sampled_from(STYLES))
def test_grammar(seed, style):
    scene = lay_out(CONFIG, seed, 0).with_(style=style)
    for text in captions(scene, np.random.default_rng(seed)):
        assert "  " not in text
        assert not re.search(r"[{}_]|\bNone\b|\bplain [a-z]+ (star|ring)", text)
        assert text == text.strip()
        for indefinite, word in re.findall(r"\b([Aa]n?) ([a-z]+)", text):
            assert indefinite.lower() == article(word), text
        for number, _, noun in GROUP.findall(text):
            assert noun in (PLURALS.values() if number in NUMBERS else NOUNS), text


def test_articles():
    words = {"an": ("apple", "orange star", "egg", "umbrella", "octopus", "old man", "hour"), "a": ("unicorn", "star")}
    assert all(article(word) == expected for expected, group in words.items() for word in group)
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"


def test_only_visible_things_are_named_and_counted_right():
    for index in range(300):
        scene = lay_out(CONFIG, 31, index)
        visible = draw(scene, 64).visible
        present = Counter(thing.noun for thing, share in zip(scene.things, visible) if share > 0.25)
        assert sum(present.values()) == len(scene.things)
        rng = np.random.default_rng(index)
        for text in captions(scene, rng):
            assert {NAMES[word] for word in MENTION.findall(text)} <= present.keys(), text
        said = Counter()
        for number, _, noun in GROUP.findall(short_caption(scene, rng)):
            said[NAMES[noun]] += NUMBERS.index(number) if number in NUMBERS else 1
        assert said <= present
        assert said or not present


def test_short_captions_say_how_many_in_all():
    things = tuple(Thing(noun, "animal", "small", 0.5, 0.5, 0.1, 4.0) for noun in ("dog", "cat", "cow", "pig", "pig"))
    scene = Scene("farm", things, Background("place", "grass"))
    texts = {short_caption(scene, np.random.default_rng(i)) for i in range(60)}
    assert all("two other things" in text for text in texts)
    assert any("on grass" in text for text in texts)
    empty = Scene("empty", (), Background("plain", "orange"))
    assert any("an empty scene on an orange background" in t for t in paraphrases(empty, np.random.default_rng(0), 8))


def test_every_sentence_is_about_its_things():
    stated = 0
    for index in range(150):
        picture = Picture(lay_out(CONFIG, 32, index))
        scene = picture.scene
        sentences = long_caption(scene, np.random.default_rng(index))
        assert sorted(s.things[0] for s in sentences if len(s.things) == 1) == list(range(len(scene.things)))
        for sentence in sentences:
            named = [NAMES[word] for word in MENTION.findall(re.sub(r'"[^"]*"', "", sentence.text))]
            assert Counter(named) == Counter(scene.things[i].noun for i in sentence.things)
            assert sentence.text[0].isupper()
            assert sentence.text.endswith(".")
            if len(sentence.things) == 2:
                first, name, second = relation_in(sentence.text)
                assert (one(scene, first), one(scene, second)) == sentence.things
                assert picture.true(sentence.things[0], name, sentence.things[1])
                stated += 1
        assert any(ground(scene) in s.text for s in sentences if not s.things)
    assert stated > 50


def test_colours_that_cannot_be_seen_are_not_named():
    for index in range(100):
        for style in COLOURLESS:
            scene = lay_out(CONFIG, 33, index).with_(style=style)
            for text in captions(scene, np.random.default_rng(index)):
                about_style = {word for phrase in LOOKS[style] for word in phrase.split()}
                assert not set(text.split()) & set(COLOURS) - about_style, text


def test_every_place_and_style_has_words():
    assert GROUNDS.keys() == set(PLACES)
    assert LOOKS.keys() == set(STYLES)


def test_templates_occur_in_captions():
    assert len(TEMPLATES) >= 6
    scene = lay_out(WorldConfig(things=(1, 1), textures=("plain",)), 0, 0)
    noun = scene.things[0].noun
    said = {short_caption(scene, np.random.default_rng(i)) for i in range(1500)}
    assert set(prompts(noun)) <= said
    assert prompts("apple", ("a picture of {}",)) == ("a picture of an apple",)


def test_paraphrases_differ():
    for index in range(50):
        scene = lay_out(CONFIG, 34, index)
        assert len(set(paraphrases(scene, np.random.default_rng(index), 10))) == 10
    assert paraphrases(scene, np.random.default_rng(0), 0) == ()
    with pytest.raises(ValueError, match="n=-1"):
        paraphrases(scene, np.random.default_rng(0), -1)
    with pytest.raises(ValueError, match="n=100"):
        paraphrases(lay_out(WorldConfig(things=(0, 0)), 0, 0), np.random.default_rng(0), 100)


def test_captions_do_not_cling_to_one_form():
    forms = Counter()
    for index in range(500):
        scene = lay_out(WorldConfig(things=(1, 2)), 35, index)
        text = short_caption(scene, np.random.default_rng(index))
        forms[MENTION.sub("N", re.sub("|".join((*COLOURS, *PLACES)), "C", text))] += 1
    assert max(forms.values()) < 50
    assert len(forms) > 60


def test_attributes():
    star = Thing("star", "shape", "small", 0.5, 0.5, 0.1, 4.0, "red", "striped")
    assert attributes(star) == {
        "noun": "star",
        "category": "shape",
        "size": "small",
        "texture": "striped",
        "colour": "red",
    }
    assert "colour" not in attributes(star.with_(colour=None))
