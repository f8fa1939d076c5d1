"""Objects named and invented in captions, counted by hand and on the world's own captions."""

import numpy as np
import pytest

from foveal.data.world.captions import long_caption
from foveal.data.world.layout import scene as lay_out
from foveal.evaluate.base import Setting
from foveal.evaluate.tasks import TASKS
from foveal.evaluate.tasks.captions import caption_metrics
from foveal.evaluate.tasks.mentions import Lexicon, read_synonyms, world_lexicon
from foveal.zoo.nano.scenes import LLAVA_WORLD

from .test_answer_tasks import scored, values


def test_chair_by_hand():
    lexicon = Lexicon({"dog": "dog", "puppy": "dog", "cat": "cat", "hot dog": "hot dog", "chair": "chair"})
    captions = ["A puppy and two dogs beside a cat.", "Nothing at all", "a hot dog on a chair"]
    metrics, rows = caption_metrics(captions, [["dog", "chair"], ["cat"], ["hot dog", "chair"]], lexicon)
    found = {metric.name: metric.value for metric in metrics}
    assert [row["mentions"] for row in rows] == [["dog", "dog", "cat"], [], ["hot dog", "chair"]]
    assert rows[0]["invented"] == ["cat"]
    assert rows[0]["missed"] == ["chair"]
    assert found["CHAIR_i"] == pytest.approx(1 / 5)
    assert found["CHAIR_s"] == pytest.approx(1 / 3)
    assert found["object precision"] == pytest.approx(3 / 4)  # dog, hot dog, chair of dog, cat, hot dog, chair
    assert found["object recall"] == pytest.approx(3 / 5)
    assert found["object F1"] == pytest.approx(6 / 9)
    assert found["mean length"] == pytest.approx((8 + 3 + 6) / 3)
    chances = {metric.name: metric.chance for metric in metrics}
    assert chances["CHAIR_s"] == pytest.approx(2 / 3)  # each caption against the next picture


def test_what_some_people_call_it_is_not_invented():
    lexicon = world_lexicon()
    alike = {"palm": frozenset({"tree"}), "tree": frozenset({"palm", "leaf"})}
    _, rows = caption_metrics(["a tree"], [["palm"]], lexicon, lambda noun: alike.get(noun, frozenset()))
    assert rows[0]["invented"] == rows[0]["missed"] == []
    _, rows = caption_metrics(["a tree"], [["palm"]], lexicon)
    assert (rows[0]["invented"], rows[0]["missed"]) == (["tree"], ["palm"])


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("Two butterflies, three mice and a bus", ["butterfly", "mouse", "bus"]),
        ("a soccer ball; the buses", ["soccer ball", "bus"]),
        ("a red ball", []),
        ('it says "BOOK" beside a Fish', ["fish"]),
        ("a plane over knives and a palm tree", ["airplane", "knife", "palm"]),
        ("dresses, boxes, crosses and a crossing", ["dress", "cross"]),
        ("dog's dog-like dogs", ["dog", "dog"]),
        ("", []),
    ],
)
def test_words_of_the_world(caption, named):
    lexicon = world_lexicon()
    assert lexicon.mentions(caption) == named
    for start, end, name in lexicon.located(caption):
        assert lexicon.mentions(caption[start:end]) == [name]


def test_names_are_found_where_they_stand():
    caption = 'It says "İ DOG": İ, two Tennis  balls and a fish.'
    places = [(caption[start:end], name) for start, end, name in world_lexicon().located(caption)]
    assert places == [("Tennis  balls", "tennis ball"), ("fish", "fish")]


def test_every_noun_is_found_in_the_singular_and_the_plural():
    from foveal.data.world.vocabulary import PLURALS

    lexicon = world_lexicon()
    for noun, plural in PLURALS.items():
        assert lexicon.mentions(f"a {noun} here") == [noun]
        assert lexicon.mentions(f"two {plural} here") == [noun]


@pytest.fixture(scope="module")
def items():
    return TASKS["world-caption"].make(Setting(40))


def true_caption(item):
    scene = lay_out(LLAVA_WORLD, *map(int, item.key.split("-")[1:]))
    return " ".join(sentence.text for sentence in long_caption(scene, np.random.default_rng(0)))


def test_the_worlds_own_captions_name_everything_and_invent_nothing(items):
    found = scored(TASKS["world-caption"], items, true_caption)
    assert all(row["missed"] == [] and row["invented"] == [] for row in found.rows)
    named = values(found)
    assert {named[f"object {what}"] for what in ("precision", "recall", "F1")} == {1.0}
    assert (named["CHAIR_i"], named["CHAIR_s"]) == (0.0, 0.0)
    chance = {metric.name: metric.chance for metric in found.metrics}
    assert chance["object F1"] < 0.2
    assert chance["CHAIR_s"] > 0.7


def test_inventing_what_usually_goes_with_it(items):
    from foveal.data.world.phrases import ALIKE
    from foveal.data.world.vocabulary import COMPANIONS

    def invent(item):
        present = item.truth["objects"]
        same = {*present, *(other for noun in present for other in ALIKE[noun])}
        usual = [other for noun in present for other in COMPANIONS.get(noun, ()) if other not in same]
        return f"{true_caption(item)} There is a {usual[0]}." if usual else true_caption(item)

    found = scored(TASKS["world-caption"], items, invent)
    last = found.metrics[-1]
    assert (last.name, last.value) == ("of invented objects, usual companions", 1.0)
    assert last.chance < 0.3
    assert values(found)["CHAIR_s"] == pytest.approx(last.n / 40)


def test_silence(items):
    found = values(scored(TASKS["world-caption"], items, lambda item: ""))
    assert found["object F1"] == found["object recall"] == found["CHAIR_s"] == found["mean length"] == 0.0


def test_synonyms_in_the_official_format(tmp_path):
    path = tmp_path / "synonyms.txt"
    path.write_text("person, girl, boy\nhot dog, chili dog\n\n")
    assert read_synonyms(path) == dict.fromkeys(("person", "girl", "boy"), "person") | {
        "hot dog": "hot dog",
        "chili dog": "hot dog",
    }
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no words"):
        read_synonyms(path)
    with pytest.raises(ValueError, match="cannot read synonyms"):
        read_synonyms(tmp_path / "none.txt")
