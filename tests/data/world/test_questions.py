"""Answers are worked out again from words, masks and boxes; yes and no are equally frequent."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.data.record import Question
from foveal.data.world.absent import CHOICES, Negatives
from foveal.data.world.batches import vqa
from foveal.data.world.choices import multiple_choice
from foveal.data.world.config import WorldConfig
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.phrases import ALIKE, COLOURLESS, INDISTINCT
from foveal.data.world.questions import KINDS, ask, questions
from foveal.data.world.scene import Background, Scene, Thing
from foveal.data.world.vocabulary import COMPANIONS, NOUNS, PLURALS, STYLES

from .oracle import PHRASE, Picture, one, re, relation_in

CONFIG = WorldConfig(things=(1, 6), repeats=0.3, writing=0.3, styles=STYLES)
SINGULAR = {plural: noun for noun, plural in PLURALS.items()}


def named(text, table):
    """The longest key of the table that occurs as words of the text."""
    found = [name for name in table if re.search(rf"\b{name}\b", text)]
    return table[max(found, key=len)] if found else None


def phrases(text):
    return re.findall(PHRASE, text[0].lower() + text[1:])


def expected(picture, question):
    """The answers that the picture gives to a question, found without the code that asked it."""
    scene, text = picture.scene, question.text
    nouns = Counter(thing.noun for thing in scene.things)
    match question.kind:
        case "existence":
            return {"yes" if nouns[named(text, {noun: noun for noun in NOUNS})] else "no"}
        case "count":
            count = nouns[named(text, SINGULAR)]
            return {str(count), *(("zero", "none") if count == 0 else ())} | set(question.answers[1:2])
        case "colour":
            return {scene.things[one(scene, phrases(text)[0])].colour}
        case "texture":
            return {scene.things[one(scene, phrases(text)[0])].texture}
        case "shape" | "object":
            return {scene.things[one(scene, phrases(text)[0])].noun}
        case "relation" | "comparison" if question.answers[0] in ("yes", "no"):
            first, name, second = relation_in(text)
            i, j = one(scene, first), one(scene, second)
            return {"yes" if picture.true(i, name, j) else "no"}
        case "comparison":
            name = f"{re.search('bigger|smaller|nearer|farther', text)[0]} than"
            first, second = phrases(text)[-2:]
            right = first if picture.true(one(scene, first), name, one(scene, second)) else second
            assert set(question.answers[1:]) <= {scene.things[one(scene, right)].noun}
            return {right, *question.answers[1:]}
        case "position":
            x, y = picture.centres[one(scene, phrases(text)[0])]
            rows, columns = ("upper", "", "lower"), ("left", "", "right")
            row, column = rows[int(y * 3)], columns[int(x * 3)]
            short = {"upper": "top", "lower": "bottom"}.get(row, row) if not column else f"{row} {column}".strip()
            return {short or "middle"} | set(question.answers[:1])
        case "place":
            return {scene.background.name} | set(question.answers[1:])
        case "ocr":
            return {scene.writings[0].text}


def test_every_answer_follows_from_the_picture():
    asked = Counter()
    for index in range(250):
        picture = Picture(lay_out(CONFIG, 21, index))
        rng = np.random.default_rng(index)
        for kind in KINDS:
            for question in ask(picture.scene, kind, rng):
                assert question.kind == kind
                asked[kind] += 1
                assert set(question.answers) == expected(picture, question), (question, picture.scene)
    assert min(asked[kind] for kind in KINDS) >= 20, asked


def test_the_oracle_notices_a_wrong_answer():
    things = (Thing("star", "shape", "small", 0.2, 0.5, 0.1, 4.0, "red"),)
    picture = Picture(Scene("one", things, Background("plain", "blue")))
    assert expected(picture, Question("What colour is the star?", ("blue",), "colour")) == {"red"}
    assert expected(picture, Question("Is there a dog?", ("yes",), "existence")) == {"no"}


@pytest.mark.parametrize("kind", ["existence", "relation", "comparison"])
@pytest.mark.parametrize("each", [1, 2, 3])
def test_yes_and_no_are_balanced(kind, each):
    rng = np.random.default_rng(0)
    scenes = [lay_out(CONFIG, 22, index) for index in range(400)]
    answers = Counter(q.answers[0] for scene in scenes for q in questions(scene, rng, (kind,), each))
    total = answers["yes"] + answers["no"]
    assert total > 100
    assert abs(answers["yes"] - answers["no"]) < 4 * total**0.5
    if kind == "existence" and each == 2:
        assert answers["yes"] == answers["no"]


def test_which_questions_name_the_answer_first_as_often_as_last():
    rng = np.random.default_rng(1)
    asked = [q for i in range(300) for q in ask(lay_out(CONFIG, 23, i), "comparison", rng) if "or" in q.text.split()]
    first = sum(q.text.index(q.answers[0]) < q.text.index(" or ") for q in asked)
    assert abs(2 * first - len(asked)) < 4 * len(asked) ** 0.5


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), choice=st.sampled_from(CHOICES))
def test_absent_nouns_are_absent_and_occur_in_the_world(seed, choice):
    config = WorldConfig(things=(0, 5), nouns=("star", "ring", "circle", "dog", "cat", "tree", "palm", "bed"))
    negatives = Negatives(choice, config)
    scene = lay_out(config, seed, 0)
    noun = negatives.draw(scene, np.random.default_rng(seed))
    present = {thing.noun for thing in scene.things}
    if noun is None:
        assert set(config.nouns) <= present | {alike for name in present for alike in ALIKE[name]}
    else:
        assert noun in config.nouns
        assert noun not in present
        assert not ALIKE[noun] & present


def test_negatives_follow_their_choice():
    dog = Thing("dog", "animal", "small", 0.5, 0.5, 0.1, 4.0)
    scene, rng = Scene("dog", (dog,), Background("place", "wood")), np.random.default_rng(0)
    drawn = {choice: {Negatives(choice).draw(scene, rng) for _ in range(200)} for choice in CHOICES}
    assert drawn["adversarial"] <= set(COMPANIONS["dog"])
    assert drawn["popular"] <= set(Negatives().popular)
    assert len(drawn["random"]) > 60
    rare = Negatives("popular", WorldConfig(nouns=("dog", "cat", "bed", "ant"), imbalance=3.0)).popular
    assert "ant" not in rare
    with pytest.raises(ValueError, match="'hard'"):
        Negatives("hard")


def test_a_world_without_absent_nouns_asks_no_one_sided_questions():
    config = WorldConfig(nouns=("star",), sprites=0.0)
    scene = lay_out(config, 0, 0)
    assert ask(scene, "existence", np.random.default_rng(0), Negatives(config=config)) == ()


def test_what_cannot_be_seen_is_not_asked():
    for index in range(60):
        for style in STYLES:
            scene = lay_out(CONFIG, 24, index).with_(style=style)
            rng = np.random.default_rng(index)
            if style in COLOURLESS:
                assert not ask(scene, "colour", rng)
            if style in INDISTINCT:
                assert not ask(scene, "ocr", rng)
                assert not ask(scene, "texture", rng)


def test_empty_scene():
    empty = Scene("empty", (), Background("place", "snow"))
    asked = questions(empty, np.random.default_rng(0))
    assert {question.kind for question in asked} <= {"place", "count"}


def test_bad_input():
    scene, rng = lay_out(CONFIG, 0, 0), np.random.default_rng(0)
    with pytest.raises(ValueError, match="'smell'"):
        ask(scene, "smell", rng)
    with pytest.raises(ValueError, match="each=0"):
        questions(scene, rng, each=0)


def test_multiple_choice_holds_the_answer_once_and_no_other_right_one():
    rng = np.random.default_rng(3)
    letters = Counter()
    for index in range(200):
        for question in questions(lay_out(CONFIG, 25, index), rng):
            choice = multiple_choice(question, rng)
            if choice is None:
                continue
            text, letter = choice
            options = dict(re.findall(r"\(([A-D])\) (.+)", text))
            assert text.startswith(question.text)
            assert options[letter] == question.answers[0]
            assert len(set(options.values())) == len(options) >= 2
            assert set(options.values()) & set(question.answers) == {question.answers[0]}
            letters[question.kind, letter] += 1
    counts = [letters["count", letter] for letter in "ABCD"]
    assert max(counts) < 1.6 * min(counts)


def test_vqa_is_flat_and_aligned():
    asked = vqa(4, 30, kinds=("count", "existence"), config=WorldConfig(size=32), each=2, negatives="popular")
    assert asked.images.shape == (30, 32, 32, 3)
    assert len(asked.questions) == len(asked.answers) == len(asked.kinds) == len(asked.accepted) == len(asked.image)
    assert set(asked.kinds) == {"count", "existence"}
    for i, text, answer in zip(asked.image, asked.questions, asked.answers):
        nouns = Counter(thing.noun for thing in asked.scenes[i].things)
        if text.startswith("How many"):
            assert answer == str(nouns[named(text, SINGULAR)])
    with pytest.raises(ValueError, match="n=-1"):
        vqa(0, -1)
