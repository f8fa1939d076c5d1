"""Every word is unique, has a picture that shows, a home, and company that exists."""

import numpy as np
import pytest

from foveal.data.world.glyphs import CJK_WORDS, STROKES, letters
from foveal.data.world.scene import Background, Scene, Thing
from foveal.data.world.sprites import fill, stamp
from foveal.data.world.vocabulary import (
    BASE_NOUNS,
    CATEGORIES,
    CATEGORY,
    COLOURS,
    COMPANIONS,
    HABITATS,
    HOMES,
    NOUNS,
    NOVEL_NOUNS,
    PLACES,
    PLURALS,
    SHAPES,
    SPRITE,
    SPRITES,
    TEXTURES,
    WORDS,
)


def test_enough_words_and_all_unique():
    assert len(SHAPES) == 12
    assert len(SPRITES) >= 96
    assert len(CATEGORIES) >= 9
    assert len(set(NOUNS)) == len(NOUNS) == len(SHAPES) + len(SPRITES)
    assert len({sprite.emoji for sprite in SPRITES}) == len(SPRITES)
    assert len(TEXTURES) >= 5
    others = {*COLOURS, *TEXTURES, *PLACES}
    assert not others & set(NOUNS)
    assert set(PLURALS) == set(NOUNS) == set(CATEGORY)


def test_the_novel_fifth_has_some_of_every_category():
    assert set(NOVEL_NOUNS) <= set(NOUNS)
    assert len(set(NOVEL_NOUNS)) == len(NOVEL_NOUNS)
    assert 0.17 <= len(NOVEL_NOUNS) / len(NOUNS) <= 0.24
    for category in CATEGORIES:
        split = {noun in NOVEL_NOUNS for noun in NOUNS if CATEGORY[noun] == category}
        assert split == {True, False}, category
    assert set(BASE_NOUNS) | set(NOVEL_NOUNS) == set(NOUNS)


def test_habitats_speak_of_nouns_and_places_that_exist():
    for name, (places, line) in HABITATS.items():
        assert set(places) <= set(PLACES), name
        assert set(line.split(", ")) <= set(SPRITE), name
    for noun in SPRITE:
        assert HOMES[noun], noun
        assert len(COMPANIONS[noun]) >= 3, noun
        assert noun not in COMPANIONS[noun]
        assert all(noun in COMPANIONS[other] for other in COMPANIONS[noun])
    assert "water" in HOMES["boat"]
    assert "soccer ball" in COMPANIONS["dog"]


def test_colours_are_well_apart():
    values = np.array(list(COLOURS.values()), dtype=float)
    distances = np.linalg.norm(values[:, None] - values[None], axis=-1) + 1000 * np.eye(len(values))
    assert distances.min() > 60


@pytest.mark.parametrize("noun", NOUNS)
def test_every_noun_draws_a_picture_of_its_own(noun):
    colour = "red" if noun in SHAPES else None
    mark = stamp(noun, 40, 0.0, "plain", colour)
    assert mark.area == mark.mask.sum() > 0.1 * 40**2
    rows, columns = np.flatnonzero(mark.mask.any(1)), np.flatnonzero(mark.mask.any(0))
    assert mark.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert max(mark.box[2] - mark.box[0], mark.box[3] - mark.box[1]) > 0.75 * 40  # it fills its square in one direction
    assert fill(noun) == pytest.approx(mark.area / 40**2, abs=0.05)
    tiny = stamp(noun, 6, 15.0, "plain", colour)
    assert tiny.area >= 3


def test_pictures_differ():
    pictures = [stamp(noun, 32, 0.0, "plain", None).paint.astype(float).ravel() for noun in SPRITE]
    distances = [np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(distances) > 1500  # of 65280


@pytest.mark.parametrize("texture", TEXTURES[1:])
@pytest.mark.parametrize("colour", COLOURS)
def test_textures_show(texture, colour):
    plain, textured = (stamp("circle", 24, 0.0, name, colour).paint.astype(float) / 256 for name in ("plain", texture))
    changed = (np.abs(plain - textured).max(axis=2) > 50).mean()
    assert 0.12 < changed < 0.7


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("noun", ["square", "penguin", "sheep", "ant"])
def test_a_thing_has_the_colour_it_is_said_to_have(noun, colour):
    mark = stamp(noun, 32, 0.0, "plain", colour)
    inside = mark.clear[..., 0] == 0
    mean = np.mean(mark.paint[inside] / 256, axis=0)
    nearest = min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum())
    assert nearest == colour


def test_letters_show_and_differ():
    seen = {}
    for script, words in (("latin", WORDS), ("cjk", (*CJK_WORDS, *STROKES))):
        for word in words:
            inner, outer = letters(word, script, 16)
            assert inner.shape == outer.shape
            assert 0.04 < (inner > 128).mean() < (outer > 128).mean()
            seen[word] = inner.tobytes()
    assert len(set(seen.values())) == len(seen)
    assert set("".join(CJK_WORDS)) <= set(STROKES)


def test_scenes_are_plain_values():
    thing = Thing("dog", "animal", "small", 0.5, 0.5, 0.1, 3.0)
    scene = Scene("k", (thing,), Background("plain", "blue"))
    assert scene.with_(style="fog").things[0] == thing.with_(x=0.5)
    assert thing.with_(x=0.1).x == 0.1
