import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from foveal.nn.ot import cosine_cost, ipot


def problem(batch=2, m=5, n=4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(batch, m, n, generator=rng, dtype=torch.double)


def everything(cost):
    return torch.ones(cost.shape[:2], dtype=torch.bool), torch.ones(cost.shape[0], cost.shape[2], dtype=torch.bool)


def by_loops(cost, beta, iterations, inner):
    """One sample, from the equations."""
    m, n = cost.shape
    sigma, plan, kernel = np.full(m, 1 / m), np.ones((m, n)), np.exp(-cost / beta)
    for _ in range(iterations):
        q = kernel * plan
        for _ in range(inner):
            delta = np.array([1 / (n * sum(q[i, j] * sigma[i] for i in range(m))) for j in range(n)])
            sigma = np.array([1 / (m * sum(q[i, j] * delta[j] for j in range(n))) for i in range(m)])
        plan = sigma[:, None] * q * delta[None]
    return plan


@pytest.mark.parametrize(("beta", "iterations", "inner"), [(0.5, 50, 1), (0.3, 7, 3), (1.0, 1, 1), (0.1, 20, 2)])
def test_against_loops(beta, iterations, inner):
    cost = problem()
    plan = ipot(cost, *everything(cost), beta=beta, iterations=iterations, inner=inner)
    for mine, given in zip(plan, cost, strict=True):
        np.testing.assert_allclose(mine, by_loops(given.numpy(), beta, iterations, inner), atol=1e-10)


def test_marginals():
    cost = problem().float()
    plan = ipot(cost, *everything(cost))
    torch.testing.assert_close(plan.sum((1, 2)), torch.ones(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(plan.sum(2), torch.full((2, 5), 1 / 5), atol=1e-6, rtol=0)
    plan = ipot(cost, *everything(cost), iterations=500)
    torch.testing.assert_close(plan.sum(1), torch.full((2, 4), 1 / 4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("beta", [0.02, 1e-3, 1e-5])
@pytest.mark.parametrize(("m", "n"), [(1, 6), (5, 4), (12, 36)])
def test_marginals_with_a_small_beta(m, n, beta):
    """Its logarithms are large, and so is their rounding; the second sample is padded."""
    cost = 2 * problem(2, m + 1, n).float()
    x_mask, y_mask = torch.arange(m + 1) < torch.tensor([[m + 1], [m]]), torch.ones(2, n, dtype=torch.bool)
    plan = ipot(cost, x_mask, y_mask, beta=beta).double()
    torch.testing.assert_close(plan.sum(2), x_mask / x_mask.sum(1, keepdim=True).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(plan.sum((1, 2)), torch.ones(2, dtype=torch.double), atol=1e-6, rtol=0)


def test_many_rounds_reach_the_exact_optimum():
    """With as many things as places an optimal plan is an assignment, each pair with mass 1/n."""
    cost = problem(3, 6, 6)
    plan = ipot(cost, *everything(cost), beta=0.1, iterations=3000)
    for mine, given in zip(plan, cost, strict=True):
        best = given.numpy()[linear_sum_assignment(given.numpy())].mean()
        assert float((mine * given).sum()) == pytest.approx(best, abs=1e-4)


def test_exact_distance_of_the_pot_library():
    ot = pytest.importorskip("ot", reason="in foveal[peers]")
    cost = problem(3, 7, 4)
    plan = ipot(cost, *everything(cost), beta=0.1, iterations=3000)
    for mine, given in zip(plan, cost, strict=True):
        best = ot.emd2(np.full(7, 1 / 7), np.full(4, 1 / 4), given.numpy())
        assert float((mine * given).sum()) == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("content", [0.0, 5.0, float("nan"), float("inf")])
def test_padding_may_hold_anything(content):
    cost = problem()
    padded = torch.full((2, 7, 6), content, dtype=torch.double)
    padded[:, :5, :4] = cost
    x_mask, y_mask = torch.arange(7).expand(2, 7) < 5, torch.arange(6).expand(2, 6) < 4
    plan = ipot(padded, x_mask, y_mask)
    torch.testing.assert_close(plan[:, :5, :4], ipot(cost, *everything(cost)))
    assert not plan[:, 5:].any()
    assert not plan[:, :, 4:].any()


@pytest.mark.parametrize("beta", [0.5, 0.01, 1e-4])
def test_small_beta_stays_finite_and_matches_equal_sets(beta):
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    cost = cosine_cost(x, x)
    plan = ipot(cost, *everything(cost), beta=beta)
    assert plan.isfinite().all()
    torch.testing.assert_close(plan.sum(2), torch.full((2, 6), 1 / 6), atol=1e-5, rtol=0)
    if beta < 0.1:
        assert (plan * cost).sum((1, 2)).max() < 1e-4


def test_half_precision_and_no_gradient():
    cost = problem().bfloat16().requires_grad_()
    plan = ipot(cost, *everything(cost))
    assert plan.dtype == torch.float32
    assert not plan.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = cosine_cost(torch.randn(1, 2, 4), torch.randn(1, 3, 4))
    assert again.dtype == torch.float32


def test_cosine_cost():
    x = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])
    y = torch.tensor([[[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]])
    torch.testing.assert_close(cosine_cost(x, y), torch.tensor([[[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]]]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"cost": torch.ones(2, 5)}, r"cost \(2, 5\)"),
        ({"x_mask": torch.ones(2, 4, dtype=torch.bool)}, r"x_mask \(2, 4\)"),
        ({"y_mask": torch.ones(1, 4, dtype=torch.bool)}, r"y_mask \(1, 4\)"),
        ({"x_mask": torch.zeros(2, 5, dtype=torch.bool)}, "x_mask has a row"),
        ({"y_mask": torch.zeros(2, 4, dtype=torch.bool)}, "y_mask has a row"),
        ({"cost": torch.full((2, 5, 4), float("nan"))}, "cost holds NaN"),
        ({"beta": 0.0}, "beta=0.0"),
        ({"beta": float("nan")}, "beta=nan"),
        ({"iterations": 0}, "iterations=0"),
        ({"inner": 0}, "inner=0"),
    ],
)
def test_bad_input(change, match):
    cost = problem()
    x_mask, y_mask = everything(cost)
    given = {"cost": cost, "x_mask": x_mask, "y_mask": y_mask, **change}
    with pytest.raises(ValueError, match=match):
        ipot(**given)


def test_bad_costs():
    with pytest.raises(ValueError, match=r"x \(2, 3, 4\) and y \(2, 3, 5\)"):
        cosine_cost(torch.ones(2, 3, 4), torch.ones(2, 3, 5))
