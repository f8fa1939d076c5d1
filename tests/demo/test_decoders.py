"""Decoders on the toy: greedy is the model itself, second looks cost passes, and they see what the page shows."""

import numpy as np
import pytest
import torch

from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.phrases import article
from foveal.decode.damro import cls_attention, outlier_indices
from foveal.demo import decoders
from foveal.demo.decoders import DECODERS, agla_views, compare_decoders
from foveal.demo.host import Host, Spoken
from foveal.demo.matcher import PatchMatcher
from foveal.evaluate.tasks.captions import PROMPT
from foveal.evaluate.tasks.worlds import LLAVA_WORLD, held_out, single


@pytest.fixture(scope="session")
def matcher():
    return PatchMatcher.load()


@pytest.fixture(scope="module")
def found(host, shown, matcher):
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoders, "LONG", 12)
        result = compare_decoders(host, matcher, shown, 0, 2, lambda what, *step: steps.append(step))
    assert steps == [(done, 4) for done in range(5)]
    return result


def test_greedy_is_the_model_itself(host, shown, found):
    for heard, view in zip(found.heard, shown, strict=True):
        assert [told.decoder for told in heard.told] == list(DECODERS)
        for told, prompt, longest in (
            (heard.told[0].answer, heard.question, 16),
            (heard.told[0].description, PROMPT, 12),
        ):
            assert told == host.say(host.inputs([view.small], [prompt]), longest).texts[0]


def test_every_decoder_has_its_say(found):
    for heard in found.heard:
        assert len({told.description for told in heard.told}) > 2


def test_second_looks_cost_passes(found):
    assert [habit.forwards for habit in found.habits] == [1, *[2] * 3]
    assert [habit.descriptions for habit in found.habits] == [4] * 4
    assert all(habit.seconds > 0 for habit in found.habits)


def test_the_outliers_are_those_of_damro(host, shown, found):
    caught = {}
    attention = host.model.model.vision_tower.encoder.layers[-2].self_attn
    handles = [
        getattr(attention, f"{letter}_proj").register_forward_hook(
            lambda module, args, output, letter=letter: caught.__setitem__(letter, output)
        )
        for letter in "qk"
    ]
    with torch.no_grad():
        host.model.model.vision_tower(host.pixels([view.small for view in shown]))
    for handle in handles:
        handle.remove()
    expected = outlier_indices(cls_attention(caught["q"], caught["k"]), 10).sort(1).values
    assert [list(heard.outliers) for heard in found.heard] == expected.tolist()


def test_answers_and_descriptions_are_judged(host, shown, matcher, monkeypatch):
    (answer,) = shown[0].questions[0].answers

    def scripted(self, inputs, longest, processors=()):
        return Spoken([answer if longest == 16 else "A zebra"] * len(inputs["input_ids"]), 1)

    monkeypatch.setattr(Host, "say", scripted)
    found = compare_decoders(host, matcher, shown, 0, 2, lambda *_: None)
    for heard in found.heard:
        assert {told.right for told in heard.told} == {heard.accepted == (answer,)}
        assert {told.invented for told in heard.told} == {("zebra",)}
    assert found.heard[0].told[0].right
    assert {(habit.invented.value, habit.found.value, habit.words) for habit in found.habits} == {(1, 0, 2)}


def test_the_matcher_points_at_what_is_named(matcher):
    """In scenes of one thing: the patch that fits its name best lies on it, more often than any patch would."""
    hits, covered = [], []
    for index in range(30):
        noun = ("dog", "car", "star", "tree", "fish", "cup")[index % 6]
        scene = lay_out(single(LLAVA_WORLD, noun), held_out(0, 61), index)
        drawing = draw(scene, 96)
        words = matcher.processor.tokenizer([f"{article(noun)} {noun}"], return_tensors="pt")
        pixels = matcher.processor.image_processor(images=[drawing.image], return_tensors="pt")["pixel_values"]
        cam, cosine = matcher(pixels, words["input_ids"], words["attention_mask"])
        assert cam.shape == (1, 12, 12)
        assert abs(float(cosine)) <= 1
        row, column = divmod(int(cam[0].argmax()), 12)
        on = drawing.instance.reshape(12, 8, 12, 8).any((1, 3))
        hits.append(on[row, column])
        covered.append(on.mean())
    assert np.mean(hits) > 0.6 > 2 * np.mean(covered)


def test_views_are_the_picture_and_black(matcher, shown):
    (view,) = agla_views(matcher, [shown[0].small], [shown[0].objects[0]])
    black = (view == 0).all(2)
    assert 0.05 < black.mean() < 0.9
    assert np.array_equal(view[~black], shown[0].small[~black])
