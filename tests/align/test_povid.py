import copy
import json
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import foveal.align
from foveal.align import povid
from foveal.align.povid import (
    HALLUCINATION_KINDS,
    POVIDObjective,
    add_diffusion_noise,
    alpha_bar_schedule,
    dpo_loss,
    hallucination_messages,
    inject_hallucinations,
    povid_loss,
    preference_record,
    read_preferences,
    response_logps,
    triggered_labels,
    write_preferences,
)
from foveal.llm import ScriptedLM

from .toy import ToyLVLM, batch

with np.load(Path(__file__).parents[1] / "golden" / "povid.npz", allow_pickle=False) as file:
    GOLDEN = {name: torch.from_numpy(np.asarray(file[name])) for name in file if file[name].dtype.kind != "U"}
SCORES = ("policy_chosen", "policy_text", "policy_noise", "ref_chosen", "ref_text", "ref_noise")
WEIGHTS = ("alpha", "beta_text", "beta_noise")


def golden(case):
    return {name.removeprefix(f"{case}__"): value for name, value in GOLDEN.items() if name.startswith(f"{case}__")}


def close(found, expected, **tolerance):
    torch.testing.assert_close(found.double(), expected.double(), **{"atol": 1e-5, "rtol": 1e-5} | tolerance)


def scores(rows=5, seed=0):
    return list(torch.randn(6, rows, generator=torch.Generator().manual_seed(seed)) * 5 - 20)


def test_golden_noise():
    case = golden("noise")
    options = {"noise": case["noise"], "num_steps": int(case["num_steps"])}
    close(add_diffusion_noise(case["images"], int(case["step"]), **options), case["expected"])
    close(add_diffusion_noise(case["images"], int(case["step"]), **options, clamp=True), case["expected_clamped"])


def test_golden_scores():
    case = golden("logps")
    labels = case["labels"].clone()
    close(response_logps(case["logits"], labels), case["expected_sum"])
    close(response_logps(case["logits"], labels, average=True), case["expected_mean"])
    assert torch.equal(labels, case["labels"])


def test_golden_triggered_answers():
    case = golden("triggered")
    found = triggered_labels(case["noisy_logits"], case["labels"])
    assert torch.equal(found, case["expected"])
    assert torch.equal(
        triggered_labels(case["noisy_logits"], case["labels"], avoid_gold=True), case["expected_avoid_gold"]
    )
    close(response_logps(case["clean_logits"], found), case["expected_clean_logps"])


def test_golden_loss():
    case = golden("loss_joint")
    weights = {name: float(case[name]) for name in WEIGHTS}
    output = povid_loss(*(case[name] for name in SCORES), **weights)
    for name in ("per_example", "loss", "reward_chosen", "reward_text", "reward_noise", "accuracy"):
        close(getattr(output, name), case[name])
    pair = [case[name] for name in ("policy_chosen", "policy_text", "ref_chosen", "ref_text")]
    close(dpo_loss(*pair, beta=weights["alpha"]), case["dpo_text"])


def test_the_schedule():
    schedule = alpha_bar_schedule()
    assert schedule.shape == (1000,)
    assert schedule.dtype == torch.float32
    assert (schedule.diff() < 0).all()
    assert schedule[0] > 0.9999
    assert 0.05 < schedule[-1] < 0.15
    betas = torch.sigmoid(torch.linspace(-6, 6, 1000).double()) * (0.5e-2 - 1e-5) + 1e-5
    close(schedule[500], torch.prod(1 - betas[:501]))
    with pytest.raises(ValueError, match="num_steps=0"):
        alpha_bar_schedule(0)


def test_noise():
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    assert (add_diffusion_noise(images, 0, generator=generator) - images).abs().max() < 0.05
    first, second = (add_diffusion_noise(images, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first, second)
    assert (first - images).abs().max() > 1
    assert not torch.equal(first[0], first[1])
    for step in (-1, 1000):
        with pytest.raises(ValueError, match=f"step={step}"):
            add_diffusion_noise(images, step)
    with pytest.raises(ValueError, match="must have the shape of images"):
        add_diffusion_noise(images, noise=images[:1])
    with pytest.raises(ValueError, match="give floats"):
        add_diffusion_noise((255 * images).byte())


def test_scores_count_the_response_alone():
    logits = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, -100, 3, 4, -100, -100], [2, -100, -100, -100, 5, 6]])
    logs = logits.double().log_softmax(-1)
    expected = torch.stack([logs[0, 1, 3] + logs[0, 2, 4], logs[1, 3, 5] + logs[1, 4, 6]])
    close(response_logps(logits, labels), expected)
    close(response_logps(logits.bfloat16(), labels), expected, atol=0.1, rtol=0.1)
    assert response_logps(logits.bfloat16(), labels).dtype == torch.float32
    changed = logits.clone()
    changed[0, [0, 3, 4, 5]] = 9.0
    close(response_logps(changed, labels)[0], expected[0])
    close(response_logps(logits, labels.masked_fill(labels == -100, 0), ignore_index=0), expected)
    nothing = torch.full_like(labels, -100)
    assert torch.equal(response_logps(logits, nothing), torch.zeros(2))
    with pytest.raises(ValueError, match="without a response"):
        response_logps(logits, nothing, average=True)
    with pytest.raises(ValueError, match="do not fit logits"):
        response_logps(logits, labels[:, 1:])


def test_triggered_answer_of_a_perfect_model_is_the_answer():
    labels = torch.tensor([[-100, -100, 3, 4, 1], [-100, 2, 2, -100, -100]])
    logits = torch.zeros(2, 5, 7)
    for row, place in (labels[:, 1:] != -100).nonzero().tolist():
        logits[row, place, labels[row, place + 1]] = 5.0
    found = triggered_labels(logits, labels)
    assert torch.equal(found, labels)
    other = triggered_labels(logits, labels, avoid_gold=True)
    assert ((other != labels) | (labels == -100)).all()
    assert torch.equal(other == -100, labels == -100)
    assert (triggered_labels(logits, labels.clone().index_fill_(1, torch.tensor([0]), 2))[:, 0] == -100).all()


def test_only_the_gold_token_gives_way_to_the_runner_up():
    labels = torch.tensor([[-100, 5, 0, 2]])
    tied = torch.zeros(1, 4, 6)
    assert triggered_labels(tied, labels).tolist() == [[-100, 0, 0, 0]]
    assert triggered_labels(tied, labels, avoid_gold=True).tolist() == [[-100, 0, 1, 0]]
    logits = torch.randn(4, 50, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    gold = torch.randint(300, (4, 50), generator=torch.Generator().manual_seed(1))
    plain, avoiding = triggered_labels(logits, gold), triggered_labels(logits, gold, avoid_gold=True)
    assert torch.equal((plain != avoiding)[:, 1:], (plain == gold)[:, 1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("step", [0, 20, 500])
def test_noise_in_half_precision(dtype, step):
    rng = torch.Generator().manual_seed(0)
    images, noise = torch.rand(2, 3, 8, 8, generator=rng), torch.randn(2, 3, 8, 8, generator=rng)
    found = add_diffusion_noise(images.to(dtype), step, noise=noise.to(dtype))
    assert found.dtype == dtype
    close(found, add_diffusion_noise(images, step, noise=noise), atol=0.02, rtol=0.01)
    assert ((found - images.to(dtype)).abs() > 0).any()


def test_labels_of_any_kind():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, -100, 3, 2, 0], [-100, 1, 6, -100, -100]])
    close(response_logps(logits, labels.int()), response_logps(logits, labels))
    ours = labels.where(labels != -100, -1)
    close(response_logps(logits, ours, average=True, ignore_index=-1), response_logps(logits, labels, average=True))
    for stray in (7, -1):
        with pytest.raises(ValueError, match=f"labels reach from .*{stray}"):
            response_logps(logits, labels.where(labels != 6, stray))


@pytest.mark.parametrize("combine", ["joint", "split"])
def test_nothing_learned_yet_is_log_2(combine):
    policy = scores()[:3]
    output = povid_loss(*policy, *policy, combine=combine)
    close(output.per_example, torch.full((5,), math.log(2)))
    assert output.accuracy == 0


def test_text_alone_is_dpo():
    policy = scores()
    pair = policy[0], policy[1], policy[3], policy[4]
    close(povid_loss(*policy, beta_noise=0.0, beta_text=0.1).per_example, dpo_loss(*pair, beta=0.1))
    close(povid_loss(*policy, beta_noise=0.0, combine="split").per_example, dpo_loss(*pair, beta=0.1))


def test_joint_and_split_agree_to_first_order():
    near = [0.01 * score for score in scores()]
    joint, split = (povid_loss(*near, combine=combine).per_example for combine in ("joint", "split"))
    close(joint, split, atol=1e-4, rtol=0)
    assert (joint - math.log(2)).abs().max() > 1e-3


def test_both_terms_are_subtracted():
    plain = [torch.zeros(1) for _ in range(6)]
    for place in (1, 2):
        worse = list(plain)
        worse[place] = torch.full((1,), 10.0)
        assert povid_loss(*worse).loss > math.log(2)
    better = [torch.full((1,), 10.0), *plain[1:]]
    assert povid_loss(*better).loss < math.log(2)
    assert povid_loss(*better).accuracy == 1


def test_reference_free():
    policy = scores()
    free = dpo_loss(policy[0], policy[1], policy[3], policy[4], reference_free=True)
    zero = torch.zeros(5)
    close(free, dpo_loss(policy[0], policy[1], zero, zero))
    close(free, dpo_loss(policy[0], policy[1], None, None, reference_free=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy_text": torch.zeros(4)}, r"policy_text \(4,\)"),
        ({"ref_noise": torch.zeros(5, 1)}, r"ref_noise \(5, 1\)"),
        ({"policy_chosen": torch.tensor([0, 0, float("inf"), 0, 0])}, r"policy_chosen\[2\]=inf"),
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"beta_noise": float("nan")}, "beta_noise=nan"),
        ({"combine": "sum"}, "combine='sum'"),
        ({"combine": "split", "beta_text": 0.0, "beta_noise": 0.0}, "split needs one"),
    ],
)
def test_bad_scores_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        povid_loss(**dict(zip(SCORES, scores())) | change)


def test_dpo_of_trl():
    """trl computes its loss within its trainer: that method is called with a model that says these numbers."""
    trl = pytest.importorskip("trl")
    policy_chosen, policy_rejected, ref_chosen, ref_rejected = scores()[:4]
    trainer = MagicMock(
        aux_loss_enabled=False,
        ld_alpha=None,
        use_weighting=False,
        precompute_ref_logps=True,
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        f_divergence_type="reverse_kl",
        beta=0.3,
    )
    trainer.accelerator.gather = trainer.accelerator.gather_for_metrics = lambda value: value
    trainer.model.training = False
    trainer._metrics = {"eval": defaultdict(list)}
    logps = torch.cat([policy_chosen, policy_rejected])[:, None]
    ones = torch.ones(10, 2, dtype=torch.long)
    said = {"log_probs": logps, "entropy": logps, "mean_logits": logps, "is_top1": ones[:, 1:].bool()}
    references = {"ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected}
    inputs = {"input_ids": ones, "attention_mask": ones, "completion_mask": ones, **references}
    loss = trl.DPOTrainer._compute_loss(trainer, lambda **_: SimpleNamespace(**said), inputs, False)
    ours = dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.3)
    close(ours.mean(), loss)


# the objective


def by_hand(policy, reference, found, **options):
    """Stage 2 written out, one pass after the other."""
    noisy = add_diffusion_noise(found["pixel_values"], 500, generator=torch.Generator().manual_seed(0))
    triggered, judged = {}, {}
    for name, model in (("policy", policy), ("ref", reference)):
        ids, mask = found["chosen_input_ids"], found["chosen_attention_mask"]
        clean, bad = model(found["pixel_values"], ids, mask).logits, model(noisy, ids, mask).logits
        triggered[name] = torch.full_like(ids, -100)
        for row, place in (found["chosen_labels"] != -100).nonzero().tolist():
            best = bad[row, place - 1].topk(2).indices.tolist()
            gold = int(found["chosen_labels"][row, place])
            triggered[name][row, place] = best[options.get("avoid_gold", False) and best[0] == gold]
        judged[name] = bad if options.get("score_noise_on") == "noisy" else clean
        text = model(found["pixel_values"], found["rejected_input_ids"], found["rejected_attention_mask"]).logits
        yield response_logps(clean, found["chosen_labels"])
        yield response_logps(text, found["rejected_labels"])
        tokens = triggered[name if options.get("noise_tokens") == "own" else "policy"]
        yield response_logps(judged[name], tokens)


@pytest.mark.parametrize("noise_tokens", ["policy", "own"])
@pytest.mark.parametrize("score_noise_on", ["clean", "noisy"])
@pytest.mark.parametrize("avoid_gold", [False, True])
def test_stage_2(noise_tokens, score_noise_on, avoid_gold):
    options = {"noise_tokens": noise_tokens, "score_noise_on": score_noise_on, "avoid_gold": avoid_gold}
    policy, reference, found = ToyLVLM(0), ToyLVLM(1), batch()
    objective = POVIDObjective(policy, reference, alpha=0.3, beta_text=0.1, beta_noise=0.2, **options)
    output = objective(found, torch.Generator().manual_seed(0))
    expected = povid_loss(*by_hand(policy, reference, found, **options), alpha=0.3, beta_text=0.1, beta_noise=0.2)
    for name in vars(output):
        close(getattr(output, name), getattr(expected, name))
    assert not any(call.training for call in reference.calls)


def test_no_gradient_through_the_noisy_pass_unless_it_is_scored():
    policy, found = ToyLVLM(), batch()
    for score_noise_on, expected in (("clean", [True, True, False]), ("noisy", [True, True, True])):
        policy.calls.clear()
        POVIDObjective(policy, ToyLVLM(1), score_noise_on=score_noise_on)(found, torch.Generator().manual_seed(0))
        assert [call.grad for call in policy.calls] == expected


def test_stage_1_is_dpo_on_the_text():
    policy, reference, found = ToyLVLM(0), ToyLVLM(1), batch()
    output = POVIDObjective(policy, reference, stage=1, alpha=0.4)(found)
    rows = list(by_hand(policy, reference, found))
    close(output.per_example, dpo_loss(rows[0], rows[1], rows[3], rows[4], beta=0.4))
    close(output.reward_chosen, 0.4 * (rows[0] - rows[3]))
    close(output.reward_text, 0.4 * (rows[1] - rows[4]))
    close(output.accuracy, ((rows[0] - rows[3]) > (rows[1] - rows[4])).float().mean())
    assert torch.equal(output.reward_noise, torch.zeros(4))


def test_given_noisy_pictures_are_taken():
    policy, reference, found = ToyLVLM(0), ToyLVLM(1), batch()
    objective = POVIDObjective(policy, reference)
    drawn = objective(found, torch.Generator().manual_seed(7))
    noisy = add_diffusion_noise(found["pixel_values"], 500, generator=torch.Generator().manual_seed(7))
    given_ = objective(found | {"pixel_values_noisy": noisy}, torch.Generator().manual_seed(8))
    assert torch.equal(drawn.per_example, given_.per_example)
    state = torch.random.get_rng_state()
    objective(found, torch.Generator().manual_seed(7))
    assert torch.equal(state, torch.random.get_rng_state())


def test_noisy_pictures_that_tell_nothing_are_named():
    objective, found = POVIDObjective(ToyLVLM(0), ToyLVLM(1)), batch()
    blind = found["pixel_values"].clone()
    blind[2] = float("nan")
    with pytest.raises(ValueError, match=r"policy_noise\[2\]=nan"):
        objective(found | {"pixel_values_noisy": blind})
    with pytest.raises(ValueError, match=r"pixel_values_noisy \(1, 3, 4, 4\)"):
        objective(found | {"pixel_values_noisy": blind[:1]})


@pytest.mark.parametrize(
    "options",
    [
        {"stage": 3},
        {"noise_step": 1000},
        {"noise_tokens": "both"},
        {"score_noise_on": "dirty"},
        {"combine": "sum"},
        {"alpha": -1.0},
    ],
)
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        POVIDObjective(ToyLVLM(), ToyLVLM(), **options)


def test_training_prefers_the_true_answers():
    policy, found = ToyLVLM(), batch(8)
    objective = POVIDObjective(policy, copy.deepcopy(policy), alpha=1.0, beta_text=0.5, beta_noise=0.5)
    optimizer = torch.optim.Adam(policy.parameters(), 0.02)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        objective(found, generator).loss.backward()
        optimizer.step()
    output = objective(found, generator)
    assert output.loss < 0.2
    assert output.accuracy >= 0.75


# the data


def sample(number, answer="A red dog on grass."):
    return {"id": str(number), "image": f"{number}.jpg", "instruction": "Describe the image.", "answer": answer}


def test_a_record_has_the_released_form():
    record = preference_record("7", "a.jpg", "What is it?", "a dog", "a cat")
    assert record == {
        "id": "7",
        "image": "a.jpg",
        "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a dog"}],
        "rejected_conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "a cat"},
        ],
    }
    marked = preference_record("7", "a.jpg", "What is it?\n<image>", "a dog", "a cat")
    assert marked["conversations"][0]["value"] == "What is it?\n<image>"
    for preferred, dispreferred in (("a", "a"), ("", "a"), ("a", " \n"), ("a", " a")):
        with pytest.raises(ValueError, match="record '7'"):
            preference_record("7", "a.jpg", "What?", preferred, dispreferred)


def test_preferences_go_to_a_file_and_back(tmp_path):
    records = [preference_record(str(i), "ü.jpg", "What?", f"ein Hund {i} 🐕", "eine Katze") for i in range(3)]
    write_preferences(tmp_path / "new" / "p.json", (record for record in records))
    assert read_preferences(tmp_path / "new" / "p.json") == records
    assert isinstance(json.loads((tmp_path / "new" / "p.json").read_text(encoding="utf-8")), list)
    with pytest.raises(ValueError, match="record 2"):
        write_preferences(tmp_path / "new" / "p.json", [records[0], {"image": "a.jpg"}])
    assert read_preferences(tmp_path / "new" / "p.json") == records


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read"),
        ("{}", "a dict"),
        ('["a"]', "record 1 must be"),
        ('[{"image": "a.jpg", "conversations": []}]', "record 1: conversations"),
        ('[{"image": "a.jpg", "conversations": [{"from": "gpt", "value": "a"}]}]', "record 1: conversations"),
    ],
)
def test_broken_preferences_are_named(tmp_path, content, message):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_preferences(tmp_path / "p.json")
    with pytest.raises(ValueError, match="cannot read"):
        read_preferences(tmp_path / "none.json")


def test_messages_hold_what_is_to_be_rewritten():
    texts = []
    for kind in HALLUCINATION_KINDS:
        messages = hallucination_messages("<image>\nDescribe it.", "A red dog.", kind)
        assert [message["role"] for message in messages] == ["system", "user"]
        assert "A red dog." in messages[1]["content"]
        assert "<image>" not in messages[1]["content"]
        assert kind in messages[1]["content"]
        texts.append(messages[1]["content"])
    assert len(set(texts)) == 3
    with pytest.raises(ValueError, match="kind='lies'"):
        hallucination_messages("a", "b", "lies")


def test_kinds_take_turns_and_each_reply_is_a_record():
    lm = ScriptedLM([f"A blue cat {i}." for i in range(4)])
    records = inject_hallucinations([sample(i) for i in range(4)], lm)
    assert [record["id"] for record in records] == ["0", "1", "2", "3"]
    assert [record["rejected_conversations"][1]["value"] for record in records] == [
        f"A blue cat {i}." for i in range(4)
    ]
    assert {record["conversations"][1]["value"] for record in records} == {"A red dog on grass."}
    asked = [prompt[1]["content"] for prompt in lm.calls]
    for prompt, kind in zip(asked, (*HALLUCINATION_KINDS, HALLUCINATION_KINDS[0]), strict=True):
        assert f"Kind of error: {kind}" in prompt


def test_useless_replies_are_asked_again_then_dropped():
    same = "A  red dog on grass. "
    lm = ScriptedLM(["", same, "A red cat.", same, " ", same, "No dog."])
    records = inject_hallucinations([sample(0), sample(1), sample(2)], lm)
    assert [record["id"] for record in records] == ["0", "2"]
    assert len(lm.calls) == 7
    assert not inject_hallucinations([sample(0)], ScriptedLM([""]), max_retries=0)


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_reply_is_survived(reply):
    records = inject_hallucinations([sample(0)], ScriptedLM(lambda prompt: reply))
    useless = not reply.strip() or reply.split() == sample(0)["answer"].split()
    assert len(records) == (not useless)


def test_bad_samples_are_named():
    with pytest.raises(ValueError, match=r"samples\[1\] lacks answer"):
        inject_hallucinations([sample(0), {"id": "1", "image": "a", "instruction": "b"}], ScriptedLM([]))
    with pytest.raises(ValueError, match=r"samples\[1\] .* empty answer"):
        inject_hallucinations([sample(0), sample(1) | {"answer": " "}], ScriptedLM([]))  # before any call is paid for
    with pytest.raises(ValueError, match="kinds="):
        inject_hallucinations([sample(0)], ScriptedLM(["a"]), kinds=())
    with pytest.raises(ValueError, match="max_retries=-1"):
        inject_hallucinations([sample(0)], ScriptedLM(["a"]), max_retries=-1)


def test_names_are_found_from_the_stage():
    assert foveal.align.POVIDObjective is povid.POVIDObjective
    assert foveal.align.dpo_loss is povid.dpo_loss
    assert foveal.align.inject_hallucinations is povid.inject_hallucinations
