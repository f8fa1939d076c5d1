"""Classification by description, against the official numbers, a hash text encoder and nano-clip."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveal import zoo
from foveal.adapt.dclip import (
    DescriptionClassifier,
    description_scores,
    descriptor_messages,
    descriptor_prompts,
    descriptor_similarities,
    generate_descriptors,
    make_descriptor_sentence,
    parse_descriptors,
)
from foveal.data import world
from foveal.data.world import WorldConfig
from foveal.llm import ScriptedLM
from foveal.zoo.dual_encoder import DualEncoder

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "dclip.npz", allow_pickle=False)
BIRDS = {"hen": ["red comb", "a short beak"], "sea_eagle": ["a hooked bill", "yellow feet", "has broad wings"]}


def golden(name):
    return torch.from_numpy(GOLDEN[f"scores__{name}"])


class Hashed:
    """A text's features are drawn from its hash; an image is its features. Keeps what it was asked."""

    def __init__(self, width=16):
        self.width, self.asked = width, []

    def one(self, text):
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
        return 3.0 * torch.randn(self.width, generator=torch.Generator().manual_seed(seed))

    def texts(self, texts):
        self.asked.append(list(texts))
        return torch.stack([self.one(text) for text in texts])

    def images(self, images):
        return images


def random_images(n=5, width=16):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0))


def test_golden_scores():
    arguments = golden("image_features"), golden("descriptor_features"), golden("class_index"), 3
    mean = description_scores(*arguments)
    torch.testing.assert_close(mean.double(), golden("expected_mean"), atol=1e-6, rtol=1e-6)
    assert mean.argmax(1).tolist() == golden("prediction").tolist()
    most = description_scores(*arguments, reduce="max")
    torch.testing.assert_close(most.double(), golden("expected_max"), atol=1e-6, rtol=1e-6)


def test_golden_sentences():
    inputs, expected = (GOLDEN[f"sentences__{name}"].tolist() for name in ("inputs", "expected"))
    assert [make_descriptor_sentence(text) for text in inputs] == expected


@pytest.mark.parametrize(
    ("descriptor", "sentence"),
    [
        ("used for cooking", "which is used for cooking"),
        ("can fly", "which can fly"),
        ("A beak", "which has A beak"),
        ("Has wings", "which has Has wings"),
        ("canine teeth", "which canine teeth"),
        ("", "which has "),
    ],
)
def test_first_rule_that_fits_wins(descriptor, sentence):
    assert make_descriptor_sentence(descriptor) == sentence


def test_prompts():
    assert descriptor_prompts("sea_eagle", ["a hooked bill", "yellow feet"]) == [
        "sea eagle, which is a hooked bill",
        "sea eagle, which has yellow feet",
    ]
    around = {"prefix": "a photo of a ", "between": ": ", "suffix": "."}
    assert descriptor_prompts("hen", ["can run"], **around) == ["a photo of a hen: which can run."]
    assert descriptor_prompts("hen", [], **around) == ["a photo of a hen."]
    assert descriptor_prompts("hen", ["can run"], include_class_name=False) == ["which can run"]
    with pytest.raises(ValueError, match="include_class_name"):
        descriptor_prompts("hen", [], include_class_name=False)
    with pytest.raises(ValueError, match="list of texts"):
        descriptor_prompts("hen", "can run")


def test_parsing():
    text = "Sure! Here:\n - red comb\n* a beak \n\t• Red Comb\n1. two legs\n2) wings\n-\n- ---\n3 eggs\nso - no\n10.5"
    assert parse_descriptors(text) == ["red comb", "a beak", "two legs", "wings", "---", "5"]
    assert parse_descriptors("- ?\n-  \n- ?") == ["?"]
    assert parse_descriptors("") == []


@given(st.text())
def test_parsing_survives_any_text(text):
    found = parse_descriptors(text)
    assert len({item.casefold() for item in found}) == len(found)
    assert all(item == item.strip() and item and item in text for item in found)
    if found and not any(len(item.splitlines()) > 1 for item in found):
        assert parse_descriptors("\n".join(f"- {item}" for item in found)) == found


@given(st.lists(st.text(alphabet="ab -*•12.)\t\n", max_size=12)))
def test_parsing_survives_list_like_lines(lines):
    text = "\n".join(lines)
    assert parse_descriptors(text) == parse_descriptors(f"Sure, here it is:\n{text}\nanything else?")


def test_what_the_language_model_is_asked():
    messages = descriptor_messages("sea_eagle")
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2 + ["user"]
    assert "sea eagle" in messages[-1]["content"]
    assert all(len(parse_descriptors(message["content"])) >= 4 for message in messages[1::2])


def test_generation():
    lm = ScriptedLM(["- red comb\n- red comb\nThe end", "I do not know."])
    seen = []
    complete = lm.complete
    lm.complete = lambda messages, **options: seen.append(options) or complete(messages, **options)
    assert generate_descriptors(["hen", "sea_eagle"], lm, max_new_tokens=50) == {"hen": ["red comb"], "sea_eagle": []}
    assert seen == [{"max_new_tokens": 50, "temperature": 0.0}] * 2
    assert lm.calls == [descriptor_messages("hen"), descriptor_messages("sea_eagle")]


@pytest.mark.parametrize("names", [[], ["a", "a"], "hen"])
def test_generation_for_impossible_classes(names):
    with pytest.raises(ValueError, match="class_names"):
        generate_descriptors(names, ScriptedLM(lambda prompt: "- x"))


def test_one_descriptor_is_plain_cosine():
    images, texts = random_images(), random_images(3)
    index = torch.tensor([2, 0, 1])
    plain = descriptor_similarities(images, texts)
    for reduce in ("mean", "max"):
        scores = description_scores(images, texts, index, 3, reduce=reduce)
        torch.testing.assert_close(scores[:, index], plain)


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_order_repetition_and_scale_mean_nothing(reduce):
    images, texts, index = random_images(), random_images(7) + 0.1, torch.tensor([1, 0, 2, 1, 1, 0, 2])
    scores = description_scores(images, texts, index, 3, reduce=reduce)
    order = torch.tensor([6, 3, 1, 0, 5, 2, 4])
    twice = torch.cat([texts, texts[index == 1]]), torch.cat([index, index[index == 1]])
    scaled = images * torch.tensor([[0.01], [5.0], [1.0], [99.0], [2.0]])
    lengths = torch.arange(1, 8)[:, None].float() ** 2
    for other in (
        description_scores(images, texts[order], index[order], 3, reduce=reduce),
        description_scores(images, *twice, 3, reduce=reduce),
        description_scores(scaled, lengths * texts, index, 3, reduce=reduce),
    ):
        torch.testing.assert_close(other, scores)


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_classes_may_be_a_list(reduce):
    images, texts = random_images(), random_images(3)
    scores = description_scores(images, texts, [2, 0, 1], 3, reduce=reduce)
    assert torch.equal(scores, description_scores(images, texts, torch.tensor([2, 0, 1]), 3, reduce=reduce))


def test_the_mean_is_not_normalised():
    """A class whose descriptors disagree scores lower than one whose descriptors are all half right."""
    image, texts = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [0.6, -0.8]])
    scores = description_scores(image, texts, torch.tensor([0, 0]), 1)
    assert scores.item() == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_index": torch.tensor([0, 0, 1])}, "names no row for class 2"),
        ({"class_index": torch.tensor([0, 1, 3])}, "class_index"),
        ({"class_index": torch.tensor([0, 1, -1])}, "class_index"),
        ({"class_index": torch.tensor([0, 1])}, "class_index"),
        ({"class_index": torch.tensor([0.0, 1.0, 2.0])}, "class_index"),
        ({"num_classes": 2}, "class_index"),
        ({"num_classes": 0}, "num_classes"),
        ({"descriptor_features": torch.ones(3, 15)}, "descriptor_features"),
        ({"image_features": torch.ones(16)}, "image_features"),
        ({"image_features": torch.full((1, 16), torch.nan)}, "image_features"),
        ({"reduce": "sum"}, "reduce='sum'"),
    ],
)
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_bad_scores(change, words, reduce):
    arguments = {
        "image_features": random_images(),
        "descriptor_features": random_images(3),
        "class_index": torch.tensor([0, 1, 2]),
        "num_classes": 3,
        "reduce": reduce,
        **change,
    }
    with pytest.raises(ValueError, match=words):
        description_scores(**arguments)


def classifier(hashed, descriptors=BIRDS, **options):
    return DescriptionClassifier(hashed.images, hashed.texts, descriptors, **options)


def test_classifier_scores_by_hand():
    hashed, images = Hashed(), random_images()
    birds = classifier(hashed, suffix=".")
    assert birds.class_names == ["hen", "sea_eagle"]
    assert birds.prompts["sea_eagle"][2] == "sea eagle, which has broad wings."
    want = []
    for name in birds.class_names:
        rows = torch.stack([hashed.one(text) for text in birds.prompts[name]])
        want.append(torch.cosine_similarity(images[:, None], rows[None], dim=2).mean(1))
    torch.testing.assert_close(birds.scores(images), torch.stack(want, 1))
    predicted = birds.predict(images)
    assert predicted.dtype == torch.int64
    assert predicted.tolist() == torch.stack(want, 1).argmax(1).tolist()


def test_explanation():
    hashed = Hashed()
    birds = classifier(hashed)
    for image in (*random_images(), hashed.one("sea eagle")):
        found = birds.explain(image)
        assert found.class_name == birds.class_names[int(birds.predict(image[None]))]
        assert found.score == pytest.approx(np.mean([similarity for _, similarity in found.items]), abs=1e-6)
        assert {descriptor for descriptor, _ in found.items} == set(BIRDS[found.class_name])
        assert [value for _, value in found.items] == sorted((value for _, value in found.items), reverse=True)
    assert found.baseline_class == "sea_eagle"
    assert found.baseline_score == pytest.approx(1.0)
    assert birds.explain(image, "hen").class_name == "hen"
    with pytest.raises(KeyError, match="duck"):
        birds.explain(image, "duck")


def test_an_image_that_is_no_tensor():
    hashed = Hashed()
    birds = DescriptionClassifier(lambda images: torch.stack([hashed.one(i) for i in images]), hashed.texts, BIRDS)
    found = birds.explain("hen, which has red comb")
    assert found.class_name == "hen"
    assert found.items[0] == ("red comb", pytest.approx(1.0))


def test_editing_encodes_one_class():
    hashed, mapping = Hashed(), {name: tuple(texts) for name, texts in BIRDS.items()}
    birds = classifier(hashed, mapping)
    hashed.asked.clear()
    birds.edit("hen", add=["a short beak", "can run", "can run"], remove=["red comb"])
    assert birds.descriptors["hen"] == ["a short beak", "can run"]
    assert hashed.asked == [["hen, which is a short beak", "hen, which can run"]]
    fresh = classifier(Hashed(), birds.descriptors)
    torch.testing.assert_close(birds.scores(random_images()), fresh.scores(random_images()))
    assert mapping == {name: tuple(texts) for name, texts in BIRDS.items()}
    birds.edit("hen", remove=["can run"], add=["can run"])
    assert birds.descriptors["hen"] == ["a short beak", "can run"]


def test_editing_what_is_not_there_changes_nothing():
    birds = classifier(Hashed())
    before = birds.scores(random_images())
    with pytest.raises(KeyError, match="duck"):
        birds.edit("duck", add=["x"])
    with pytest.raises(ValueError, match="blue comb"):
        birds.edit("hen", add=["x"], remove=["red comb", "blue comb"])
    with pytest.raises(ValueError, match="add="):
        birds.edit("hen", add="red feet")
    assert birds.descriptors == BIRDS
    assert torch.equal(birds.scores(random_images()), before)


def test_classes_come_and_go():
    hashed = Hashed()
    birds = classifier(hashed)
    birds.add_class("duck", ["webbed feet"])
    assert birds.class_names == ["hen", "sea_eagle", "duck"]
    assert birds.predict(hashed.one("duck, which has webbed feet")[None]).item() == 2
    assert birds.explain(hashed.one("duck")).baseline_class == "duck"
    with pytest.raises(ValueError, match="a class already"):
        birds.add_class("duck", [])
    birds.remove_class("hen")
    assert birds.class_names == ["sea_eagle", "duck"]
    assert birds.scores(random_images()).shape == (5, 2)
    assert birds.explain(hashed.one("hen")).baseline_class in birds.class_names
    birds.remove_class("duck")
    with pytest.raises(ValueError, match="only class"):
        birds.remove_class("sea_eagle")
    with pytest.raises(KeyError):
        birds.remove_class("duck")


def test_a_class_without_descriptors_is_its_name():
    hashed = Hashed()
    birds = classifier(hashed, {"sea_eagle": [], "hen": ["red comb"]})
    assert birds.prompts["sea_eagle"] == ["sea eagle"]
    found = birds.explain(hashed.one("sea eagle"))
    assert found.items == [("sea eagle", pytest.approx(1.0))]
    with pytest.raises(ValueError, match="include_class_name"):
        classifier(hashed, {"hen": []}, include_class_name=False)


def test_files(tmp_path):
    hashed = Hashed()
    birds = classifier(hashed, {**BIRDS, "élan": ["brown fur"]})
    birds.to_json(tmp_path / "birds.json")
    assert json.loads((tmp_path / "birds.json").read_text(encoding="utf-8")) == birds.descriptors
    again = DescriptionClassifier.from_json(tmp_path / "birds.json", hashed.images, hashed.texts, suffix=".")
    assert again.descriptors == birds.descriptors
    assert again.suffix == "."


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"hen": "red"}', '{"hen": [1]}', '{"hen": null}'])
def test_other_files(tmp_path, content):
    path = tmp_path / "birds.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"birds\.json"):
        DescriptionClassifier.from_json(path, Hashed().images, Hashed().texts)


@pytest.mark.parametrize(
    ("descriptors", "options"), [({}, {}), ({"hen": "red comb"}, {}), ({"hen": [1]}, {}), (BIRDS, {"reduce": "sum"})]
)
def test_bad_classifiers(descriptors, options):
    with pytest.raises(ValueError, match=r"descriptors|reduce"):
        classifier(Hashed(), descriptors, **options)


def test_an_encoder_that_gives_something_else():
    with pytest.raises(ValueError, match="encode_text gave"):
        DescriptionClassifier(lambda images: images, lambda texts: torch.ones(len(texts)), BIRDS)


def test_nano_clip_reads_descriptions():
    """Invented names, true descriptors: colours and shapes that nano-clip knows."""
    nano = zoo.load("nano-clip")
    encoder = DualEncoder(nano.model, nano.processor)
    kinds = {"wug": ("red", "star"), "dax": ("blue", "circle"), "fep": ("green", "heart")}
    images, labels = [], []
    for label, (colour, shape) in enumerate(kinds.values()):
        config = WorldConfig(size=96, things=(1, 1), nouns=(shape,), colours=(colour, "white"), sizes=("large",))
        scenes = world.pairs(1_000_000, 12, config)
        for image, scene in zip(scenes.images, scenes.scenes):
            if scene.things[0].colour == colour:
                images.append(image)
                labels.append(label)
    descriptors = {name: [f"a {colour} {shape}", f"{colour} colour"] for name, (colour, shape) in kinds.items()}
    described = DescriptionClassifier(encoder.image_features, encoder.text_features, descriptors)
    right = (described.predict(images) == torch.tensor(labels)).float().mean().item()
    named = DescriptionClassifier(encoder.image_features, encoder.text_features, {name: [] for name in kinds})
    by_name = (named.predict(images) == torch.tensor(labels)).float().mean().item()
    assert right >= max(0.7, by_name + 0.2)
    found = described.explain(images[0])
    assert len(found.items) == 2
    assert found.score == pytest.approx(np.mean([value for _, value in found.items]), abs=1e-5)
