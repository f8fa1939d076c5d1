"""Batches for the real classes, and both objectives on them."""

import copy

import numpy as np
import pytest
import torch
from decode.tiny import CONFIGS

from foveal import zoo
from foveal.align.base import response_logps
from foveal.align.batches import Pair, PairCollator
from foveal.align.povid import POVIDObjective
from foveal.align.stic import STICObjective
from foveal.train import FitConfig, fit

ANSWERS = ("a red dog on grass", "a cat"), ("two stars", "a large blue star and a dog beside it")


@pytest.fixture(scope="module")
def nano():
    return zoo.load("nano-llava")


def pairs(size=96):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, size, size, 3), np.uint8)
    return [Pair(picture, "What is it?", *answers) for picture, answers in zip(pictures, ANSWERS, strict=True)]


def labelled(batch, side):
    return [row[row != -100] for row in batch[f"{side}_labels"]]


def test_labels_are_the_answer_and_its_end(nano):
    batch = PairCollator(nano.processor)(pairs())
    for side, place in (("chosen", 0), ("rejected", 1)):
        for row, answers in zip(labelled(batch, side), ANSWERS, strict=True):
            assert nano.processor.decode(row).strip() == f"{answers[place]}</s>"
        ids, labels = batch[f"{side}_input_ids"], batch[f"{side}_labels"]
        assert torch.equal(labels[labels != -100], ids[labels != -100])
        first = nano.processor.decode(ids[0][batch[f"{side}_attention_mask"][0] == 1]).replace("<image>", "", 143)
        assert first.split() == f"<s>USER:<image> What is it?ASSISTANT: {ANSWERS[0][place]}</s>".split()
    assert batch["pixel_values"].shape == (2, 3, 96, 96)


def test_scores_are_those_of_each_answer_alone(nano):
    collate = PairCollator(nano.processor)
    whole, scores = collate(pairs()), {}
    for side in ("chosen", "rejected"):
        inputs = {name: whole[f"{side}_{name}"] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            logits = nano.model(pixel_values=whole["pixel_values"], **inputs).logits
        scores[side] = response_logps(logits, whole[f"{side}_labels"])
    alone = collate.answers([(pairs()[0].picture, "What is it?", ANSWERS[0][0])])
    with torch.no_grad():
        loss = nano.model(**alone).loss
    count = int((alone["labels"] != -100).sum())
    torch.testing.assert_close(scores["chosen"][0], -loss * count, atol=1e-3, rtol=1e-4)


def test_long_answers_lose_their_end_and_no_image_token(nano):
    whole = PairCollator(nano.processor)(pairs())
    length = whole["rejected_input_ids"].shape[1] - 4
    cut = PairCollator(nano.processor, length)(pairs())
    assert cut["rejected_input_ids"].shape[1] == length
    assert (cut["rejected_input_ids"] == nano.processor.image_token_id).sum() == 2 * 144
    assert torch.equal(labelled(cut, "rejected")[1], labelled(whole, "rejected")[1][:-4])
    with pytest.raises(ValueError, match="max_length=150 leaves no room"):
        PairCollator(nano.processor, 150)(pairs())


def test_noise_is_that_of_the_picture(nano):
    first = PairCollator(nano.processor, noise_step=500)(pairs())
    again = PairCollator(nano.processor, noise_step=500)(pairs()[::-1])
    assert torch.equal(first["pixel_values_noisy"], again["pixel_values_noisy"].flip(0))
    other = PairCollator(nano.processor, noise_step=500, seed=1)(pairs())
    assert not torch.equal(first["pixel_values_noisy"], other["pixel_values_noisy"])
    almost = PairCollator(nano.processor, noise_step=0)(pairs())
    assert (almost["pixel_values_noisy"] - almost["pixel_values"]).abs().max() < 0.2
    assert "pixel_values_noisy" not in PairCollator(nano.processor)(pairs())
    flipped = [Pair(pair.picture[:, ::-1], pair.prompt, pair.chosen, pair.rejected) for pair in pairs()]
    assert PairCollator(nano.processor, noise_step=500)(flipped)["pixel_values_noisy"].shape == (2, 3, 96, 96)
    with pytest.raises(ValueError, match="noise_step=1000"):
        PairCollator(nano.processor, noise_step=1000)


def test_other_processors_are_refused(nano):
    processor = copy.copy(nano.processor)
    processor.chat_template = None
    with pytest.raises(ValueError, match="chat template"):
        PairCollator(processor)


def test_a_mark_in_a_text_is_named(nano):
    picture = pairs()[0].picture
    for place, row in (("prompt", ("What is it?\n<image>", "a dog")), ("answer", ("What is it?", "<image>"))):
        with pytest.raises(ValueError, match=f"{place}=.* holds <image>"):
            PairCollator(nano.processor).answers([(picture, *row)])


def objectives(policy):
    yield POVIDObjective(policy, copy.deepcopy(policy))
    yield STICObjective(policy, copy.deepcopy(policy))


def test_nano_llava_learns_the_pairs(nano):
    batch = PairCollator(nano.processor, noise_step=500)(pairs())
    for objective in objectives(copy.deepcopy(nano.model)):
        objective.policy.model.vision_tower.requires_grad_(False)
        before = objective(batch)
        config = FitConfig(lr=1e-3, batch_size=1, weight_decay=0.0, schedule="constant", collate=lambda rows: rows[0])
        fit(objective, [batch], steps=3, loss=lambda model, batch: model(batch).loss, config=config)
        after = objective(batch)
        assert after.loss < before.loss - 0.05
        rejected = after.reward_text if hasattr(after, "reward_text") else after.reward_rejected
        assert (after.reward_chosen > rejected).all()


def test_llava_next_with_tiles():
    """Pictures of different shapes, whose tokens differ in number."""
    import transformers
    from decode.tiny import PINPOINTS

    found = transformers.LlavaNextProcessor(
        transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
            image_grid_pinpoints=PINPOINTS,
        ),
        zoo.load("nano-llava").processor.tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=zoo.load("nano-llava").processor.chat_template,
    )
    config = CONFIGS["llava-next"]()
    config.text_config.vocab_size, config.image_token_index = len(found.tokenizer), found.image_token_id
    config.image_token_id = found.image_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = transformers.LlavaNextForConditionalGeneration(config).eval()
    rng = np.random.default_rng(0)
    rows = [
        Pair(rng.integers(0, 256, (*shape, 3), np.uint8), "What is it?", *answers)
        for shape, answers in zip(((20, 40), (40, 18)), ANSWERS, strict=True)
    ]
    batch = PairCollator(found, noise_step=500)(rows)
    assert batch["image_sizes"].tolist() == [[20, 40], [40, 18]]
    assert batch["pixel_values"].shape == batch["pixel_values_noisy"].shape
    assert batch["pixel_values"].ndim == 5
    for objective in objectives(policy):
        output = objective(batch)
        output.loss.backward()
        assert output.loss.isfinite()
        assert policy.model.language_model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_lora_policy_with_its_base_as_reference(nano):
    peft = pytest.importorskip("peft")
    batch = PairCollator(nano.processor)(pairs())
    base = copy.deepcopy(nano.model)
    plain = POVIDObjective(nano.model, nano.model, stage=1)(batch)
    config = peft.LoraConfig(r=4, target_modules=r".*language_model.*(q|v)_proj")
    policy = peft.get_peft_model(base, config)
    objective = POVIDObjective(policy, None, stage=1)
    torch.testing.assert_close(objective(batch).per_example, plain.per_example)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        objective(batch).loss.backward()
        optimizer.step()
    assert objective(batch).loss < plain.loss
    with policy.disable_adapter():
        torch.testing.assert_close(
            POVIDObjective(policy.get_base_model(), nano.model, stage=1)(batch).per_example, plain.per_example
        )
