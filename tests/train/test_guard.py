"""Non-finite numbers never reach the weights, and the run neither reads nor moves the global generators."""

import pytest
import torch
from torch import nn

from foveal.train import FitConfig, NonFiniteLoss, StepOrder, fit

from .tiny import SETTINGS, data, model, squared_error, weights


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_poisoned_sample_stops_the_run_before_the_step(poison, accumulate):
    rows = data()
    rows.tensors[1][17] = poison
    order = StepOrder(50, 8, seed=0)
    guilty = next(step for step in range(7) if 17 in order.indices(step))
    clean = model()
    if guilty:
        fit(
            clean, data(), steps=guilty, loss=squared_error, config=FitConfig(**SETTINGS, schedule="constant", warmup=0)
        )
    net = model()
    config = FitConfig(**SETTINGS, schedule="constant", warmup=0, accumulate=accumulate)
    with pytest.raises(NonFiniteLoss, match=f"at step {guilty} .*17.*weights are those from before") as caught:
        fit(net, rows, steps=20, loss=squared_error, config=config)
    assert caught.value.step == guilty
    assert 17 in caught.value.keys
    assert len(caught.value.keys) == 8 // accumulate
    if accumulate == 1:
        assert weights(net) == weights(clean)
    assert all(p.isfinite().all() and p.grad is None for p in net.parameters())


def test_a_finite_loss_with_an_infinite_gradient_is_caught():
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    with pytest.raises(NonFiniteLoss, match=r"gradient norm is .* at step 0"):
        fit(
            net,
            [torch.ones(1)] * 4,
            steps=1,
            loss=lambda m, x: m(x).abs().sqrt().mean(),
            config=FitConfig(batch_size=2),
        )
    assert net.weight.item() == 0


def test_an_infinite_loss_with_a_finite_gradient_is_caught():
    net = model()
    before = weights(net)
    with pytest.raises(NonFiniteLoss, match="loss is inf at step 0"):
        fit(net, data(), steps=1, loss=lambda m, batch: m(batch[0]).mean() + float("inf"))
    assert weights(net) == before


def test_streams_name_their_keys():
    batches = [{"__key__": ["a", "b"], "x": torch.ones(2, 4)}, {"__key__": ["c", "d"], "x": torch.full((2, 4), 1e38)}]
    with pytest.raises(NonFiniteLoss, match=r"at step 1 .samples c, d"):
        fit(model(), iter(batches), steps=2, loss=lambda m, b: m(b["x"]).square().mean())


def test_global_generators_do_not_matter_and_are_left_alone():
    results = []
    for seed in (0, 123):
        net = model()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        report = fit(net, data(), steps=6, loss=squared_error, config=FitConfig(**SETTINGS))
        assert torch.equal(torch.get_rng_state(), before)
        results.append((report.losses, weights(net)))
    assert results[0] == results[1]


def test_dropout_follows_the_seed_and_the_step():
    def masks(seed):
        seen = []
        net = nn.Sequential(nn.Dropout(0.5), nn.Linear(32, 1))
        net[0].register_forward_hook(lambda m, args, output: seen.append((output == 0).tolist()))
        fit(
            net, [torch.ones(32)] * 2, steps=2, loss=lambda m, x: m(x).mean(), config=FitConfig(batch_size=2, seed=seed)
        )
        return seen

    first = masks(0)
    assert first[0] != first[1]
    assert first == masks(0)
    assert first != masks(1)


def test_randomness_is_restored_after_an_error():
    net = model()
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"loss=\(8, 1\)"):
        fit(net, data(), steps=1, loss=lambda m, b: m(b[0]), config=FitConfig(**SETTINGS))
    assert torch.equal(torch.get_rng_state(), before)
