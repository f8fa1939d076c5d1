import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
)

from foveal.pretrain.m3i import (
    SPECIAL_CASES,
    M3IObjective,
    boltzmann_log_likelihood,
    ema_update,
    gaussian_entropy,
    gaussian_log_likelihood,
    joint_objective,
    mix_tokens,
    mutual_information,
    random_mix_mask,
    unmix_tokens,
)
from foveal.pretrain.m3i_decoders import from_patches, patch_tokens, places, to_patches, visible_at

from .m3i_inputs import Texts, inputs, objective, vit

torch.set_num_threads(1)
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "golden/m3i.npz").items()}


def golden(case):
    return {name.split("__", 1)[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}__")}


def close(actual, expected, tolerance=1e-5):
    expected = torch.as_tensor(expected)
    torch.testing.assert_close(actual.detach().double(), expected.double(), atol=tolerance, rtol=tolerance)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# Golden ---------------------------------------------------------------------------------------------------------------


def test_golden_boltzmann():
    ref = golden("bz")
    pred, bank = ref["pred"].clone().requires_grad_(), ref["bank"].clone().requires_grad_()
    out = boltzmann_log_likelihood(pred, bank, float(ref["temperature"]), ref["index"])
    close(out, ref["out"])
    close(boltzmann_log_likelihood(pred, bank, float(ref["temperature"])), ref["out"])
    out.mean().backward()
    close(pred.grad, ref["grad_pred"])
    close(bank.grad, ref["grad_bank"])


def test_golden_gaussian():
    ref = golden("ga")
    close(gaussian_log_likelihood(ref["pred"], ref["target"], float(ref["sigma"])), ref["out"])


def test_golden_entropy():
    ref = golden("ent")
    z = ref["z"].clone().requires_grad_()
    out = gaussian_entropy(z, float(ref["eps"]))
    close(out, ref["out"])
    out.backward()
    close(z.grad, ref["grad"])


def test_golden_mixing():
    ref = golden("mix")
    out = mix_tokens(ref["a"], ref["b"], ref["mask"])
    assert torch.equal(out, ref["out"])
    for mine, expected in zip(unmix_tokens(out, ref["mask"], ref["token"]), ("unmix_a", "unmix_b"), strict=True):
        assert torch.equal(mine, ref[expected])


# Likelihoods ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 6), st.floats(0.05, 2), st.integers(0, 100))
def test_boltzmann_against_a_slow_loop(batch, bank, temperature, seed):
    pred, target = normal(batch, 4, seed=seed), normal(bank, 4, seed=seed + 1)
    index = torch.randint(0, bank, (batch,), generator=rng(seed))
    found = boltzmann_log_likelihood(pred, target, temperature, index)
    for i in range(batch):
        cosines = [float(pred[i] @ t / pred[i].norm() / t.norm()) for t in target]
        total = math.log(sum(math.exp(c / temperature) for c in cosines))
        assert float(found[i]) == pytest.approx(cosines[int(index[i])] / temperature - total, abs=1e-9)


def test_gaussian_is_the_density():
    pred, target = normal(3, 4), normal(3, 4, seed=1)
    density = torch.distributions.Normal(pred, 0.7).log_prob(target).sum(1)
    close(gaussian_log_likelihood(pred, target, 0.7), density, 1e-9)
    tokens, other = normal(3, 5, 4), normal(3, 5, 4, seed=1)
    each = torch.distributions.Normal(tokens, 2.0).log_prob(other).sum(2)
    close(gaussian_log_likelihood(tokens, other, 2.0), each.mean(1), 1e-9)
    mask = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    expected = [(each[0, 0] + each[0, 2]) / 2, torch.tensor(0.0), each[2].mean()]
    close(gaussian_log_likelihood(tokens, other, 2.0, mask), torch.stack(expected).double(), 1e-9)
    hidden = torch.where(mask[..., None], tokens, torch.nan)
    close(gaussian_log_likelihood(hidden, other, 2.0, mask), torch.stack(expected).double(), 1e-9)


def test_pixels_as_a_gaussian_are_squared_error():
    """MAE's loss, up to constants."""
    pred, target = normal(2, 3, 5).requires_grad_(), normal(2, 3, 5, seed=1)
    (likelihood,) = torch.autograd.grad(gaussian_log_likelihood(pred, target).mean(), pred)
    (error,) = torch.autograd.grad(F.mse_loss(pred, target), pred)
    close(likelihood, -error * 5 / 2, 1e-9)


def test_entropy_grows_with_the_scale():
    z = normal(50, 3)
    close(gaussian_entropy(3 * z, 1e-12) - gaussian_entropy(z, 1e-12), torch.tensor(3 * math.log(3)), 1e-6)
    covariance = torch.cov(z.T, correction=0) + 1e-4 * torch.eye(3)
    close(gaussian_entropy(z), torch.distributions.MultivariateNormal(torch.zeros(3).double(), covariance).entropy())
    assert gaussian_entropy(torch.ones(1, 3)).isfinite()


def test_entropy_of_fewer_samples_than_dimensions():
    """`eps` alone gives it a volume, however large the other directions are."""
    z = 100 * normal(8, 64).float()
    spread = torch.linalg.svdvals(z.double() - z.double().mean(0))[:7].square() / 8  # the other 57 variances are 0
    expected = (64 * math.log(2 * math.pi * math.e) + (spread + 1e-4).log().sum() + 57 * math.log(1e-4)) / 2
    found = gaussian_entropy(z)
    assert found.dtype == torch.float32
    close(found, expected, 1e-6)
    assert gaussian_entropy(normal(20, 3), 0.0).isfinite()


def test_the_bound():
    pred, target = normal(8, 6), normal(8, 6, seed=1)
    assert mutual_information(pred, target, temperature=0.1) <= math.log(8)
    close(mutual_information(pred, pred, temperature=1e-3), torch.tensor(math.log(8)), 1e-6)
    expected = math.log(8) - F.cross_entropy(F.normalize(pred) @ F.normalize(target).T / 0.1, torch.arange(8))
    close(mutual_information(pred, target, temperature=0.1), expected)
    gaussian = gaussian_entropy(target, 1e-3) + gaussian_log_likelihood(pred, target, 2.0).mean()
    close(mutual_information(pred, target, "gaussian", sigma=2.0, eps=1e-3), gaussian)


def test_joint_objective_divides_by_the_valid():
    terms = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([5.0, math.nan]), "c": torch.tensor([7.0, 7.0])}
    valid = {"b": torch.tensor([True, False]), "c": torch.tensor([False, False])}
    assert float(joint_objective(terms, {"a": 1.0, "b": 0.5, "c": 9.0}, valid)) == -(2.0 + 2.5)
    assert float(joint_objective({"a": torch.zeros(0)}, {"a": 1.0})) == 0


def test_mixing_places_every_token_once():
    a, b = normal(3, 6, 2), normal(3, 6, 2, seed=1)
    mask = random_mix_mask(3, 6, 0.5, rng())
    assert mask.sum(1).tolist() == [3, 3, 3]
    back = unmix_tokens(mix_tokens(a, b, mask), mask, torch.full((2,), 99.0).double())
    assert torch.equal(torch.where(mask[..., None], back[0], back[1]), mix_tokens(a, b, mask))
    assert bool((back[0][~mask] == 99).all() and (back[1][mask] == 99).all())
    assert torch.equal(back[0][mask], a[mask])
    assert torch.equal(back[1][~mask], b[~mask])
    for ratio, count in ((0.0, 0), (1.0, 7), (0.3, 2)):
        assert random_mix_mask(4, 7, ratio, rng()).sum(1).tolist() == [count] * 4
    assert torch.equal(random_mix_mask(4, 7, 0.4, rng(5)), random_mix_mask(4, 7, 0.4, rng(5)))
    assert len({tuple(row) for row in random_mix_mask(50, 8, 0.5, rng()).tolist()}) > 30


def test_ema():
    online, target = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    online.weight.data.fill_(3.0)
    online.running_mean.fill_(5.0)
    online.num_batches_tracked.fill_(7)
    ema_update(target, online, 0.9)
    close(target.weight, torch.full((3,), 1.2))
    close(target.running_mean, torch.full((3,), 5.0))
    assert int(target.num_batches_tracked) == 7
    assert target.weight.grad is None
    with pytest.raises(ValueError, match=r"momentum=1\.1"):
        ema_update(target, online, 1.1)
    with pytest.raises(ValueError, match="differ in parameters"):
        ema_update(nn.Linear(2, 3), nn.Linear(3, 2), 0.5)


# Patches and places ---------------------------------------------------------------------------------------------------


def test_patches_and_back():
    images = normal(2, 3, 8, 12)
    patches = to_patches(images, (2, 3))
    assert torch.equal(patches[1, 4].view(3, 4, 4), images[1, :, 4:8, 4:8])
    assert torch.equal(from_patches(patches, (2, 3), (8, 12)), images)
    with pytest.raises(ValueError, match="multiples of the grid"):
        to_patches(images, (3, 3))


def test_places_of_a_mirrored_crop():
    grid = (2, 2)
    whole = places(grid, torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    centres = [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    close(whole[0], torch.tensor([[*centre, 0.5, 0.5] for centre in centres]))
    mirrored = places(grid, torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    close(mirrored[0, 0], torch.tensor([0.75, 0.25, -0.5, 0.5]))
    visible = torch.tensor([[True, False, False, False]])
    assert visible_at(whole, visible, grid).tolist() == visible.tolist()
    assert visible_at(mirrored, visible, grid).tolist() == [[False, True, False, False]]
    outside = places(grid, torch.tensor([[1.0, 1.0, 2.0, 2.0]]))
    assert not visible_at(outside, torch.ones(1, 4, dtype=torch.bool), grid).any()


def test_mixing_pixels_is_mixing_patch_tokens():
    tiny, mask = vit(), random_mix_mask(2, 16, 0.5, rng())
    a, b = normal(2, 3, 16, 16).float(), normal(2, 3, 16, 16, seed=1).float()
    mixed = from_patches(mix_tokens(to_patches(a, (4, 4)), to_patches(b, (4, 4)), mask), (4, 4), (16, 16))
    embed = tiny.embeddings.patch_embeddings
    close(embed(mixed), mix_tokens(embed(a), embed(b), mask))


@pytest.mark.parametrize("make", ["vit", "dinov2", "convnext", "plain"])
def test_encoders_of_transformers(make):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = {
        "vit": vit,
        "dinov2": lambda: Dinov2Model(Dinov2Config(**sizes, image_size=16, patch_size=4, mlp_ratio=1)),
        "convnext": lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
        "plain": lambda: nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Flatten(2), Transpose()),
    }[make]()
    tokens, grid = patch_tokens(encoder, torch.zeros(2, 3, 16, 16))
    assert grid == ((2, 2) if make == "convnext" else (4, 4))
    assert tokens.shape == (2, grid[0] * grid[1], 16)
    out = M3IObjective(encoder, None, 16, 8)(*[normal(2, 3, 16, 16).float()] * 2, generator=rng())
    assert set(out.terms) == {"intra", "inter"}
    out.loss.backward()


class Transpose(nn.Module):
    def forward(self, x):
        return x.mT


def test_bad_encoders():
    with pytest.raises(ValueError, match="encoder returned"):
        patch_tokens(nn.Flatten(), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="6 tokens, not a square"):
        patch_tokens(nn.Flatten(2), torch.zeros(2, 3, 2, 3).transpose(1, 2).reshape(2, 6, 1, 3))


# Objective ------------------------------------------------------------------------------------------------------------


def batch(rows=4, seed=0):
    view, ids, labels, has_text, has_label = inputs(rows, seed)
    return view, 0.5 * view, ids, labels, has_text, has_label


def test_it_is_the_weighted_sum_of_its_terms():
    weights = {"intra": 0.1, "inter": 0.2, "text": 3.0, "label": 0.7}
    out = objective(weights=weights)(*batch(), rng())
    assert out.terms.keys() == weights.keys()
    close(out.loss, -sum(weights[name] * value for name, value in out.terms.items()))
    again = objective(weights=weights)(*batch(), rng())
    assert torch.equal(again.loss, out.loss)
    assert not torch.equal(objective(weights=weights)(*batch(), rng(1)).loss, out.loss)


def test_terms_against_their_definition():
    """The whole objective once more, step by step, for the images A alone."""
    parts, (view1, view2, ids, labels, has_text, has_label) = objective(), batch()
    out = parts(view1, view2, ids, labels, has_text, has_label, rng())
    generator = rng()
    partner, mask = parts.draw(4, 16, generator)
    assert sorted(partner.tolist()) == [0, 1, 2, 3]
    assert bool((partner != torch.arange(4)).all())
    assert mask.sum(1).tolist() == [8] * 4
    pixels = mask.view(4, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    tokens = parts.norm(parts.encoder(torch.where(pixels, view1, view1[partner])).last_hidden_state[:, 1:])
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(4, 4)
    likelihood = {name: [] for name in out.terms}
    for own, shown in ((torch.arange(4), mask), (partner, ~mask)):
        apart = torch.where(shown[..., None], tokens, parts.mask_token)
        intra, inter = parts.dense(apart, places((4, 4), whole), places((4, 4), whole))
        for name, pred, view in (("intra", intra, view1), ("inter", inter, view2)):
            target = parts.target_encoder(view[own]).last_hidden_state[:, 1:]
            target = F.layer_norm(target, (16,))
            error = (pred - target).square().sum(2) / 2 + 8 * math.log(2 * math.pi)
            likelihood[name].append(torch.stack([-row[~keep].mean() for row, keep in zip(error, shown, strict=True)]))
        vector = F.normalize(parts.pool(apart, shown))
        texts = F.normalize(parts.semantic.text_encoder(ids))
        for row, i in enumerate(own.tolist()):
            if has_text[i]:
                scores = vector[row] @ texts[has_text].T / 0.07
                place = int(has_text[:i].sum())
                likelihood["text"].append((scores.log_softmax(0)[place])[None])
            if has_label[i]:
                scores = vector[row] @ F.normalize(parts.semantic.classes.weight).T / 0.07
                likelihood["label"].append(scores.log_softmax(0)[labels[i]][None])
    for name, values in likelihood.items():
        close(out.terms[name], torch.cat(values).mean(), 1e-4)


def test_no_gradient_and_no_step_of_its_own_for_the_target():
    parts = objective().train()
    assert not parts.target_encoder.training
    before = copy.deepcopy(parts.target_encoder.state_dict())
    parts(*batch(), rng()).loss.backward()
    assert all(p.grad is None for p in parts.target_encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in parts.target_encoder.state_dict().items())
    with torch.no_grad():
        for parameter in parts.encoder.parameters():
            parameter.add_(1.0)
    parts.after_step(0.0)
    for (name, value), online in zip(parts.target_encoder.named_parameters(), parts.encoder.parameters(), strict=True):
        close(value, 0.995 * before[name] + 0.005 * online, 1e-4)
    assert parts.momentum_at(0.5) == pytest.approx(1 - 0.0025)
    assert parts.momentum_at(1.0) == 1
    with pytest.raises(ValueError, match=r"progress=1\.5"):
        parts.after_step(1.5)


def test_visible_places_are_no_dense_targets():
    """Only the places of the partner count: a prediction at a visible place may be anything."""
    parts, given = objective(weights={"intra": 1.0}), batch()
    plain, calls = parts(*given, rng()).loss, []
    forward = parts.dense.forward

    def spoilt(tokens, where, other):
        intra, inter = forward(tokens, where, other)
        visible = (tokens != parts.mask_token).any(2)
        calls.append(visible.sum(1).tolist())
        return torch.where(visible[..., None], intra + 100, intra), inter

    parts.dense.forward = spoilt
    close(parts(*given, rng()).loss, plain)
    assert calls == [[8] * 8]


def test_samples_with_nothing_hidden_do_not_count():
    """View 2 lies in the first patch, which half of the images show; predicting 0 costs the others D/2."""
    parts, (view1, view2, *_) = objective(weights={"inter": 1.0}), batch()
    for parameter in parts.dense.inter.parameters():
        parameter.data.zero_()
    relative = torch.tensor([[0.01, 0.01, 0.02, 0.02]]).expand(4, 4)
    close(parts(view1, view2, generator=rng(), relative=relative).loss, 8 + 8 * math.log(2 * math.pi), 1e-3)


@pytest.mark.parametrize("case", [None, "mae", "data2vec"])
def test_without_a_generator_torch_draws(case):
    parts = objective()
    part = parts if case is None else parts.single(case)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = (part(*batch()).loss for _ in range(2))
        torch.manual_seed(0)
        assert torch.equal(part(*batch()).loss, first)
    assert not torch.equal(first, second)


def test_samples_without_text_and_label():
    parts, (view1, view2, ids, *_) = objective(), batch()
    out = parts(view1, view2, generator=rng())
    assert out.terms["text"].item() == out.terms["label"].item() == 0
    none = torch.zeros(4, dtype=torch.bool)
    empty = parts(view1, view2, ids, None, none, none, rng())
    close(empty.loss, out.loss)
    one = none.clone()
    one[2] = True
    alone = parts(view1, view2, ids, None, one, None, rng())
    assert alone.terms["text"].item() == pytest.approx(0, abs=1e-6)  # its text is the only one in the bank


@pytest.mark.parametrize("kind", [CLIPTextModelWithProjection, CLIPTextModel])
def test_texts_of_transformers(kind):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = CLIPTextConfig(**sizes, vocab_size=20, projection_dim=8, eos_token_id=19, bos_token_id=18, pad_token_id=0)
    texts = kind(config)
    parts, ids = M3IObjective(vit(), texts, 16, 8), torch.tensor([[18, 3, 19], [18, 4, 19]])
    view1, view2 = batch(2)[:2]
    out = parts(view1, view2, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, generator=rng())
    out.loss.backward()
    assert all(p.grad is not None for p in texts.parameters())


def test_training_improves_every_term():
    weights = {"intra": 0.1, "inter": 0.1, "text": 1.0, "label": 1.0}
    parts, given = objective(decoder_layers=1, weights=weights), batch(8)
    optimiser = torch.optim.AdamW([p for p in parts.parameters() if p.requires_grad], 3e-3)
    terms = []
    for step in range(25):
        out = parts(*given, rng(step))
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
        parts.after_step(step / 25)
        terms.append({name: value.item() for name, value in out.terms.items()})
    for name in terms[0]:
        assert np.mean([t[name] for t in terms[-5:]]) > np.mean([t[name] for t in terms[:5]]), name


# Special cases --------------------------------------------------------------------------------------------------------


def test_the_table():
    assert list(SPECIAL_CASES) == ["supervised", "clip", "simclr", "moco", "byol", "simsiam", "mae", "beit", "data2vec"]
    gaussian = {name for name, case in SPECIAL_CASES.items() if case.family == "gaussian"}
    assert gaussian == {"byol", "simsiam", "mae", "data2vec"}
    assert all(case.family in ("boltzmann", "gaussian") for case in SPECIAL_CASES.values())


@pytest.mark.parametrize("case", SPECIAL_CASES)
def test_every_special_case_trains(case):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        single = objective(decoder_layers=1).single(case).train()
    given = batch(6)
    trainable = [p for p in single.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, 3e-3)
    losses = []
    for _ in range(45):  # byol and simsiam chase targets that move first
        out = single(*given, rng())
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
        losses.append(out.loss.item())
    assert list(out.terms) == [case]
    assert losses[-1] < losses[0]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in single.parts.encoder.parameters())
    assert all(p.grad is None for p in single.parts.target_encoder.parameters())


@pytest.mark.parametrize("case", ["mae", "beit", "data2vec"])
def test_masked_cases_of_an_encoder_with_larger_cells(case):
    """Its ``patch_size`` is that of its first layer."""
    convnext = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32))
    view = normal(2, 3, 16, 24).float()
    single = M3IObjective(convnext, None, 16, 8).single(case)
    single(view, view, generator=rng()).loss.backward()
    if case == "mae":
        assert single.to_pixels.out_features == 3 * 8 * 8


def test_special_cases_share_the_parts():
    parts = objective()
    single = parts.single("clip")
    assert single.parts is parts
    view1, view2, ids, _, has_text, _ = batch()
    out = single(view1, view2, ids, None, has_text)
    vector = F.normalize(parts.pool(parts.norm(parts.encoder(view1).last_hidden_state[:, 1:])))[has_text]
    scores = vector @ F.normalize(parts.semantic.text_encoder(ids))[has_text].T / 0.07
    close(out.loss, F.cross_entropy(scores, torch.arange(len(scores))), 1e-4)


def test_bad_special_cases():
    parts = objective()
    with pytest.raises(ValueError, match=r"case='dino'.*supervised, clip"):
        parts.single("dino")
    with pytest.raises(ValueError, match="needs text_encoder"):
        M3IObjective(vit(), None, 16, 8).single("clip")
    with pytest.raises(ValueError, match="needs num_classes"):
        M3IObjective(vit(), Texts(), 16, 8).single("supervised")
    with pytest.raises(ValueError, match="patch_size"):
        M3IObjective(nn.Sequential(nn.Conv2d(3, 16, 4, 4)), None, 16, 8).single("mae")
    view1, view2 = batch()[:2]
    for case, missing in (("clip", "text"), ("supervised", "labels")):
        with pytest.raises(ValueError, match=missing):
            parts.single(case)(view1, view2)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_bad_likelihoods():
    two, three = torch.ones(2, 4), torch.ones(3, 4)
    with pytest.raises(ValueError, match="as many targets"):
        boltzmann_log_likelihood(two, three)
    with pytest.raises(ValueError, match=r"target \(3, 5\)"):
        boltzmann_log_likelihood(two, torch.ones(3, 5))
    with pytest.raises(ValueError, match=r"index \(3,\)"):
        boltzmann_log_likelihood(two, three, index=torch.tensor([0, 1, 2]))
    for index in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match=r"index must be in \[0, 3\)"):
            boltzmann_log_likelihood(two, three, index=torch.tensor(index))
    with pytest.raises(ValueError, match="temperature=0"):
        boltzmann_log_likelihood(two, two, 0.0)
    with pytest.raises(ValueError, match="sigma=0"):
        gaussian_log_likelihood(two, two, 0.0)
    with pytest.raises(ValueError, match=r"target \(3, 4\)"):
        gaussian_log_likelihood(two, three)
    with pytest.raises(ValueError, match="mask"):
        gaussian_log_likelihood(two, two, mask=torch.ones(2, 4, dtype=torch.bool))
    for eps, z in ((0.0, two), (0.0, normal(8, 64)), (-1.0, two), (math.nan, two)):
        with pytest.raises(ValueError, match="eps="):
            gaussian_entropy(z, eps)
    with pytest.raises(ValueError, match=r"z \(4,\)"):
        gaussian_entropy(torch.ones(4))
    with pytest.raises(ValueError, match="family='laplace'"):
        mutual_information(two, two, "laplace")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_likelihoods_of_non_finite_numbers(bad):
    good, spoilt = normal(3, 4), normal(3, 4)
    spoilt[1, 2] = bad
    with pytest.raises(ValueError, match="pred holds NaN"):
        boltzmann_log_likelihood(spoilt, good)
    with pytest.raises(ValueError, match="target holds NaN"):
        boltzmann_log_likelihood(good, spoilt)
    with pytest.raises(ValueError, match="z holds NaN"):
        gaussian_entropy(spoilt)
    with pytest.raises(ValueError, match=r"terms\['b'\] holds NaN"):
        joint_objective({"a": torch.ones(2), "b": torch.tensor([1.0, bad])}, {"a": 1.0, "b": 1.0})


def test_bad_mixing_and_terms():
    tokens, mask = torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"mask \(2, 4\)"):
        mix_tokens(tokens, tokens, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"b \(2, 3, 5\)"):
        mix_tokens(tokens, torch.ones(2, 3, 5), mask)
    with pytest.raises(ValueError, match="mask_token"):
        unmix_tokens(tokens, mask, torch.ones(3))
    for ratio in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="ratio="):
            random_mix_mask(2, 3, ratio, rng())
    one = {"a": torch.ones(2)}
    with pytest.raises(ValueError, match=r"weights has \['b'\]"):
        joint_objective(one, {"b": 1.0})
    with pytest.raises(ValueError, match=r"valid has \['b'\]"):
        joint_objective(one, {"a": 1.0}, {"b": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"valid \(3,\)"):
        joint_objective(one, {"a": 1.0}, {"a": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="terms is empty"):
        joint_objective({}, {})


def test_bad_objectives():
    view1, view2, ids, labels, has_text, _ = batch()
    parts = objective()
    with pytest.raises(ValueError, match="view1 holds NaN"):
        parts(view1.masked_fill(view1 > 2, math.nan), view2, ids, labels, generator=rng())
    with pytest.raises(ValueError, match="view2"):
        parts(view1, view2[:3], generator=rng())
    with pytest.raises(ValueError, match=r"relative \(4, 2\)"):
        parts(view1, view2, generator=rng(), relative=torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 5\)"):
        parts(view1, view2, None, labels + 5, generator=rng())
    for rows in (3, 5):
        with pytest.raises(ValueError, match=rf"labels \({rows},\) must be \(4,\)"):
            parts(view1, view2, None, labels.repeat(2)[:rows], generator=rng())
        with pytest.raises(ValueError, match=f"text has {rows} rows for 4 images"):
            parts(view1, view2, ids.repeat(2, 1)[:rows], generator=rng())
        with pytest.raises(ValueError, match=f"text has {rows} rows for 4 images"):
            parts.single("clip")(view1, view2, ids.repeat(2, 1)[:rows])
    bare = M3IObjective(vit(), None, 16, 8)
    for part in (bare, bare.single("simclr")):
        with pytest.raises(ValueError, match="text given, but text_encoder=None"):
            part(view1, view2, ids, generator=rng())
        with pytest.raises(ValueError, match="labels given, but num_classes=None"):
            part(view1, view2, None, labels, generator=rng())
    with pytest.raises(ValueError, match=r"has_text \(3,\)"):
        parts(view1, view2, ids, None, has_text[:3], generator=rng())
    with pytest.raises(ValueError, match="text_encoder returned"):
        M3IObjective(vit(), Texts(), 16, 9)(view1, view2, ids, generator=rng())
    with pytest.raises(ValueError, match="weights has"):
        objective(weights={"pixels": 1.0})
    with pytest.raises(ValueError, match="weights has"):
        M3IObjective(vit(), None, 16, 8, weights={"text": 1.0})
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="weights="):
            objective(weights={"intra": 1.0, "inter": weight})
    with pytest.raises(ValueError, match="momentum=2"):
        objective(momentum=2.0)
    with pytest.raises(ValueError, match="num_classes=1"):
        M3IObjective(vit(), None, 16, 8, num_classes=1)
