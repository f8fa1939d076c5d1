import colorsys
import copy
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import foveal.align
from foveal.align import stic
from foveal.align.stic import (
    BAD_PROMPTS,
    DESCRIPTION_PROMPTS,
    PREFERRED_PROMPT,
    STICObjective,
    build_preference_pair,
    color_jitter,
    corrupt_image,
    describe_and_respond,
    infuse_description,
    low_resolution,
    stic_loss,
)
from foveal.align.stic_data import build_preference_pairs, pair_generator

from .toy import ToyLVLM, batch

with np.load(Path(__file__).parents[1] / "golden" / "stic.npz", allow_pickle=False) as file:
    GOLDEN = {name: torch.from_numpy(np.asarray(file[name])) for name in file}
SCORES = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")


def close(found, expected, **tolerance):
    torch.testing.assert_close(found.double(), expected.double(), **{"atol": 1e-5, "rtol": 1e-5} | tolerance)


def picture(height=24, width=30, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_golden_loss():
    inputs = {name: GOLDEN[f"loss__{name}"] for name in SCORES}
    output = stic_loss(**inputs, beta=float(GOLDEN["loss__beta"]), alpha=float(GOLDEN["loss__alpha"]))
    for name in vars(output):
        close(getattr(output, name), GOLDEN[f"loss__{name}"])


def test_golden_jitter():
    found = color_jitter(GOLDEN["jitter__image"], float(GOLDEN["jitter__brightness"]), float(GOLDEN["jitter__hue"]))
    close(found, GOLDEN["jitter__expected"])


def test_golden_low_resolution():
    close(low_resolution(GOLDEN["low__image"], int(GOLDEN["low__size"])), GOLDEN["low__expected"])


def scores(rows=5, seed=0):
    return list(torch.randn(4, rows, generator=generator(seed)) * 5 - 20)


def test_the_terms_of_the_loss():
    policy = scores()
    plain = stic_loss(*policy, alpha=0.0)
    expected = -torch.nn.functional.logsigmoid(0.1 * ((policy[0] - policy[2]) - (policy[1] - policy[3])))
    close(plain.per_example, expected)
    close(plain.loss, plain.dpo)
    both = stic_loss(*policy)
    close(both.per_example, expected - policy[0] / 1024)
    close(both.loss, both.dpo + both.sft / 1024)
    close(both.sft, -policy[0].mean())
    equal = stic_loss(policy[0], policy[1], policy[0], policy[1])
    close(equal.per_example, math.log(2) - policy[0] / 1024)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy_rejected": torch.zeros(4)}, r"policy_rejected \(4,\)"),
        ({"ref_chosen": torch.full((5,), float("nan"))}, r"ref_chosen\[0\]=nan"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"alpha": float("inf")}, "alpha=inf"),
    ],
)
def test_bad_scores_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        stic_loss(**dict(zip(SCORES, scores())) | change)


# pictures


def test_jitter_is_that_of_hsv():
    image = picture()
    for brightness, hue in ((1.0, 0.0), (0.6, 0.25), (1.4, -0.3), (1.0, 0.5), (0.0, 0.1)):
        found = color_jitter(image, brightness, hue)
        lit = (image * brightness).clamp(0, 1)
        for y, x in ((0, 0), (5, 7), (23, 29)):
            h, s, v = colorsys.rgb_to_hsv(*lit[:, y, x].tolist())
            close(found[:, y, x], torch.tensor(colorsys.hsv_to_rgb((h + hue) % 1, s, v)))


def test_jitter_that_changes_nothing():
    image = picture()
    close(color_jitter(image, 1.0, 0.0), image)
    close(color_jitter(color_jitter(image, 1.0, 0.5), 1.0, 0.5), image)
    grey = image[:1].repeat(3, 1, 1)
    close(color_jitter(grey, 1.0, 0.37), grey)
    assert color_jitter(image, 100.0, 0.2).max() <= 1
    assert (color_jitter(image, 1.0, 1 / 3) - image[[2, 0, 1]]).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pictures_of_other_precisions(dtype):
    image = picture().to(dtype)
    assert torch.equal(color_jitter(image, 1.0, 0.0), image) or dtype == torch.float64
    for spoil in (low_resolution, lambda x: color_jitter(x, 1.2, 0.3)):
        assert spoil(image).dtype == dtype
        assert (spoil(image) - spoil(image.float())).abs().max() < 0.01


def test_low_resolution_keeps_aspect_and_colour():
    for height, width, expected in ((48, 64, (20, 26)), (64, 48, (26, 20)), (40, 40, (20, 20)), (97, 301, (20, 62))):
        image = picture(height, width)
        found = low_resolution(image)
        assert found.shape == (3, *expected)
        assert (found.mean((1, 2)) - image.mean((1, 2))).abs().max() < 0.05
    board = (torch.arange(80)[:, None] + torch.arange(80)).remainder(2).float().expand(3, 80, 80)
    assert (low_resolution(board) - 0.5).abs().max() < 0.1  # no moiré


def test_bad_pictures_and_ranges_are_named():
    image = picture()
    for bad in (image[:1], image[None], (255 * image).byte(), image[:, :0]):
        for act in (low_resolution, lambda x: color_jitter(x, 1, 0), lambda x: corrupt_image(x, generator())):
            with pytest.raises(ValueError, match="give RGB"):
                act(bad)
    for arguments, message in (((1.0, 0.6), "hue=0.6"), ((-0.1, 0.0), "brightness=-0.1")):
        with pytest.raises(ValueError, match=message):
            color_jitter(image, *arguments)
    with pytest.raises(ValueError, match="size=0"):
        low_resolution(image, 0)
    for options in ({"p_low_resolution": 1.1}, {"brightness": 1.5}, {"hue": 0.7}, {"size": 0}):
        for seed in range(4):  # whatever the dice say
            with pytest.raises(ValueError, match=next(iter(options))):
                corrupt_image(image, generator(seed), **options)


def test_corruptions_are_a_fair_coin_and_follow_the_generator():
    image, rng = picture(), generator(1)
    kinds = Counter(corrupt_image(image, rng)[1] for _ in range(300))
    assert set(kinds) == {"low_resolution", "color_jitter"}
    assert 120 < kinds["low_resolution"] < 180
    assert corrupt_image(image, rng, p_low_resolution=1.0)[1] == "low_resolution"
    first, second = (corrupt_image(image, generator(5), p_low_resolution=0.0) for _ in range(2))
    assert first[1] == "color_jitter"
    assert torch.equal(first[0], second[0])
    assert (first[0] - image).abs().max() > 0.01


# pairs


class Scribe:
    """A model that notes what it is asked and answers with a number."""

    def __init__(self):
        self.calls = []

    def __call__(self, image, prompt):
        self.calls.append((image, prompt))
        return f"answer {len(self.calls)}"


def test_prompts_are_distinct():
    prompts = [PREFERRED_PROMPT, *DESCRIPTION_PROMPTS, *BAD_PROMPTS]
    assert len(DESCRIPTION_PROMPTS) == len(BAD_PROMPTS) == 8
    assert len(set(prompts)) == 17
    assert len(PREFERRED_PROMPT) > 3 * max(map(len, DESCRIPTION_PROMPTS))


def test_a_pair_is_of_two_calls_and_one_fault():
    image, rng, sources, prompts = picture(), generator(3), Counter(), Counter()
    for _ in range(300):
        scribe = Scribe()
        pair = build_preference_pair(image, scribe, rng)
        (good, long), (bad, asked) = scribe.calls
        assert (pair.chosen, pair.rejected) == ("answer 1", "answer 2")
        assert long == PREFERRED_PROMPT
        assert torch.equal(good, image)
        assert pair.prompt in DESCRIPTION_PROMPTS
        assert pair.rejected_prompt == asked
        if pair.source == "bad_prompt":
            assert asked in BAD_PROMPTS
            assert torch.equal(bad, image)
        else:
            assert asked == pair.prompt
            assert bad.shape != image.shape or not torch.equal(bad, image)
            assert (pair.source == "low_resolution") == (bad.shape[1] == 20)
        sources[pair.source] += 1
        prompts[pair.prompt] += 1
    assert 120 < sources["bad_prompt"] < 180
    assert 45 < sources["low_resolution"] < 105
    assert len(prompts) == 8
    assert min(prompts.values()) > 15


def test_the_kind_of_pair_can_be_chosen():
    for options, source in (
        ({"p_bad_prompt": 1.0}, "bad_prompt"),
        ({"p_bad_prompt": 0.0, "p_low_resolution": 1.0}, "low_resolution"),
        ({"p_bad_prompt": 0.0, "p_low_resolution": 0.0}, "color_jitter"),
    ):
        assert build_preference_pair(picture(), Scribe(), generator(), **options).source == source
    with pytest.raises(ValueError, match="p_bad_prompt=2"):
        build_preference_pair(picture(), Scribe(), generator(), p_bad_prompt=2)
    for seed in range(4):  # whatever the dice say
        with pytest.raises(ValueError, match="p_low_resolution=7"):
            build_preference_pair(picture(), Scribe(), generator(seed), p_low_resolution=7)
        with pytest.raises(ValueError, match="give RGB"):
            build_preference_pair(picture()[:1], Scribe(), generator(seed))


def test_descriptions_go_in_front_of_the_first_question():
    turns = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "a dog"},
        {"from": "human", "value": "<image>\nSure?"},
    ]
    record = {"id": 1, "image": "a.jpg", "conversations": turns}
    before = copy.deepcopy(record)
    infused = infuse_description(record, "A dog.")
    assert record == before
    assert infused["conversations"][0]["value"] == "<image>\nImage description:\nA dog.\n\nWhat is it?"
    assert infused["conversations"][1:] == turns[1:]
    assert (infused["id"], infused["image"]) == (1, "a.jpg")
    bare = infuse_description({"conversations": [{"from": "human", "value": "What?"}]}, "A <image>\n dog.")
    assert bare["conversations"][0]["value"] == "Image description:\nA <image>\n dog.\n\nWhat?"
    twice = infuse_description({"conversations": [{"from": "human", "value": "<image>\n<image>\nWhat?"}]}, "D")
    assert twice["conversations"][0]["value"] == "<image>\nImage description:\nD\n\n<image>\nWhat?"
    for broken in ({}, {"conversations": []}, {"conversations": [turns[1]]}):
        with pytest.raises(ValueError, match="must open with a turn from human"):
            infuse_description(broken, "D")


def test_describe_then_respond():
    scribe = Scribe()
    assert describe_and_respond(picture(), "What?", scribe) == ("answer 2", "answer 1")
    assert [prompt for _, prompt in scribe.calls] == [
        DESCRIPTION_PROMPTS[0],
        "Image description:\nanswer 1\n\nWhat?",
    ]
    describe_and_respond(picture(), "What?", scribe, prompt="Look.")
    assert scribe.calls[2][1] == "Look."


# the objective


def test_the_runner_up_is_chosen_by_whom_it_scores():
    policy, reference, found = ToyLVLM(0), ToyLVLM(1), batch()
    output = STICObjective(policy, reference, beta=0.3, rejected_mode="runner_up")(found)
    rows = []
    for model in (policy, reference):
        for side in ("chosen", "rejected"):
            ids, mask, labels = (found[f"{side}_{part}"] for part in ("input_ids", "attention_mask", "labels"))
            logs = model(found["pixel_values"], ids, mask).logits.log_softmax(-1)
            total = torch.zeros(len(ids))
            for row, place in (labels != -100).nonzero().tolist():
                best = logs[row, place - 1].topk(2).indices.tolist()
                gold = int(labels[row, place])
                token = gold if side == "chosen" else best[1] if best[0] == gold else best[0]
                total[row] += logs[row, place - 1, token]
            rows.append(total)
    close(output.per_example, stic_loss(*rows, beta=0.3).per_example)
    sequence = STICObjective(policy, reference, beta=0.3)(found)
    assert (sequence.per_example - output.per_example).abs().max() > 1e-3


def test_the_regulariser_holds_the_chosen_answer_up():
    found = batch(8)

    def trained(alpha):
        policy = ToyLVLM()
        objective = STICObjective(policy, policy, beta=1.0, alpha=alpha)
        optimizer = torch.optim.SGD(policy.parameters(), 0.02)
        for _ in range(40):
            optimizer.zero_grad()
            objective(found).loss.backward()
            optimizer.step()
        return objective(found)

    without, with_it = trained(0.0), trained(0.5)
    assert without.accuracy > 0.9
    assert with_it.sft < without.sft - 0.5


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="rejected_mode='best'"):
        STICObjective(ToyLVLM(), ToyLVLM(), rejected_mode="best")
    with pytest.raises(ValueError, match="alpha=-1"):
        STICObjective(ToyLVLM(), ToyLVLM(), alpha=-1)


def test_names_are_found_from_the_stage():
    assert foveal.align.STICObjective is stic.STICObjective
    assert foveal.align.color_jitter is stic.color_jitter


# many pairs at once


def test_pairs_in_one_go_are_those_one_by_one():
    images = [picture(seed=i) for i in range(6)]
    calls = []

    def describe_all(asked):
        calls.append(asked)
        return [f"{prompt} {float(image.mean()):.4f}" for image, prompt in asked]

    found = build_preference_pairs(images, describe_all, seed=4)
    assert len(calls) == 1
    assert len(calls[0]) == 12
    for place, (image, pair) in enumerate(zip(images, found, strict=True)):
        rng = pair_generator(4, place)
        assert pair == build_preference_pair(image, lambda image, prompt: describe_all([(image, prompt)])[0], rng)
    assert build_preference_pairs(images[:2], describe_all, seed=4) == found[:2]
    assert build_preference_pairs(images[2:], describe_all, seed=4, first=2) == found[2:]
    assert build_preference_pairs(images, describe_all, seed=5) != found
    for wrong, message in ((lambda asked: ["a"], "fewer"), (lambda asked: ["a"] * 99, "more")):
        with pytest.raises(ValueError, match=message):
            build_preference_pairs(images, wrong, seed=0)
