from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from .contract import CASES, Case, pairs
from .measure import run

torch.set_num_threads(1)
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


def close(left, right, **tolerance):
    torch.testing.assert_close(torch.tensor(left), torch.tensor(right), **(tolerance or TOLERANCE))


def same(left, right):
    """Two results of `run` agree."""
    close(left["loss"], right["loss"])
    for one, other in zip(left["inputs"], right["inputs"], strict=True):
        close(one, other)
    for name, gradient in right["parameters"].items():
        close(left["parameters"][name], gradient)


def test_two_processes_equal_one(case, two_processes):
    alone, halves = run(case.build(), case.inputs(6, 0)), [result["contract"][case.name] for result in two_processes]
    close(sum(half["loss"] for half in halves) / 2, alone["loss"])
    for first, second, whole in zip(*(half["inputs"] for half in halves), alone["inputs"], strict=True):
        close(first + second, (2 * torch.tensor(whole)).tolist())  # DDP's mean of parameter gradients undoes the 2
    for name, whole in alone["parameters"].items():
        close(
            ((torch.tensor(halves[0]["parameters"][name]) + torch.tensor(halves[1]["parameters"][name])) / 2).tolist(),
            whole,
        )


def test_chunked_equals_dense(case):
    if case.chunked is None:
        pytest.skip("no chunked form")
    dense = run(case.build(), case.inputs(7, 0))
    for size in (1, 2, 3, 7, 100):
        same(run(case.build(), case.inputs(7, 0), partial(case.chunked, size=size)), dense)


def test_chunked_memory_does_not_grow_with_the_square(case):
    if case.chunked is None:
        pytest.skip("no chunked form")
    kept = {}
    for batch in (64, 128, 256):
        sizes: list[int] = []

        def note(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        inputs = [x.requires_grad_() if x.is_floating_point() else x for x in case.inputs(batch, 0)]
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            case.chunked(case.build(), tuple(inputs), 8).backward()
        kept[batch] = sum(sizes)
    assert kept[256] - kept[128] < 2.5 * (kept[128] - kept[64])  # 2 when linear, 4 when square


def test_hidden_content_never_matters(case):
    if case.hide is None:
        pytest.skip("no mask")
    inputs = case.inputs(5, 0)
    hidden = case.hide(inputs)
    assert any(not torch.equal(x, y) for x, y in zip(inputs, hidden, strict=True)), "the case hides nothing"
    close(case.build()(*hidden).loss.item(), case.build()(*inputs).loss.item())


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_input_raises(case, poison):
    inputs = case.inputs(4, 0)
    for place, x in enumerate(inputs):
        if x.is_floating_point():
            bad = x.clone()
            bad.view(-1)[-1] = poison
            with pytest.raises(ValueError, match=r"NaN|infinity|finite"):
                case.build()(*inputs[:place], bad, *inputs[place + 1 :])


def test_order_of_the_samples(case):
    inputs, order = case.inputs(6, 0), torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = case.build()(*(x[order] for x in inputs)).loss.item()
    if case.symmetric:
        close(shuffled, case.build()(*inputs).loss.item())


def test_pairing_matters(case):
    first, *rest = case.inputs(6, 0)
    moved = case.build()(first.roll(1, 0), *rest).loss.item()
    assert abs(moved - case.build()(first, *rest).loss.item()) > 1e-3


def test_gradient_reaches_every_input_and_parameter(case):
    result = run(case.build(), case.inputs(6, 0))
    for gradient in [*result["inputs"], *result["parameters"].values()]:
        assert torch.tensor(gradient).isfinite().all()
        assert torch.tensor(gradient).abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_scored_in_float32(case, dtype):
    inputs = case.inputs(6, 0)
    half = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    loss = case.build()(*half).loss
    assert loss.dtype == torch.float32
    close(loss.item(), case.build()(*inputs).loss.item(), atol=0.05, rtol=0.02)


def test_autocast_changes_nothing(case):
    plain = run(case.build(), case.inputs(6, 0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = {"atol": 0.05, "rtol": 0.02} if case.networks else {}
        close(case.build()(*case.inputs(6, 0)).loss.item(), plain["loss"], **rounded)
        if case.chunked is not None:  # its own backward pass is in here too
            same(
                run(case.build(), case.inputs(6, 0), partial(case.chunked, size=4)),
                plain,
            )


def test_batch_of_one(case):
    result = run(case.build(), case.inputs(1, 0))
    assert torch.tensor(result["loss"]).isfinite()
    assert all(torch.tensor(gradient).isfinite().all() for gradient in result["inputs"])


def test_bad_input_is_refused(case):
    assert case.bad, "name inputs that must be refused"
    for build in case.bad:
        with pytest.raises(ValueError, match=r"\w"):
            case.build()(*build())


class Careless(nn.Module):
    """Breaks most promises: looks at hidden features, keeps NaN, half precision and order, and forgets a gradient."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.ones(()))

    def forward(self, image, text):
        weights = torch.arange(len(image)).to(image)
        loss = (weights * (image.detach() * text).sum(1)).sum() + 0 * self.unused
        return SimpleNamespace(loss=loss.to(image))


def _mean_of_chunk_means(objective, inputs, size):
    chunks = zip(*(x.split(size) for x in inputs), strict=True)
    return torch.stack([objective(*chunk).loss for chunk in chunks]).mean()


CARELESS = Case(
    "careless",
    Careless,
    pairs,
    chunked=_mean_of_chunk_means,
    hide=lambda inputs: (inputs[0] + 1, inputs[1]),
    bad=(lambda: (torch.ones(3, 8), torch.ones(3, 8)),),
)


@pytest.mark.parametrize(
    "check",
    [
        test_chunked_equals_dense,
        test_hidden_content_never_matters,
        lambda case: test_non_finite_input_raises(case, float("nan")),
        test_order_of_the_samples,
        test_gradient_reaches_every_input_and_parameter,
        lambda case: test_half_precision_features_are_scored_in_float32(case, torch.bfloat16),
        test_bad_input_is_refused,
    ],
)
def test_the_contract_can_be_broken(check):
    with pytest.raises((AssertionError, pytest.fail.Exception, AttributeError)):
        check(CARELESS)
