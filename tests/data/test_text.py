"""A caption is right or wrong by whole words, whatever their number and case."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.data.text import IRREGULAR, UNCHANGED, mentions, singular, words


def test_words():
    assert words("A T-Rex’s egg, 2 eggs & piñatas!") == ["a", "t-rex's", "egg", "2", "eggs", "piñatas"]
    assert words("--- !") == []


@pytest.mark.parametrize(
    ("plural", "expected"),
    [
        ("dogs", "dog"),
        ("cherries", "cherry"),
        ("boxes", "box"),
        ("churches", "church"),
        ("glasses", "glass"),
        ("tomatoes", "tomato"),
        ("shoes", "shoe"),
        ("cookies", "cookie"),
        ("faces", "face"),
        ("women", "woman"),
        ("dog's", "dog"),
    ],
)
def test_plurals(plural, expected):
    assert singular(plural) == expected


@pytest.mark.parametrize("word", ["glass", "bus", "cactus", "tennis", "gas", "scissors", "dog", "is", "this", "sheep"])
def test_what_is_no_plural_stays(word):
    assert singular(word) == word


@given(st.from_regex(r"[a-z]{1,8}", fullmatch=True) | st.sampled_from(sorted([*IRREGULAR.values(), *UNCHANGED])))
def test_a_singular_is_stable_and_is_mentioned_by_its_plural(word):
    if singular(word) == word:
        assert mentions(f"Two {word}, please", word)


@pytest.mark.parametrize(
    ("text", "noun", "expected"),
    [
        ("Two DOGS in the snow.", "dog", True),
        ("the dog's tail", "dog", True),
        ("a hotdog", "dog", False),
        ("a category", "cat", False),
        ("a hot dog", "hot dog", True),
        ("a hot, brown dog", "hot dog", False),
        ("three women", "woman", True),
        ("a woman", "man", False),
        ("", "dog", False),
    ],
)
def test_mentions(text, noun, expected):
    assert mentions(text, noun) is expected


def test_a_noun_without_a_word_would_always_match():
    with pytest.raises(ValueError, match=r"noun='\.' has no word"):
        mentions("a dog", ".")
