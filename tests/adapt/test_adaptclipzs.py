import math
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate.tiny import save_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal import zoo
from foveal.adapt import adaptclipzs as azs
from foveal.adapt import adaptclipzs_tuner
from foveal.adapt.adaptclipzs_tuner import class_probabilities
from foveal.adapt.adaptclipzs_views import random_view
from foveal.llm import ScriptedLM
from foveal.nn.cosine import unit_rows
from foveal.zoo import nano
from foveal.zoo.dual_encoder import DualEncoder

torch.set_num_threads(1)
GOLDEN = np.load(Path(__file__).parents[1] / "golden/adaptclipzs.npz")


def golden(case):
    arrays = {key.removeprefix(f"{case}__"): GOLDEN[key] for key in GOLDEN if key.startswith(f"{case}__")}
    return {key: torch.from_numpy(value) if value.ndim else value.item() for key, value in arrays.items()}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Loss -----------------------------------------------------------------------------------------------------------------


def test_golden_loss_and_gradient():
    want = golden("bag")
    image = want["image_features"].clone().requires_grad_()
    found = azs.bag_contrastive_loss(
        image, want["text_features"], want["class_ids"], logit_scale=want["logit_scale"], tau=want["tau"]
    )
    for name in ("loss", "image_to_text", "text_to_image"):
        assert getattr(found, name).item() == pytest.approx(want[name], rel=1e-5)
    found.loss.backward()
    torch.testing.assert_close(image.grad[:3].double(), want["grad_image_rows3"], atol=1e-4, rtol=1e-4)


def by_hand(image, text, ids, scale, tau):
    """The loss pair by pair."""
    scores = scale * unit_rows(image) @ unit_rows(text).T / tau
    total = 0.0
    for table in (scores, scores.T):
        for i in range(len(ids)):
            matching = [j for j in range(len(ids)) if ids[j] == ids[i]]
            total += sum(-table[i].log_softmax(0)[j] for j in matching) / len(matching) / len(ids)
    return total


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=7), st.floats(0.5, 100), st.floats(0.2, 5), st.integers(0, 99))
def test_loss_is_the_mean_of_log_probabilities_of_all_that_match(ids, scale, tau, seed):
    image, text = draw(len(ids), 4, seed=seed), draw(len(ids), 4, seed=seed + 100)
    found = azs.bag_contrastive_loss(image, text, torch.tensor(ids), logit_scale=scale, tau=tau)
    torch.testing.assert_close(found.loss, by_hand(image, text, ids, scale, tau))
    torch.testing.assert_close(found.loss, found.image_to_text + found.text_to_image)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    again = azs.bag_contrastive_loss(image[order], text[order], torch.tensor(ids)[order], logit_scale=scale, tau=tau)
    torch.testing.assert_close(again.loss, found.loss)


def test_distinct_classes_give_both_directions_of_clip_and_one_class_the_whole_row():
    image, text, own = draw(5, 3), draw(5, 3, seed=1), torch.arange(5)
    scores = 10 * unit_rows(image) @ unit_rows(text).T / 2
    found = azs.bag_contrastive_loss(3 * image, 0.1 * text, own + 7, logit_scale=10.0)
    torch.testing.assert_close(found.image_to_text, torch.nn.functional.cross_entropy(scores, own))
    torch.testing.assert_close(found.text_to_image, torch.nn.functional.cross_entropy(scores.T, own))
    alike = azs.bag_contrastive_loss(image, text, torch.zeros(5, dtype=torch.int64), logit_scale=10.0)
    torch.testing.assert_close(alike.image_to_text, -scores.log_softmax(1).mean())


def test_loss_of_two_precisions_and_of_a_list_of_classes():
    image, text, ids = draw(3, 4), draw(3, 4, seed=1), torch.tensor([0, 0, 1])
    found = azs.bag_contrastive_loss(image.float(), text, ids.tolist(), logit_scale=10.0).loss
    same = azs.bag_contrastive_loss(image.float().double(), text, ids, logit_scale=10.0).loss
    torch.testing.assert_close(found, same)


def test_scale_and_tau_learn():
    scale, tau = torch.tensor(20.0, requires_grad=True), torch.nn.Parameter(torch.tensor([2.0]))
    ids = torch.tensor([0, 0, 1])
    azs.bag_contrastive_loss(draw(3, 4), draw(3, 4, seed=1), ids, logit_scale=scale, tau=tau).loss.backward()
    assert scale.grad.item() == pytest.approx(-tau.grad.item() * 2 / 20)  # the loss depends on their ratio


BAD_LOSS = [
    ({"text_features": draw(4, 4)}, "text_features"),
    ({"image_features": draw(3)}, "image_features"),
    ({"image_features": torch.full((3, 4), math.nan)}, "image_features"),
    ({"class_ids": torch.zeros(2, dtype=torch.int64)}, "class_ids"),
    ({"class_ids": torch.zeros(3)}, "class_ids"),
    ({"tau": 0.0}, "tau=0"),
    ({"tau": torch.ones(2)}, "tau"),
    ({"logit_scale": -1.0}, "logit_scale=-1"),
]


@pytest.mark.parametrize(("bad", "named"), BAD_LOSS)
def test_loss_names_bad_input(bad, named):
    good = {"image_features": draw(3, 4), "text_features": draw(3, 4), "class_ids": torch.zeros(3, dtype=torch.int64)}
    rows = [{**good, **bad}[name] for name in good]
    scales = {"logit_scale": 10.0, "tau": 2.0} | {name: bad[name] for name in bad if name not in good}
    with pytest.raises(ValueError, match=named):
        azs.bag_contrastive_loss(*rows, **scales)


# Test rule ------------------------------------------------------------------------------------------------------------


def probabilities(case):
    rows = (case["image_features"], case["text_features"], case["class_index"], case["num_classes"])
    return azs.description_probabilities(*rows, logit_scale=case["logit_scale"])


def test_golden_probabilities_are_not_mean_cosines():
    case = golden("probs")
    found = probabilities(case)
    torch.testing.assert_close(found.double(), case["expected"], atol=1e-6, rtol=1e-5)
    assert torch.equal(found.argmax(1), case["prediction"])
    cosines = unit_rows(case["image_features"]) @ unit_rows(case["text_features"]).T
    means = torch.stack([cosines[:, case["class_index"] == c].mean(1) for c in range(3)], 1)
    assert not torch.equal(means.argmax(1), case["prediction"])


def test_texts_may_stand_anywhere_and_one_text_each_is_a_softmax():
    case = golden("probs")
    order = torch.tensor([3, 0, 5, 2, 4, 1])
    moved = case | {"text_features": case["text_features"][order], "class_index": case["class_index"][order]}
    torch.testing.assert_close(probabilities(moved), probabilities(case))
    single = case | {"class_index": torch.arange(6), "num_classes": 6}
    torch.testing.assert_close(probabilities(single).sum(1), torch.ones(4))


def test_probabilities_of_two_precisions_and_of_a_list_of_classes():
    case = golden("probs")
    mixed = {"image_features": case["image_features"].double(), "class_index": case["class_index"].tolist()}
    found = probabilities(case | mixed)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, case["expected"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"num_classes": 4}, "class_index"),
        ({"num_classes": 2}, "num_classes=2"),
        ({"text_features": torch.ones(6, 5)}, "text_features"),
        ({"class_index": torch.zeros(5, dtype=torch.int64)}, "class_index"),
        ({"logit_scale": 0.0}, "logit_scale"),
    ],
)
def test_probabilities_name_bad_input(bad, named):
    with pytest.raises(ValueError, match=named):
        probabilities(golden("probs") | bad)


# Splits ---------------------------------------------------------------------------------------------------------------


def test_splits_keep_the_order_of_the_file():
    base, novel = azs.base_novel_split(["wren", "auk", "tit", "crow", "bat"])
    assert (base, novel) == (["wren", "auk", "tit"], ["crow", "bat"])
    for bad in (["a"], ["a", "b", "a"], "ab"):
        with pytest.raises(ValueError, match="class_names"):
            azs.base_novel_split(bad)


def test_few_shots_are_the_first_in_list_order():
    labels = torch.tensor([3, 1, 3, 3, 1, 0, 1])
    found = azs.few_shot_indices(labels, 2)
    assert found.tolist() == [0, 1, 2, 4, 5]
    assert found.dtype == torch.int64
    assert azs.few_shot_indices(labels).tolist() == list(range(7))
    assert azs.few_shot_indices([5] * 20).tolist() == list(range(16))
    for empty in ([], labels[:0]):
        with pytest.raises(ValueError, match=r"labels .*at least one"):
            azs.few_shot_indices(empty)
    for bad in ({"shots": 0}, {"labels": torch.ones(3)}, {"labels": torch.ones(2, 2, dtype=torch.int64)}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            azs.few_shot_indices(**({"labels": labels} | bad))


def test_harmonic_mean():
    assert azs.harmonic_mean(60, 40) == 48
    assert azs.harmonic_mean(0, 0) == azs.harmonic_mean(0.0, 0.7) == 0.0
    for bad in (-1, math.nan):
        with pytest.raises(ValueError, match="novel="):
            azs.harmonic_mean(0.5, bad)


def test_benchmark_halves_and_temperatures():
    assert len(azs.BENCHMARK) == 14
    for name, entry in azs.BENCHMARK.items():
        assert entry.name == name
        assert entry.num_base == math.ceil(entry.num_classes / 2)
        assert entry.num_base + entry.num_novel == entry.num_classes
        assert "{}" in entry.template
        assert entry.tau == (1.3 if entry.natural else 2.0)
    natural = {name for name, entry in azs.BENCHMARK.items() if entry.natural}
    assert natural == {"CUB", "INaturalist21", "NABirds", "Flowers102"}
    assert azs.BENCHMARK["DTD"].num_base == 24
    assert azs.BENCHMARK["Flowers102"].num_classes == 102


# Captions -------------------------------------------------------------------------------------------------------------


def test_caption_lines():
    reply = '1. A bird with a red cap.\n\n2) The Scientific Name is X\n- an owl-like face\n*starred\n• "Found" in\'land'
    assert azs.caption_lines(reply) == [
        "bird with a red cap.",
        "owl-like face",
        "*starred",
        '"Found" in\'land',
    ]
    assert azs.caption_lines(reply, strip_quotes=True)[-1] == "found inland"
    assert azs.caption_lines("  THE a bird\n3.5 cm long\nAnother\n1. \nA", drop=()) == [
        "a bird",
        "3.5 cm long",
        "another",
        "a",
    ]
    assert azs.caption_lines('"A bird in woods"', strip_quotes=True) == ["bird in woods"]
    with pytest.raises(ValueError, match="drop="):
        azs.caption_lines("a", drop="phrase")
    with pytest.raises(ValueError, match="reply="):
        azs.caption_lines(None)


@settings(deadline=None)
@given(st.text(), st.booleans())
def test_caption_lines_survive_any_reply(reply, strip_quotes):
    for line in azs.caption_lines(reply, strip_quotes=strip_quotes):
        assert line
        assert line == line.strip()
        assert "scientific name" not in line.lower()


def test_class_captions():
    taxonomy = {"order": "Passeriformes", "scientific_name": "Corvus x", "genus": "Corvus"}
    found = azs.class_captions(
        "Fish_Crow", visual=["bird with wings"], location=["bird in town"], taxonomy=taxonomy, kind="bird"
    )
    assert found == [
        "a photo of a Fish Crow bird with wings",
        "a photo of a Fish Crow bird in town",
        "a photo of a Fish Crow bird, scientific name Corvus x",
        "a photo of a Fish Crow bird, order Passeriformes",
    ]
    assert azs.class_captions("x", taxonomy={"family": "f"}) == ["a photo of a x, family f"]
    assert azs.class_captions("dotted", template="{} texture") == ["dotted texture"]
    for bad in ({"template": "no place"}, {"visual": "one text"}, {"location": "one text"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            azs.class_captions("x", **bad)


def test_shorten_caption():
    long = "one, two; three: " + "word " * 30
    assert azs.shorten_caption(long) == "one."
    assert azs.shorten_caption("one, two", 1) == "one."
    assert azs.shorten_caption("one, two") == "one, two"
    assert azs.shorten_caption("word " * 30) == "word " * 30
    assert azs.shorten_caption("no mark at all.", 2) == "no mark at all."
    with pytest.raises(ValueError, match="max_words=0"):
        azs.shorten_caption("x", 0)


def test_messages_ask_for_looks_or_places():
    system, user = azs.description_messages("Fish_Crow", "bird")
    assert (system["role"], user["role"]) == ("system", "user")
    assert "bird" in system["content"]
    assert "Fish Crow" in user["content"]
    assert '"a bird with' in user["content"]
    places = azs.description_messages("A380", "aircraft", "location")
    assert '"an aircraft which' in places[1]["content"]
    assert "Do not write the name A380" in places[1]["content"]
    for bad in ({"kind": "smell"}, {"domain": ""}, {"class_name": " "}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            azs.description_messages(**({"class_name": "x", "domain": "bird"} | bad))


def test_generate_captions_asks_once_or_twice_a_class():
    lm = ScriptedLM(["1. A bird with 'wings'\n2. A bird, scientific name Y", '"A bird\'s city"', "", "A bird at sea"])
    found = azs.generate_captions(["fish_crow", "tern"], lm, "bird", location=True)
    assert found == {
        "fish_crow": ["a photo of a fish crow bird with 'wings'", "a photo of a fish crow birds city"],
        "tern": ["a photo of a tern bird at sea"],
    }
    assert len(lm.calls) == 4
    assert azs.generate_captions(["x"], ScriptedLM([" \n"]), "bird", template="one {}") == {"x": ["one x"]}
    for bad in ([], "name", ["a", "a"]):
        with pytest.raises(ValueError, match="class_names="):
            azs.generate_captions(bad, lm, "bird")


# Fine-tuning ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return nano.load("nano-clip", save_clip(tmp_path_factory.mktemp("tiny") / "clip"))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


COLOURS = {2: (220, 30, 30), 5: (30, 30, 220), 7: (30, 200, 30)}
BAGS = {2: ["a red one", "red all over"], 5: ["a blue one"], 7: ["a green one", "grass", "leaf"]}


def pictures(n=12):
    rng = np.random.default_rng(0)
    ids = [list(COLOURS)[i % 3] for i in range(n)]
    noise = rng.integers(-25, 25, (n, 40, 36, 3))
    return [(np.array(COLOURS[c]) + noise[i]).clip(0, 255).astype(np.uint8) for i, c in enumerate(ids)], ids


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


LEARN = {"epochs": 6, "batch_size": 6, "main_lr": 3e-3, "proj_lr": 3e-3}


def test_it_learns_the_classes_and_leaves_the_model_alone(tiny):
    images, ids = pictures()
    before = state(tiny.model)
    tuner = azs.BagFineTuner(tiny, **LEARN | {"epochs": 20}).fit(images, ids, BAGS, generator())
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())
    assert tuner.losses_[-1] < tuner.losses_[0]
    assert tuner.score(images, ids, BAGS) > 0.9
    assert set(tuner.predict(images, BAGS).tolist()) <= set(BAGS)
    assert tuner.tau_ != 2.0
    assert tuner.predict(images, {11: ["a blue one"]}).tolist() == [11] * len(images)  # classes need not be fit's
    for none in ([], torch.zeros(0, 3, 32, 32)):
        assert tuner.predict_proba(none, BAGS).shape == (0, 3)
        assert tuner.predict(none, BAGS).dtype == torch.int64


def test_many_pictures_and_captions_are_compared_in_parts(tiny, monkeypatch):
    images, encoder = pictures()[0], DualEncoder(tiny.model, tiny.processor)
    whole, seen = class_probabilities(encoder, images, BAGS), []
    inner = adaptclipzs_tuner.description_probabilities
    monkeypatch.setattr(
        adaptclipzs_tuner,
        "description_probabilities",
        lambda rows, *rest, **more: (seen.append(len(rows)), inner(rows, *rest, **more))[1],
    )
    for most, parts in ((31, [5, 5, 2]), (1, [1] * 12)):  # six captions
        monkeypatch.setattr(adaptclipzs_tuner, "MOST_SCORES", most)
        torch.testing.assert_close(class_probabilities(encoder, images, BAGS), whole)
        assert seen == parts
        seen.clear()


@pytest.mark.parametrize("freeze", [True, False])
def test_only_the_stated_parameters_train(tiny, freeze):
    images, ids = pictures(6)
    tuner = azs.BagFineTuner(tiny, **LEARN | {"epochs": 1}, freeze_inner_proj=freeze).fit(
        images, ids, BAGS, generator()
    )
    before, after = tiny.model.state_dict(), tuner.encoder_.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    inner = {n for n in before if any(p in n for p in ("q_proj", "k_proj", "v_proj", "out_proj", "fc2"))}
    heads = {"visual_projection.weight", "text_projection.weight"}
    assert heads | {"logit_scale"} <= moved
    assert any("fc1.weight" in name for name in moved)
    if freeze:
        assert not moved & inner
    else:
        assert {name for name in inner if name.endswith("weight")} <= moved


def test_rates_belong_to_their_groups(tiny):
    images, ids = pictures(6)
    still = azs.BagFineTuner(tiny, epochs=1, main_lr=0.0, proj_lr=1e-3).fit(images, ids, BAGS, generator())
    before, after = tiny.model.state_dict(), still.encoder_.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"visual_projection.weight", "text_projection.weight"}


def test_frozen_parameters_stay_and_half_precision_learns(tiny, tmp_path):
    images, ids = pictures(6)
    other = nano.load("nano-clip", save_clip(tmp_path / "clip"))
    other.model.vision_model.requires_grad_(False)
    other.model.half()
    tuner = azs.BagFineTuner(other, **LEARN | {"epochs": 1}).fit(images, ids, BAGS, generator())
    after = tuner.encoder_.model
    assert after.dtype == torch.float32
    assert other.model.dtype == torch.float16
    for (name, old), new in zip(other.model.named_parameters(), after.parameters(), strict=True):
        if name.startswith("vision_model"):
            assert torch.equal(old.float(), new)


def test_one_caption_of_the_class_is_drawn_at_every_visit(tiny, monkeypatch):
    said = []
    tokens = DualEncoder.tokens
    monkeypatch.setattr(DualEncoder, "tokens", lambda self, texts: (said.append(texts), tokens(self, texts))[1])
    images, ids = pictures(6)
    tuner = azs.BagFineTuner(tiny, epochs=8, batch_size=4, shuffle=False)
    tuner.fit(images, ids, BAGS | {9: ["novel"]}, generator())
    assert [len(texts) for texts in said] == [4, 2] * 8
    visits = [text for texts in said for text in texts]
    for visit in range(8):
        assert all(text in BAGS[c] for text, c in zip(visits[6 * visit :], ids))
    assert set(visits) == {text for bag in BAGS.values() for text in bag}


def test_ready_inputs_are_taken_as_they_are(tiny):
    images, ids = pictures(6)
    encoder = DualEncoder(tiny.model, tiny.processor)
    pixels = tiny.processor(images=images, return_tensors="pt")["pixel_values"]
    tuner = azs.BagFineTuner(encoder, **LEARN).fit(pixels, ids, BAGS, generator())
    torch.testing.assert_close(tuner.predict_proba(pixels, BAGS), tuner.predict_proba(images, BAGS))


@pytest.mark.parametrize("shuffle", [True, False])
def test_same_generator_same_weights_whatever_the_global_one(tiny, shuffle):
    images, ids = pictures(6)
    runs = []
    for poison in (1, 2):
        torch.manual_seed(poison)
        tuner = azs.BagFineTuner(tiny, **LEARN | {"epochs": 2}, shuffle=shuffle).fit(images, ids, BAGS, generator())
        runs.append(state(tuner.encoder_.model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


BAD_FIT = [
    ({"epochs": 0}, "epochs=0"),
    ({"tau": 0.0}, "tau=0"),
    ({"main_lr": -1.0}, "main_lr=-1"),
    ({"proj_wd": math.nan}, "proj_wd=nan"),
    ({"class_ids": [2]}, "class_ids"),
    ({"class_ids": [2.0] * 6}, "class_ids"),
    ({"captions": {2: ["x"]}}, "captions has no entry for class 5"),
    ({"captions": BAGS | {5: []}}, r"captions\[5\]"),
    ({"captions": BAGS | {5: "text"}}, r"captions\[5\]"),
    ({"captions": {}}, "captions="),
    ({"model": torch.nn.Linear(1, 1)}, "model=Linear"),
    ({"main_lr": 1e30, "epochs": 3}, "features|loss"),
]


@pytest.mark.parametrize(("bad", "named"), BAD_FIT)
def test_fit_names_bad_input(tiny, bad, named):
    images, ids = pictures(6)
    data = {"class_ids": ids, "captions": BAGS} | {k: v for k, v in bad.items() if k in ("class_ids", "captions")}
    tuner = azs.BagFineTuner(**{"model": tiny} | {k: v for k, v in bad.items() if k not in data})
    with pytest.raises(ValueError, match=named):
        tuner.fit(images, data["class_ids"], data["captions"], generator())


def test_views_are_crops_in_other_light():
    image = np.zeros((30, 50, 3), np.uint8)
    image[:, 25:] = (200, 100, 50)
    views = [np.array(random_view(image, 16, generator(seed))) for seed in range(20)]
    assert all(view.shape == (16, 16, 3) for view in views)
    assert np.array_equal(views[0], np.array(random_view(image, 16, generator(0))))
    assert len({view.tobytes() for view in views}) == 20
    sides = {bool(view[:, 0].sum() > view[:, -1].sum()) for view in views}
    assert sides == {True, False}  # mirrored or not
    with pytest.raises(ValueError, match="image of shape"):
        random_view(image[..., :2], 16, generator())


def test_nano_clip_is_taken_as_it_is_shipped():
    images, ids = pictures(4)
    shipped = zoo.load("nano-clip")
    tuner = azs.BagFineTuner(shipped, epochs=1).fit(images, ids, BAGS, generator())
    assert tuner.predict_proba(images, BAGS).shape == (4, 3)
