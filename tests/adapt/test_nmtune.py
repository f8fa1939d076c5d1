import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from foveal.adapt.nmtune import (
    NMTuneClassifier,
    NMTuneMLP,
    consistency_loss,
    covariance_loss,
    dominant_singular_value_loss,
    flip_labels,
    largest_singular_value_ratio,
    nmtune_loss,
    singular_spectrum,
    singular_value_entropy,
    swap_captions,
)

torch.set_num_threads(1)
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "golden/nmtune.npz").items()}


def golden(case):
    return {name.split("__", 1)[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}__")}


def close(actual, expected, tolerance=1e-5):
    actual, expected = (torch.as_tensor(value).detach().double() for value in (actual, expected))
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= tolerance


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed))


# Analysis -------------------------------------------------------------------------------------------------------------


def test_golden_spectrum():
    ref = golden("spectrum")
    spectrum = singular_spectrum(ref["features"])
    assert spectrum.dtype == torch.float64
    close(spectrum, ref["spectrum"])
    for center in (False, True):
        for normalize in (False, True):
            options, case = {"center": center, "normalize": normalize}, f"c{int(center)}n{int(normalize)}"
            close(singular_value_entropy(ref["features"], **options), ref[f"sve_{case}"])
            close(largest_singular_value_ratio(ref["features"], **options), ref[f"lsvr_{case}"])


@pytest.mark.parametrize("shape", [(30, 7), (7, 30)])
def test_invariances(shape):
    features = normal(*shape).double()
    turn = torch.linalg.qr(normal(shape[1], shape[1], seed=1).double())[0]
    flat = torch.linalg.svd(features, full_matrices=False)
    flat = flat.U @ flat.Vh
    for measure in (singular_value_entropy, largest_singular_value_ratio):
        close(measure(features @ turn), measure(features), 1e-9)
        close(measure(7.0 * features), measure(features), 1e-9)
    assert singular_value_entropy(features) < np.log(min(shape))
    close(singular_value_entropy(flat), np.log(min(shape)), 1e-6)
    close(largest_singular_value_ratio(flat), np.log(min(shape)), 1e-6)


def test_rank_one_is_one_direction():
    features = normal(8, 1) @ normal(1, 5, seed=1)
    close(largest_singular_value_ratio(features), 0.0, 1e-6)
    close(singular_value_entropy(features), 0.0, 1e-5)
    assert singular_value_entropy(torch.diag(torch.tensor([1.0, 0.0]))) == 0.0


def test_noise_raises_both():
    clean = normal(50, 2) @ normal(2, 20, seed=1)
    noisy = clean + normal(50, 20, seed=2)
    assert singular_value_entropy(noisy) > singular_value_entropy(clean)
    assert largest_singular_value_ratio(noisy) > largest_singular_value_ratio(clean)


@pytest.mark.parametrize("bad", [torch.ones(4), torch.ones(2, 2, 2), torch.ones(0, 3), torch.full((2, 2), torch.nan)])
def test_analysis_refuses(bad):
    for measure in (singular_spectrum, singular_value_entropy, largest_singular_value_ratio):
        with pytest.raises(ValueError, match="features"):
            measure(bad)
    with pytest.raises(ValueError, match="no direction"):
        singular_value_entropy(torch.ones(3, 2), center=True)


# Losses ---------------------------------------------------------------------------------------------------------------


def test_golden_losses():
    ref = golden("losses")
    features, z = ref["features"].clone().requires_grad_(), ref["mlp_features"].clone().requires_grad_()
    weights, k = ref["weights"].tolist(), int(ref["k"])
    out = nmtune_loss(ref["logits"], ref["labels"], features, z, weights=weights, k=k)
    for name in ("loss", "ce", "consistency", "covariance", "singular"):
        close(getattr(out, name), ref[name])
    (out.loss - out.ce).backward()
    close(z.grad[:3], ref["grad_z_rows3"])
    assert features.grad is None


def test_what_the_terms_ignore():
    f, z = normal(9, 4), normal(9, 4, seed=1)
    close(consistency_loss(f, 3 * f), 0.0, 1e-12)
    close(consistency_loss(f, z), consistency_loss(5 * f, 2 * z), 1e-6)
    close(consistency_loss(f, -f), 4 / 4)  # the mean over rows and dimensions: ‖2f̂‖² / D
    close(covariance_loss(3 * z), 81 * covariance_loss(z), 1e-3)
    close(covariance_loss(z + 10), covariance_loss(z), 1e-3)
    white = torch.linalg.qr(z - z.mean(0))[0]
    close(covariance_loss(white), 0.0, 1e-9)
    close(dominant_singular_value_loss(3 * z), dominant_singular_value_loss(z))
    close(dominant_singular_value_loss(z, k=4), -1 / 4)
    assert -1 <= float(dominant_singular_value_loss(z)) < 0
    close(dominant_singular_value_loss(torch.ones(5, 3)), -1.0)
    assert float(dominant_singular_value_loss(z + 10)) < float(dominant_singular_value_loss(z))  # not centred


@pytest.mark.parametrize("widths", [(1000.0, 0.01, 0.01, 0.01), (0.001, 1.0)])
def test_covariance_survives_dimensions_of_different_width(widths):
    """The squares of the variances, which it leaves out, are far larger than what it adds up."""
    z = (normal(64, len(widths)) * torch.tensor(widths)).requires_grad_()
    wide = z.detach().double().requires_grad_()
    loss, expected = covariance_loss(z), covariance_loss(wide)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(z.grad.double(), wide.grad, rtol=1e-3, atol=1e-5 * float(wide.grad.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    f, z, logits, labels = normal(8, 5), normal(8, 5, seed=1), normal(8, 3, seed=2), torch.arange(8) % 3
    f, z, logits = (part.to(dtype) for part in (f, z, logits))
    half = z.clone().requires_grad_()
    found = nmtune_loss(logits, labels, f, half)
    found.loss.backward()
    expected = nmtune_loss(logits.float(), labels, f.float(), z.float())
    for part, wanted in zip(found, expected, strict=True):
        assert part.dtype == torch.float32
        close(part, wanted, 1e-6)
    assert half.grad.dtype == dtype
    assert bool(half.grad.isfinite().all())
    close(consistency_loss(0 * f, 0 * z), 0.0, 0)  # rows without a direction
    with torch.autocast("cpu", dtype):
        close(covariance_loss(z), expected.covariance, 1e-6)


def test_labels_of_any_whole_type():
    z, logits, labels = normal(6, 4), normal(6, 3, seed=1), torch.arange(6) % 3
    close(nmtune_loss(logits, labels.int(), z, z).loss, nmtune_loss(logits, labels, z, z).loss, 0)


def test_the_first_term_may_compare_two_views():
    f1, f2, z1, z2 = (normal(4, 3, seed=seed) for seed in range(4))
    logits, labels = normal(8, 2), torch.arange(8) % 2
    out = nmtune_loss(logits, labels, torch.cat([f1, f2]), torch.cat([z1, z2]), consistency_target=(f1, z2))
    close(out.consistency, consistency_loss(f1, z2))
    close(out.covariance, covariance_loss(torch.cat([z1, z2])))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: consistency_loss(normal(3, 4), normal(4, 4)), "features"),
        (lambda: consistency_loss(normal(1, 4), normal(1, 4)), "at least 2"),
        (lambda: covariance_loss(normal(1, 4)), "at least 2"),
        (lambda: covariance_loss(normal(4)), "mlp_features"),
        (lambda: consistency_loss(torch.full((3, 4), torch.nan), normal(3, 4)), "^features holds NaN"),
        (lambda: dominant_singular_value_loss(torch.zeros(3, 4)), "mlp_features are all zero"),
        (lambda: dominant_singular_value_loss(normal(3, 4), k=0), "k=0"),
        (lambda: dominant_singular_value_loss(normal(3, 4), k=4), "k=4"),
        (lambda: nmtune_loss(normal(3, 2), torch.zeros(4).long(), normal(3, 4), normal(3, 4)), "labels"),
        (lambda: nmtune_loss(normal(3, 2), torch.zeros(3), normal(3, 4), normal(3, 4)), "labels torch.float32"),
        (lambda: nmtune_loss(normal(3, 2), torch.zeros(3).long(), normal(3, 5), normal(3, 4)), "features"),
        (
            lambda: nmtune_loss(normal(3, 2), torch.zeros(3).long(), normal(3, 4), normal(3, 4), weights=(1, 1)),
            "weights",
        ),
    ],
)
def test_losses_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Network --------------------------------------------------------------------------------------------------------------


def test_golden_mlp():
    ref = golden("mlp")
    mlp = NMTuneMLP(int(ref["dim"]), ratio=int(ref["ratio"]), layers=int(ref["layers"]), residual=bool(ref["residual"]))
    mlp.load_state_dict({name[2:]: value for name, value in ref.items() if name.startswith("w:")})
    close(mlp.eval()(ref["x"]), ref["expected_eval"])
    close(mlp.train()(ref["x"]), ref["expected_train"])


def test_state_dict_keys():
    keys = set(NMTuneMLP(3, layers=2, residual=False).state_dict())
    assert {f"net.{i}.{part}" for i in (0, 3, 6) for part in ("weight", "bias")} <= keys
    assert "net.4.running_mean" in keys
    assert "scale" not in keys
    mlp = NMTuneMLP(3, res_scale=0.5)
    close(mlp.scale, torch.full((1, 3), 0.5), 0)
    assert mlp.net[0].out_features == 12
    assert NMTuneMLP(5, ratio=1.5)(normal(2, 5)).shape == (2, 5)
    assert NMTuneMLP(5, ratio=1.5).net[0].out_features == 7
    for bad in ({"layers": 0}, {"ratio": 0.5}, {"ratio": torch.nan}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            NMTuneMLP(3, **bad)


# Noise ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "changed"), [(0.0, 0), (0.05, 10), (0.3, 60), (1.0, 200)])
def test_exactly_so_many_labels_flip(ratio, changed):
    labels = torch.arange(200) % 4
    flipped = flip_labels(labels, ratio, 4, rng())
    assert int((flipped != labels).sum()) == changed
    assert bool(((flipped >= 0) & (flipped < 4)).all())
    assert bool((flip_labels(labels, ratio, 4, rng()) == flipped).all())
    if changed == 200:  # to each of the other three alike
        assert torch.bincount((flipped - labels) % 4, minlength=4)[1:].min() > 45


def test_captions_change_places():
    captions = [f"caption {i}" for i in range(20)]
    swapped = swap_captions(captions, 0.3, rng())
    assert sorted(swapped) == sorted(captions)
    assert sum(a != b for a, b in zip(captions, swapped, strict=True)) == 6
    assert swap_captions(captions, 0.05, rng()) == captions
    assert swap_captions(captions, 0.0, rng()) == captions
    assert swap_captions([], 0.5, rng()) == []


def test_noise_refuses():
    labels = torch.zeros(3).long()
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="ratio"):
            flip_labels(labels, ratio, 2, rng())
        with pytest.raises(ValueError, match="ratio"):
            swap_captions(["a"], ratio, rng())
    with pytest.raises(ValueError, match="num_classes=1"):
        flip_labels(labels, 0.5, 1, rng())
    with pytest.raises(ValueError, match="labels"):
        flip_labels(labels + 2, 0.5, 2, rng())


# Estimator ------------------------------------------------------------------------------------------------------------


@parametrize_with_checks(
    [NMTuneClassifier(lr=1e-2, epochs=15), NMTuneClassifier(method="lp", lr=0.1, epochs=15)],
    expected_failed_checks=lambda _: {"check_fit_score_takes_y": "fit's second argument is called labels, not y"},
)
def test_scikit_learn(estimator, check):
    check(estimator)


def blobs(n=90, seed=0):
    labels = torch.arange(n) % 3
    centres = 2 * normal(3, 6, seed=7)
    return centres[labels] + normal(n, 6, seed=seed), labels


@pytest.mark.parametrize("method", ["nmtune", "mlp", "lp"])
def test_it_learns_and_repeats_itself(method):
    (x, y), (x2, y2) = blobs(), blobs(seed=1)
    made = NMTuneClassifier(3, method=method, lr=1e-2, rescale=True)
    state = torch.get_rng_state()
    fitted = made.fit(x, y)
    assert bool((torch.get_rng_state() == state).all())
    assert fitted.score(x2, y2) > 0.9
    found, probabilities, z = fitted.predict(x2), fitted.predict_proba(x2), fitted.transform(x2)
    assert all(isinstance(part, torch.Tensor) for part in (found, probabilities, z))
    assert (probabilities.shape, z.shape, found.dtype) == ((90, 3), (90, 6), torch.int64)
    close(probabilities.sum(1), torch.ones(90))
    again = clone(made).fit(x, y)
    close(again.predict_proba(x2), probabilities, 0)
    other = clone(made).set_params(seed=1).fit(x, y)
    assert float((other.predict_proba(x2) - probabilities).abs().max()) > 0
    close(fitted.predict_proba(x2[:1]), probabilities[:1])  # evaluation does not depend on the batch
    arrays = clone(made).fit(x.numpy(), y.numpy())
    assert isinstance(arrays.predict(x2.numpy()), np.ndarray)
    close(arrays.predict_proba(x2.numpy()), probabilities, 1e-6)


def test_the_parts_of_a_method():
    x, y = blobs()
    plain, same = (NMTuneClassifier(3, method=m, weights=(0, 0, 0), epochs=2).fit(x, y) for m in ("mlp", "nmtune"))
    close(plain.transform(x), same.transform(x), 1e-6)
    linear = NMTuneClassifier(3, method="lp", epochs=1).fit(x, y)
    assert linear.mlp_ is None
    close(linear.transform(x), x, 0)
    strong = NMTuneClassifier(3, weights=(0, 1.0, 0)).fit(x, y)
    assert float(covariance_loss(strong.transform(x))) < 0.8 * float(covariance_loss(plain.transform(x)))


def test_training_is_the_loop_that_it_says():
    """Adam with a cosine schedule on drawn batches of two views; the first term compares view 1 with z of view 2.

    In float64: Adam makes steps of the rounding of gradients that are 0, such as those of a bias before batch norm.
    """
    x, y = blobs(70)
    x, weights, seed = x.double(), (2.0, 0.5, 3.0), 4
    second = x + 0.3 * normal(70, 6, seed=5)
    options = {"epochs": 3, "lr": 2e-3, "weight_decay": 0.1, "batch_size": 32, "k": 2, "ratio": 2}
    made = NMTuneClassifier(3, weights=weights, seed=seed, rescale=True, **options).fit(x, y, second)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mlp, head = NMTuneMLP(6, ratio=2).double().train(), nn.Linear(6, 3, dtype=torch.float64)
    divisor = float(x.std(0).mean()) / 0.3
    adam = torch.optim.AdamW([*mlp.parameters(), *head.parameters()], lr=2e-3, weight_decay=0.1)
    orders, step, last = torch.Generator().manual_seed(seed), 0, 9
    for _ in range(3):
        for batch in torch.randperm(70, generator=orders).split(32):
            for group in adam.param_groups:
                group["lr"] = 1e-3 * (1 + math.cos(math.pi * step / last))
            one, two = x[batch] / divisor, second[batch] / divisor
            both = torch.cat([one, two])
            z = mlp(both)
            terms = (consistency_loss(one, z[len(batch) :]), covariance_loss(z), dominant_singular_value_loss(z, k=2))
            loss = nn.functional.cross_entropy(head(z), y[batch].repeat(2))
            loss = loss + sum(weight * term for weight, term in zip(weights, terms, strict=True))
            adam.zero_grad()
            loss.backward()
            adam.step()
            step += 1
    close(made.predict_proba(x), head(mlp.eval()(x / divisor)).softmax(1), 1e-7)


def test_rescaling_by_one_number():
    x, y = blobs()
    fitted = NMTuneClassifier(3, method="lp", rescale=True, epochs=1).fit(1000 * x, y)
    z = fitted.transform(1000 * x)
    close(z.std(0).mean(), 0.3)
    close(z / x, torch.full_like(x, float(z[0, 0] / x[0, 0])), 1e-3)


def test_two_views_and_a_last_batch_of_one():
    x, y = blobs(65)
    one = NMTuneClassifier(3, epochs=2).fit(x, y)
    two = NMTuneClassifier(3, epochs=2).fit(x, y, x + 0.1 * normal(65, 6, seed=5))
    assert float((one.transform(x) - two.transform(x)).abs().max()) > 1e-4
    batches = [m.num_batches_tracked for m in one.mlp_.modules() if isinstance(m, nn.BatchNorm1d)]
    assert [int(count) for count in batches] == [2]
    assert NMTuneClassifier(3, epochs=1, k=5, batch_size=64).fit(*blobs(66)).predict(x).shape == (65,)


def test_labels_may_lack_a_class():
    x, y = blobs()
    fitted = NMTuneClassifier(5, epochs=1).fit(x, y)
    assert fitted.predict_proba(x).shape == (90, 5)
    assert fitted.classes_.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sgd"}, "method='sgd'"),
        ({"num_classes": 2}, "labels hold 2"),
        ({"num_classes": 1}, "num_classes=1"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 1}, "batch_size=1"),
        ({"lr": 0}, "lr=0"),
        ({"k": 7}, "k=7"),
        ({"weights": (1, 2)}, "weights"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        NMTuneClassifier(**{"num_classes": 3, **options}).fit(*blobs())


def test_bad_data():
    x, y = blobs()
    for bad, message in (
        ((x, y[:-1]), "inconsistent"),
        ((x, y, x[:-1]), "features_second_view"),
        ((torch.full_like(x, torch.nan), y), "^features holds NaN"),
        ((x, y, torch.full_like(x, torch.inf)), "^features_second_view holds NaN"),
        ((x[:1], y[:1]), "minimum of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            NMTuneClassifier(3).fit(*bad)
    with pytest.raises(ValueError, match="same in every row"):
        NMTuneClassifier(3, rescale=True).fit(torch.ones_like(x), y)
    with pytest.raises(ValueError, match="not fitted"):
        NMTuneClassifier(3).predict(x)
