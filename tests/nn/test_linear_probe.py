import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from foveal.nn.linear_probe import LinearProbe, probe_lambda_search


def problem(classes=3, n=60, d=5):
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    centres = torch.randn(classes, d, generator=rng)
    X = 3 + 4 * (centres[y] + torch.randn(n, d, generator=rng))
    return X, torch.tensor([7, -2, 30, 4])[y]


@pytest.mark.parametrize("C", [0.01, 0.316, 10.0])
def test_it_is_the_optimum_of_the_stated_objective(C):
    X, y = problem()
    probe = LinearProbe(C).fit(X, y)
    labels = torch.searchsorted(torch.tensor(probe.classes_), y)
    W, b = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True), torch.zeros(3, dtype=torch.float64)
    b.requires_grad_()
    solver = torch.optim.LBFGS(
        [W, b], max_iter=2000, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def objective():
        solver.zero_grad()
        loss = C * F.cross_entropy(X.double() @ W.T + b, labels, reduction="sum") + W.square().sum() / 2
        loss.backward()
        return loss

    solver.step(objective)
    expected = (X.double() @ W.T + b).softmax(1).detach()
    torch.testing.assert_close(torch.tensor(probe.predict_proba(X)), expected, atol=1e-4, rtol=0)


def test_labels_come_back_and_inputs_may_be_anything():
    X, y = problem()
    probe = LinearProbe()
    assert probe.fit(X.bfloat16(), y) is probe
    assert probe.C == 0.316
    probe.fit(X, y)
    assert probe.classes_.tolist() == [-2, 7, 30]
    proba = probe.predict_proba(X)
    assert np.array_equal(probe.predict(X), probe.classes_[proba.argmax(1)])
    assert probe.score(X, y) == pytest.approx(np.mean(probe.predict(X) == y.numpy()))
    again = LinearProbe().fit(X.numpy(), y.tolist())
    assert np.array_equal(again.predict_proba(X.requires_grad_()), proba)
    assert LinearProbe().fit(*problem(classes=2)).predict_proba(X).shape == (60, 2)


def test_bad_probes():
    X, y = problem()
    for C in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="C="):
            LinearProbe(C)
    with pytest.raises(ValueError, match="max_iter=0"):
        LinearProbe(max_iter=0)
    with pytest.raises(ValueError, match="call fit"):
        LinearProbe().predict(X)
    with pytest.raises(ValueError, match="X holds NaN"):
        LinearProbe().fit(X * math.nan, y)
    with pytest.raises(ValueError, match=r"X \(60,\)"):
        LinearProbe().fit(X[:, 0], y)
    with pytest.raises(ValueError, match="y must be whole numbers"):
        LinearProbe().fit(X, y + 0.5)
    with pytest.raises(ValueError, match="class"):
        LinearProbe().fit(X, torch.zeros_like(y))
    with pytest.raises(ValueError, match="inconsistent"):
        LinearProbe().fit(X, y[:5])


@given(st.floats(-7, 7))
def test_search_finds_a_single_peak(peak):
    tried = []

    def score(lam):
        tried.append(lam)
        return -abs(math.log10(lam) - peak)

    best, scores = probe_lambda_search(score)
    assert abs(best - min(max(peak, -6), 6)) <= 0.0625 + 1e-9
    assert scores[best] == max(scores.values())
    assert len(tried) == len(set(tried)) == len(scores) <= 7 + 8
    assert sorted(scores)[0] == -6
    assert tried[:7] == [10.0**e for e in (-6, -4, -2, 0, 2, 4, 6)]
    assert all((e * 8).is_integer() and -6 <= e <= 6 for e in scores)


def test_ties_go_to_the_smaller_exponent():
    best, scores = probe_lambda_search(lambda lam: 1.0)
    assert best == -6
    assert sorted(scores) == [-6, -5.875, -5.75, -5.5, -5, -4, -2, 0, 2, 4, 6]
    best, _ = probe_lambda_search(lambda lam: float(0.9 < lam < 150))
    assert best == 0
    assert probe_lambda_search(lambda lam: lam, low=-1, high=2, coarse=1, fine=1)[1].keys() == {-1, 0, 1, 2}


@pytest.mark.parametrize(
    ("options", "match"), [({"low": 1, "high": 0}, "low=1"), ({"fine": 0}, "fine=0"), ({"coarse": 0.1}, "coarse=0.1")]
)
def test_bad_search(options, match):
    with pytest.raises(ValueError, match=match):
        probe_lambda_search(lambda lam: 0.0, **options)
    with pytest.raises(ValueError, match=r"score\(1e-6\) is NaN"):
        probe_lambda_search(lambda lam: math.nan)
