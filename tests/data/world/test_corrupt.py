"""Corruption happens at the rate that was asked for, reports exactly what it changed, and makes captions wrong."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.data.world.captions import short_caption
from foveal.data.world.config import WorldConfig
from foveal.data.world.corrupt import (
    BOILERPLATE,
    boilerplate,
    duplicates,
    flip_labels,
    long_tail,
    mention_absent,
    near_duplicates,
    replace_words,
    swap_captions,
    truncate_captions,
)
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.vocabulary import NOUNS, PLURALS

from .test_captions import MENTION, NAMES

SCENES = [lay_out(WorldConfig(things=(1, 4)), 41, index) for index in range(400)]
CAPTIONS = [short_caption(scene, np.random.default_rng(i)) for i, scene in enumerate(SCENES)]
NOISES = {
    "swap": lambda rate, seed: swap_captions(CAPTIONS, rate, seed),
    "boilerplate": lambda rate, seed: boilerplate(CAPTIONS, rate, seed),
    "replace": lambda rate, seed: replace_words(CAPTIONS, rate, seed),
    "truncate": lambda rate, seed: truncate_captions(CAPTIONS, SCENES, rate, seed),
    "absent": lambda rate, seed: mention_absent(CAPTIONS, SCENES, rate, seed),
}


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_rate_report_and_determinism(name, rate):
    before = list(CAPTIONS)
    noisy = NOISES[name](rate, 7)
    assert before == CAPTIONS
    assert noisy.changed.tolist() == [a != b for a, b in zip(CAPTIONS, noisy.captions)]
    assert noisy.captions == NOISES[name](rate, 7).captions
    least = 0.5 * rate if name == "absent" else 0.9 * rate  # shapes have no companions, a truncation may change nothing
    assert least - 0.01 <= noisy.changed.mean() <= rate + (0.08 if name == "absent" else 0)
    if rate == 0.3:
        assert noisy.captions != NOISES[name](rate, 8).captions


def test_swapped_captions_stay_within_their_group():
    noisy = swap_captions(CAPTIONS, 0.4, 0)
    assert Counter(noisy.captions) == Counter(CAPTIONS)
    unique = [f"caption {i}" for i in range(50)]
    assert swap_captions(unique, 0.5, 1).changed.sum() == 25
    assert swap_captions(unique, 1 / 50, 1).captions == unique  # nobody to swap with


def test_boilerplate_says_nothing():
    noisy = boilerplate(CAPTIONS, 0.5, 0)
    assert {text for text, changed in zip(noisy.captions, noisy.changed) if changed} <= set(BOILERPLATE)
    assert noisy.changed.sum() == 200


def test_a_replaced_word_is_wrong_and_the_grammar_right():
    noisy = replace_words(CAPTIONS, 1.0, 3)
    for scene, old, new in zip(SCENES, CAPTIONS, noisy.captions):
        if old == new:
            continue
        gone, came = Counter(old.split()) - Counter(new.split()), Counter(new.split()) - Counter(old.split())
        assert 1 <= sum(came.values()) <= 3, (old, new)  # one word (of up to two parts) and its article
        assert gone != came
        for indefinite, word in re.findall(r"\b(an?) ([a-z]+)", new):
            assert indefinite == ("an" if word[0] in "aeiou" else "a"), new
        before = Counter(NAMES[word] for word in MENTION.findall(old))
        after = Counter(NAMES[word] for word in MENTION.findall(new))
        assert sum(before.values()) == sum(after.values())
        plurals = {word for word in MENTION.findall(new) if word not in NOUNS}
        assert plurals <= set(PLURALS.values())
        assert scene.things


def test_truncated_captions_name_one_thing_that_is_there():
    noisy = truncate_captions(CAPTIONS, SCENES, 1.0, 0)
    for scene, text in zip(SCENES, noisy.captions):
        (word,) = MENTION.findall(text)
        assert NAMES[word] in {thing.noun for thing in scene.things}


def test_an_invented_thing_is_named_and_absent():
    noisy = mention_absent(CAPTIONS, SCENES, 1.0, 0)
    assert noisy.changed.mean() > 0.5
    for scene, text, changed in zip(SCENES, noisy.captions, noisy.changed):
        invented = {NAMES[word] for word in MENTION.findall(text)} - {thing.noun for thing in scene.things}
        assert len(invented) == int(changed), text


@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 300), classes=st.integers(2, 9), rate=st.floats(0, 1), seed=st.integers(0, 99))
def test_flipped_labels(n, classes, rate, seed):
    labels = np.arange(n) % classes
    noisy, flipped = flip_labels(labels, classes, rate, seed)
    assert flipped.sum() == round(rate * n)
    assert ((noisy != labels) == flipped).all()
    assert ((noisy >= 0) & (noisy < classes)).all()


def test_flips_are_symmetric():
    noisy, _ = flip_labels(np.zeros(9000, int), 4, 1.0, 0)
    counts = np.bincount(noisy, minlength=4)
    assert counts[0] == 0
    assert np.abs(counts[1:] - 3000).max() < 200


def test_long_tail_has_the_asked_shape():
    labels = np.arange(1000) % 5
    kept = long_tail(labels, 10.0, 0)
    assert (np.diff(kept) > 0).all()
    assert sorted(np.bincount(labels[kept]), reverse=True) == [200, 112, 63, 36, 20]
    assert len(long_tail(labels, 1.0, 0)) == 1000
    assert np.bincount(labels[long_tail(labels, 1e6, 0)]).min() == 1
    ranks = {tuple(np.argsort(np.bincount(labels[long_tail(labels, 10.0, seed)]))) for seed in range(9)}
    assert len(ranks) > 3


def test_duplicates_keep_their_originals():
    source = duplicates(200, 0.25, 0)
    copies = source != np.arange(200)
    assert copies.sum() == 50
    assert not copies[source[copies]].any()
    assert (duplicates(200, 0.25, 0) == source).all()


def test_near_duplicates_are_near_and_not_equal():
    made, source = near_duplicates(SCENES[:100], 0.5, 0, amount=0.03)
    copies = np.flatnonzero(source != np.arange(100))
    assert len(copies) == 50
    for i in copies:
        original = SCENES[source[i]]
        assert made[i] != original
        assert [thing.noun for thing in made[i].things] == [thing.noun for thing in original.things]
        assert all(abs(a.x - b.x) <= 0.07 for a, b in zip(made[i].things, original.things))
    assert all(made[i] is SCENES[i] for i in range(100) if source[i] == i)


def test_bad_input():
    with pytest.raises(ValueError, match=r"rate=1\.5"):
        swap_captions(CAPTIONS, 1.5, 0)
    with pytest.raises(ValueError, match="3 captions and 400 scenes"):
        truncate_captions(CAPTIONS[:3], SCENES, 0.5, 0)
    with pytest.raises(ValueError, match="classes=1"):
        flip_labels(np.zeros(3, int), 1, 0.5, 0)
    with pytest.raises(ValueError, match=r"0\.\.4"):
        flip_labels(np.arange(5), 3, 0.5, 0)
    with pytest.raises(ValueError, match=r"imbalance=0\.5"):
        long_tail(np.arange(5), 0.5, 0)
    with pytest.raises(ValueError, match="empty"):
        long_tail(np.array([], int), 2.0, 0)
    with pytest.raises(ValueError, match=r"share=-0\.1"):
        duplicates(4, -0.1, 0)
    with pytest.raises(ValueError, match="no original"):
        duplicates(4, 1.0, 0)
