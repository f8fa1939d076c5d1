import copy

import pytest
import torch

from foveal.align.base import response_logps

from .contract import CASES, LOG2, Case
from .toy import ToyLVLM, batch, padded


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


def noised(case, found):
    """With a noisy picture of one's own where the case looks at one, so that nothing is drawn."""
    if not case.noise:
        return found
    return found | {"pixel_values_noisy": 1 - found["pixel_values"]}


def rows_of(found, rows):
    return {name: value[rows] for name, value in found.items()}


def test_the_model_itself_as_the_reference(case):
    policy, found = ToyLVLM(), noised(case, batch())
    output = case.build(policy, policy)(found)
    scores = response_logps(policy(found["pixel_values"], *parts(found, "chosen")).logits, found["chosen_labels"])
    torch.testing.assert_close(output.per_example, LOG2 - case.likelihood * scores)
    torch.testing.assert_close(output.loss, output.per_example.mean())
    assert output.accuracy == 0
    for name in ("reward_chosen", "reward_text", "reward_noise", "reward_rejected"):
        assert not hasattr(output, name) or torch.equal(getattr(output, name), torch.zeros(4))


def parts(found, side):
    return found[f"{side}_input_ids"], found[f"{side}_attention_mask"]


def test_rows_are_independent_and_padding_is_nothing(case):
    objective, found = case.build(ToyLVLM(0), ToyLVLM(1)), noised(case, batch())
    whole = objective(found).per_example
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(objective(rows_of(found, order)).per_example, whole[order])
    singles = torch.cat([objective(rows_of(found, [row])).per_example for row in range(4)])
    torch.testing.assert_close(singles, whole)
    torch.testing.assert_close(objective(padded(found)).per_example, whole)


def test_learns_from_the_policy_alone(case):
    policy, reference, found = ToyLVLM(0), ToyLVLM(1), noised(case, batch())
    objective = case.build(policy, reference).train()
    before = copy.deepcopy(reference.state_dict())
    output = objective(found)
    output.loss.backward()
    for parameter in policy.parameters():
        assert parameter.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert not reference.training
    assert policy.training
    assert not any(call.grad or call.training for call in reference.calls)
    for name in vars(output):
        assert not getattr(output, name).requires_grad or name in ("loss", "per_example", "dpo", "sft"), name
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter -= 1e-2 * parameter.grad
    if not case.own_choice:
        assert objective(found).loss < output.loss
    assert all(torch.equal(before[name], value) for name, value in reference.state_dict().items())


def test_the_reference_is_the_model_before(case):
    policy, found = ToyLVLM(), noised(case, batch())
    objective = case.build(policy, policy)
    with torch.no_grad():
        policy.head.mul_(-1.5)
    assert (objective(found).per_example - LOG2).abs().max() > 1e-3
    assert any(parameter.requires_grad for parameter in policy.parameters())


def test_peft_adapters_need_no_second_model(case):
    peft = pytest.importorskip("peft")

    class Linear(ToyLVLM):
        def __init__(self):
            super().__init__(dropout=0.5)
            self.last = torch.nn.Linear(11, 11, bias=False)

        def forward(self, pixel_values, input_ids, attention_mask):
            output = super().forward(pixel_values, input_ids, attention_mask)
            output.logits = self.last(output.logits)
            return output

    torch.manual_seed(0)
    base, found = Linear(), noised(case, batch())
    plain = case.build(copy.deepcopy(base), copy.deepcopy(base)).eval()
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["last"]))
    objective = case.build(adapted, None)
    torch.testing.assert_close(objective.eval()(found).per_example, plain(found).per_example)
    objective.train()(found).loss.backward()
    assert adapted.training
    assert [name for name, value in adapted.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0]
    assert not any(call.grad or call.training for call in base.calls[1::2]) or case.noise
    with pytest.raises(ValueError, match="reference=None"):
        case.build(ToyLVLM(), None)


def test_a_reference_that_would_move_is_refused(case):
    peft = pytest.importorskip("peft")
    base = ToyLVLM(0)
    with pytest.raises(ValueError, match=r"reference: tokens is trained"):
        case.build(base, copy.copy(base))
    assert base.tokens.requires_grad
    base.last = torch.nn.Linear(4, 4)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["last"]))
    adapted.base_model.model.picture.requires_grad_(True)
    with pytest.raises(ValueError, match=r"reference: .*picture is trained.*modules_to_save"):
        case.build(adapted, None)


def test_resting_parts_of_a_peft_policy_rest_after_the_reference_has_run(case):
    peft = pytest.importorskip("peft")
    base = ToyLVLM(0)
    base.last = torch.nn.Linear(4, 4)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["last"]))
    objective = case.build(adapted, None).train()
    base.dropout.eval()  # as `fit` leaves parts without trainable weights
    modes = {name: module.training for name, module in objective.named_modules()}
    objective(noised(case, batch()))
    assert {name: module.training for name, module in objective.named_modules()} == modes


def test_bad_batches_are_named(case):
    objective, found = case.build(ToyLVLM(0), ToyLVLM(1)), noised(case, batch())
    for name in ("pixel_values", "chosen_labels", "rejected_attention_mask"):
        with pytest.raises(ValueError, match=f"lacks {name}"):
            objective({key: value for key, value in found.items() if key != name})
    with pytest.raises(ValueError, match="share one shape"):
        objective(found | {"chosen_labels": found["chosen_labels"][:, 1:]})
    cut = found["rejected_labels"].clone()
    cut[1] = -100
    with pytest.raises(ValueError, match="rejected_labels of row 1"):
        objective(found | {"rejected_labels": cut})
    poisoned = ToyLVLM()
    with torch.no_grad():
        poisoned.head[0] = float("nan")
    with pytest.raises(ValueError, match=r"policy_chosen\[0\]=nan"):
        case.build(poisoned, ToyLVLM(1))(found)


def test_misaligned_logits_are_named(case):
    class Short(ToyLVLM):
        def forward(self, **inputs):
            output = super().forward(**inputs)
            output.logits = output.logits[:, 1:]
            return output

    with pytest.raises(ValueError, match="must be aligned"):
        case.build(Short(), ToyLVLM())(noised(case, batch()))
