from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from foveal.adapt.svfit import (
    SVFitLinear,
    apply_svfit,
    load_svfit_state_dict,
    merge_svfit,
    parameter_budget,
    select_rank,
    svd_split,
    svfit_layers,
    svfit_state_dict,
)
from foveal.train import FitConfig, fit

from .svfit_models import MODELS, TARGETS, tiny

GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "golden/svfit.npz").items()}


def golden(case):
    return {name.split("__", 1)[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}__")}


def close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    assert float((actual.detach().double() - expected.detach().double()).abs().max()) <= tolerance


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(in_features=6, out_features=4, bias=True):
    layer = nn.Linear(in_features, out_features, bias)
    with torch.no_grad():
        layer.weight.copy_(normal(out_features, in_features))
        if bias:
            layer.bias.copy_(normal(out_features, seed=1))
    return layer


# Rank -----------------------------------------------------------------------------------------------------------------


def test_golden_ranks():
    ref = golden("rank")
    rows = zip(ref["singular_values"], ref["energy"], ref["power"], strict=True)
    found = [select_rank(values, float(energy), power=int(power)) for values, energy, power in rows]
    assert found == ref["expected"].tolist()


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12), st.floats(0.01, 1), st.floats(0.01, 1))
@settings(deadline=None, max_examples=60)
def test_rank_is_monotone_in_energy_and_blind_to_order(values, one, other):
    low, high = sorted((one, other))
    spectrum = torch.tensor(values, dtype=torch.float64)
    ranks = [select_rank(spectrum, energy) for energy in (low, high, 1.0)]
    assert 1 <= ranks[0] <= ranks[1] <= ranks[2] == len(values)
    assert select_rank(spectrum.flip(0), high) == ranks[1]


def test_rank_where_the_threshold_is_met_exactly():
    assert select_rank(torch.tensor([2.0, 1.0, 1.0]), 0.5, power=1) == 1
    assert select_rank(torch.tensor([2.0, 1.0, 1.0]), 0.75, power=1) == 2
    assert select_rank(torch.tensor([2.0, 1.0, 1.0]), 4 / 6) == 1
    assert select_rank(torch.ones(10), 0.3) == 3


def test_rank_of_everything_keeps_what_is_tiny_and_drops_what_is_nothing():
    assert select_rank(torch.tensor([1.0, 1e-20]), 1.0) == 2
    assert select_rank(torch.tensor([1.0, 0.0]), 1.0) == 1
    assert select_rank(torch.zeros(3)) == 1
    assert select_rank(torch.tensor([1e200, 1.0], dtype=torch.float64)) == 1


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (torch.ones(3), {"energy": 0.0}, "energy=0.0"),
        (torch.ones(3), {"energy": 1.1}, "energy=1.1"),
        (torch.ones(3), {"energy": float("nan")}, "energy=nan"),
        (torch.ones(0), {}, "singular_values"),
        (torch.ones(2, 2), {}, "singular_values"),
        (torch.tensor([1.0, float("nan")]), {}, "NaN"),
        (torch.tensor([1.0, -1.0]), {}, "negative"),
        (torch.ones(3), {"power": 0}, "power=0"),
    ],
)
def test_rank_refuses(values, options, message):
    with pytest.raises(ValueError, match=message):
        select_rank(values, **options)


# Split ----------------------------------------------------------------------------------------------------------------


def test_golden_split():
    ref = golden("split")
    split = svd_split(ref["weight"], int(ref["rank"]))
    close(split.sigma, ref["sigma"])
    close((split.u * split.sigma) @ split.vh, ref["low_rank"])
    close(split.residual, ref["residual"])


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_split_is_exact(shape, dtype):
    weight = normal(*shape).to(dtype)
    full = svd_split(weight, min(shape))
    half = svd_split(weight, 2)
    assert {part.dtype for part in full} == {dtype}
    tolerance = {torch.bfloat16: 4e-3, torch.float16: 5e-4}.get(dtype, 1e-5)
    for split in (full, half):
        wide = [part.double() for part in split]
        close((wide[0] * wide[1]) @ wide[2] + wide[3], weight, tolerance)
    if tolerance == 1e-5:
        assert float(full.residual.abs().max()) < 1e-5
    assert bool((half.sigma[:-1] >= half.sigma[1:]).all())


@pytest.mark.parametrize("rank", [0, 5, -1, 2.0])
def test_split_refuses_ranks(rank):
    with pytest.raises(ValueError, match=f"rank={rank}"):
        svd_split(normal(6, 4), rank)


@pytest.mark.parametrize(
    "weight", [normal(4), torch.ones(4, 4, dtype=torch.int8), torch.full((3, 3), torch.nan), torch.empty(0, 3)]
)
def test_split_refuses_what_has_no_svd(weight):
    with pytest.raises(ValueError, match="weight"):
        svd_split(weight, 1)


# Layer ----------------------------------------------------------------------------------------------------------------


def test_golden_forward():
    ref = golden("forward")
    layer = SVFitLinear(4, 5, 2)
    layer.load_state_dict({name: ref[name] for name in ("u", "sigma", "vh", "residual", "bias")})
    close(layer(ref["x"]), ref["expected"])
    close(layer.merged_weight(), ref["expected_weight"])
    close(layer.merge()(ref["x"]), ref["expected"])


def test_state_dict_keys_and_the_only_parameter():
    keys = ["sigma", "u", "vh", "residual", "bias"]
    assert list(SVFitLinear(4, 5, 2).state_dict()) == keys
    assert list(SVFitLinear(4, 5, 2, bias=False).state_dict()) == keys[:-1]
    assert list(SVFitLinear.from_linear(linear(bias=False)).state_dict()) == keys[:-1]
    assert [name for name, _ in SVFitLinear.from_linear(linear()).named_parameters()] == ["sigma"]
    for rank in (5, 2.0):
        with pytest.raises(ValueError, match=f"rank={rank}"):
            SVFitLinear(4, 5, rank)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"rank": 1}, {"rank": 4}, {"energy": 0.6, "power": 1}])
def test_nothing_changes_before_training(bias, options):
    base = linear(bias=bias)
    layer, x = SVFitLinear.from_linear(base, **options), normal(2, 3, 6, seed=2)
    close(layer(x), base(x))
    close(layer.merge()(x), base(x))
    close(layer.weight, base.weight)
    assert layer.rank == options.get("rank", layer.rank)


def test_rank_from_energy():
    base = nn.Linear(3, 3)
    with torch.no_grad():
        base.weight.copy_(torch.diag(torch.tensor([10.0, 1.0, 0.9])))
    assert SVFitLinear.from_linear(base).rank == 2
    assert SVFitLinear.from_linear(base, power=1).rank == 3
    assert SVFitLinear.from_linear(base, energy=0.98).rank == 1


def test_conv1d_is_the_same_map_transposed():
    conv = Conv1D(4, 6)
    with torch.no_grad():
        conv.weight.copy_(normal(6, 4))
        conv.bias.copy_(normal(4, seed=1))
    layer, x = SVFitLinear.from_linear(conv, rank=2), normal(5, 6, seed=2)
    close(layer(x), conv(x))
    assert (layer.in_features, layer.out_features) == (6, 4)
    close(layer.merge()(x), conv(x))


def test_other_layers_are_refused():
    with pytest.raises(ValueError, match="Embedding"):
        SVFitLinear.from_linear(nn.Embedding(3, 3))


def test_only_sigma_gets_a_gradient_and_it_is_that_of_its_direction():
    base, x = linear(), normal(7, 6, seed=3)
    layer = SVFitLinear.from_linear(base, rank=3)
    layer(x).square().sum().backward()
    base(x).square().sum().backward()
    close(layer.sigma.grad, torch.einsum("or,oi,ri->r", layer.u, base.weight.grad, layer.vh), 1e-3)
    assert not any(buffer.requires_grad for buffer in layer.buffers())
    layer.zero_grad()
    layer.weight.square().sum().backward()  # a model that reads the weight trains sigma as well
    assert bool((layer.sigma.grad != 0).all())


def test_scaling_a_full_spectrum_scales_the_output():
    base, x = linear(bias=False), normal(3, 6)
    layer = SVFitLinear.from_linear(base, rank=4)
    with torch.no_grad():
        layer.sigma *= -1.5  # it may change its sign
    close(layer(x), -1.5 * base(x))
    close(layer.merge()(x), -1.5 * base(x))


def test_half_precision_runs():
    base = linear().bfloat16()
    layer, x = SVFitLinear.from_linear(base), normal(2, 6).bfloat16()
    close(layer(x), base(x), 0.05)
    assert layer(x).dtype == torch.bfloat16
    assert layer.merge().weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_are_not_lost_in_16_bits(dtype):
    """A large singular value plus a step of AdamW is, in 16 bits, the same number again."""
    with torch.no_grad():
        base = linear(bias=False)
        base.weight *= 100
        base = base.to(dtype)
    layer, x = SVFitLinear.from_linear(base, rank=3), normal(2, 6).to(dtype)
    assert {name: value.dtype for name, value in layer.state_dict().items()} == {
        **dict.fromkeys(("u", "vh", "residual"), dtype),
        "sigma": torch.float32,
    }
    assert torch.equal(layer.sigma, svd_split(base.weight, 3).sigma.float())
    before = layer.sigma.detach().clone()
    optimizer = torch.optim.AdamW([layer.sigma], lr=1e-3, weight_decay=0.0)
    layer(x).float().mean().backward()
    optimizer.step()
    assert bool((layer.sigma != before).all())
    again = nn.ModuleDict({"q_proj": base})
    apply_svfit(again, rank=3)
    load_svfit_state_dict(again, {"q_proj.sigma": layer.sigma.detach()})
    assert torch.equal(again["q_proj"](x), layer(x))


# Models ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_real_models(name, tmp_path):
    case, base = tiny(name), tiny(name)
    before = base()
    names = apply_svfit(case.model, TARGETS, rank=5)
    assert len(names) == case.layers == len(svfit_layers(case.model))
    assert {n for n, p in case.model.named_parameters() if p.requires_grad} == {f"{n}.sigma" for n in names}
    close(case(), before)
    case().square().mean().backward()
    with torch.no_grad():
        for layer in svfit_layers(case.model).values():
            assert layer.sigma.grad is not None
            layer.sigma *= 1.5
    adapted, saved = case(), svfit_state_dict(case.model)
    assert float((adapted - before).detach().abs().max()) > 1e-4
    assert list(saved) == [f"{n}.sigma" for n in names]
    again = tiny(name)
    apply_svfit(again.model, TARGETS, rank=5)
    load_svfit_state_dict(again.model, saved)
    close(again(), adapted)
    assert merge_svfit(case.model) is case.model
    assert not svfit_layers(case.model)
    close(case(), adapted)
    case.model.save_pretrained(tmp_path)
    plain = type(case.model).from_pretrained(tmp_path).eval()
    assert {n: type(m) for n, m in plain.named_modules()} == {n: type(m) for n, m in base.model.named_modules()}
    case.model.load_state_dict(plain.state_dict())
    close(case(), adapted)


def test_modules_to_train():
    model = tiny("llama").model
    apply_svfit(model, modules_to_train=["lm_head", "layers.1.input_layernorm", "model.norm.weight"])
    trained = {n for n, p in model.named_parameters() if p.requires_grad and not n.endswith("sigma")}
    assert trained == {"lm_head.weight", "model.layers.1.input_layernorm.weight", "model.norm.weight"}


def test_fit_leaves_the_spectrum_alone_but_for_the_gradient():
    """No weight decay: without a gradient, sigma stays."""
    model = nn.Sequential()
    model.add_module("q_proj", linear(4, 4))
    apply_svfit(model, rank=4)
    before = svfit_state_dict(model)["q_proj.sigma"]
    config = FitConfig(lr=0.1, weight_decay=10.0, batch_size=2)
    fit(model, [normal(4)] * 4, steps=3, loss=lambda model, batch: 0.0 * model(batch).sum(), config=config)
    close(svfit_state_dict(model)["q_proj.sigma"], before, 0)


def test_a_layer_in_two_places_stays_one():
    shared = linear(4, 4)
    model = nn.ModuleDict({"a": nn.ModuleDict({"q_proj": shared}), "b": nn.ModuleDict({"q_proj": shared})})
    assert apply_svfit(model, rank=9) == ["a.q_proj"]
    assert model["a"]["q_proj"] is model["b"]["q_proj"]
    assert model["a"]["q_proj"].rank == 4
    merge_svfit(model)
    assert model["a"]["q_proj"] is model["b"]["q_proj"]


def test_attention_of_torch_itself():
    """It reads the weight of its output projection instead of calling it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = normal(1, 3, 8)
    before = attention(x, x, x)[0]
    apply_svfit(attention, ["out_proj"])
    close(attention(x, x, x)[0], before)
    attention(x, x, x)[0].square().sum().backward()
    assert bool((attention.out_proj.sigma.grad != 0).any())


def test_a_second_call_adds_to_the_first():
    model = tiny("llama").model
    apply_svfit(model, ["q_proj"], rank=2)
    assert apply_svfit(model, ["v_proj"], rank=3) == [
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 2 + 2 * 3
    with pytest.raises(ValueError, match="already"):
        apply_svfit(model, ["q_proj"])


def test_bad_models_are_left_as_they_were():
    case = tiny("llama")
    parameters = dict(case.model.named_parameters())
    for options, message in (
        ({"target_modules": ["query"]}, "q_proj"),
        ({"target_modules": "q_proj"}, "list of names"),
        ({"rank": 0}, "rank=0"),
        ({"energy": 2.0}, "energy=2.0"),
        ({"modules_to_train": ["head"]}, "'head'"),
        ({"target_modules": []}, "names no linear layer"),
    ):
        with pytest.raises(ValueError, match=message):
            apply_svfit(case.model, **options)
    assert dict(case.model.named_parameters()) == parameters
    assert all(p.requires_grad for p in parameters.values())
    with pytest.raises(ValueError, match="no SVFit layer"):
        merge_svfit(case.model)


def test_a_tied_weight_is_refused():
    model = tiny("gpt2").model
    with pytest.raises(ValueError, match=r"lm_head shares its weight with transformer\.wte"):
        apply_svfit(model, ["lm_head"])


# What is saved --------------------------------------------------------------------------------------------------------


def test_factors_are_saved_where_directions_are_ambiguous():
    """Of equal singular values the SVD may turn the directions: then sigma alone says little."""
    model = nn.ModuleDict({"q_proj": nn.Linear(4, 4)})
    with torch.no_grad():
        model["q_proj"].weight.copy_(torch.eye(4))
    apply_svfit(model, rank=2)
    turn = torch.linalg.qr(normal(4, 4))[0]
    with torch.no_grad():
        layer = model["q_proj"]
        layer.u.copy_(turn[:, :2])
        layer.vh.copy_(turn[:, :2].mT)
        layer.residual.copy_(torch.eye(4) - layer.u @ layer.vh)
        layer.sigma.copy_(torch.tensor([3.0, 0.5]))
    expected, saved = layer.merged_weight(), svfit_state_dict(model, deterministic_factors=True)
    assert set(saved) == {f"q_proj.{part}" for part in ("sigma", "u", "vh", "residual")}
    other = nn.ModuleDict({"q_proj": nn.Linear(4, 4)})
    apply_svfit(other, rank=2)
    load_svfit_state_dict(other, saved)
    close(other["q_proj"].merged_weight(), expected)


def test_saved_states_that_do_not_fit():
    model = tiny("llama").model
    apply_svfit(model, rank=2)
    saved = svfit_state_dict(model)
    first = next(iter(saved))
    for bad, message in (
        ({}, "lacks"),
        ({**saved, "x.sigma": torch.ones(2)}, "unknown x"),
        ({**saved, first: torch.ones(3)}, "shape"),
        ({**saved, first: torch.full((2,), torch.nan)}, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            load_svfit_state_dict(model, {name: value + 1 for name, value in bad.items()})
    for name, value in svfit_state_dict(model).items():
        close(value, saved[name], 0)
    with pytest.raises(ValueError, match="empty"):
        load_svfit_state_dict(nn.Linear(2, 2), {})


def test_budget():
    assert parameter_budget(768, 768, svfit_rank=768, lora_rank=8) == {"svfit": 768, "lora": 12288}
    assert parameter_budget(4, 6, svfit_rank=2, lora_rank=1) == {"svfit": 2, "lora": 10}
    for bad in ({"svfit_rank": 5}, {"lora_rank": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            parameter_budget(4, 6, **{"svfit_rank": 1, "lora_rank": 1, **bad})
