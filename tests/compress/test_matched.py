"""Every method at one budget: what is kept is what was asked for, on each class that allows the method."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from foveal.compress.gsearch import LayerwiseKeep
from foveal.compress.matched import Matched, _pyramid, matched_reducers

from .tiny import BY_NAME, KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "compress.md").read_text(encoding="utf-8")
LINE_ENDS = ("llava_next", "llava_onevision")
METHODS = ("PyramidDrop", "FastV", "FoPru", "AIM", "RandomDrop", "AveragePool")


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return kind.model()


@pytest.mark.parametrize("budget", [0.5, 0.75])
def test_the_budget_is_kept(kind, model, budget):
    """Within what whole tokens allow, a line of LLaVA-NeXT's counted as part of its image."""
    inputs = kind.single(model, 3, kind.sizes[0], 5)
    matched = matched_reducers(model, budget)
    assert set(matched.reducers) | set(matched.refused) == set(METHODS)
    for name, reducer in matched.reducers.items():
        with reducer.attached(model), torch.no_grad():
            model(**inputs)
        report = reducer.report()
        kept = sum(report.image_tokens) / len(report.image_tokens) / report.image_tokens_full
        side = report.image_tokens_full**0.5
        slack = 1 / side if name in ("AveragePool", "FoPru") or kind.name in LINE_ENDS else 0.0
        assert budget - 1.5 / report.image_tokens_full - slack < kept < budget + slack + 1e-6, name


def test_the_pages_table_of_classes_and_methods(kind, model):
    matched = matched_reducers(model, 0.6)
    with LayerwiseKeep((1, 1, 1, 0.5, 0.5, 0.5)).attached(model):
        cells = ["yes", *("yes" if name in matched.reducers else "" for name in METHODS)]
    assert f"| `{kind.name}` | {' | '.join(cells)} |".replace("|  ", "| ") in PAGE
    assert f"| `model_type` | schedule | {' | '.join(METHODS)} |" in PAGE
    for reason in matched.refused.values():
        assert "\n" not in reason


def test_the_papers_own_layers_at_the_papers_own_budget():
    for depth, layers in ((32, (8, 16, 24)), (40, (10, 20, 30))):
        reducer = _pyramid(SimpleNamespace(layers=range(depth), multi_axis=False), (1 + 0.5 + 0.25 + 0.125) / 4, 0)
        assert reducer.layers == layers
        assert reducer.ratios == pytest.approx((0.5, 0.25, 0.125))


@pytest.mark.parametrize("depth", [4, 6, 8, 24, 32])
@pytest.mark.parametrize("budget", [0.3, 0.4, 0.5])
def test_pyramids_have_the_mean_that_is_asked_for(depth, budget):
    reducer = _pyramid(SimpleNamespace(layers=range(depth), multi_axis=True), budget, 0)
    ends = [*reducer.layers, depth]
    spent = reducer.layers[0] + sum(r * (b - a) for r, (a, b) in zip(reducer.ratios, pairwise(ends), strict=True))
    assert spent / depth == pytest.approx(budget)
    assert reducer.positions == "original"


def test_what_a_budget_does_not_allow():
    model = BY_NAME["llava"].model()
    low, high = matched_reducers(model, 0.15), matched_reducers(model, 0.95)
    assert "2 of 6 layers whole" in low.refused["FastV"]
    assert "between 0.1667 and 0.7917" in low.refused["PyramidDrop"]
    assert list(high.refused) == ["PyramidDrop"]
    for budget in (0, 1.01, float("nan")):
        with pytest.raises(ValueError, match=f"budget={budget}.*must lie in"):
            matched_reducers(model, budget)
    with pytest.raises(ValueError, match="not supported"):
        matched_reducers(torch.nn.Linear(2, 2), 0.5)
    with LayerwiseKeep([1] * 6).attached(model), pytest.raises(ValueError, match=r"LayerwiseKeep attached.*detach"):
        matched_reducers(model, 0.5)
    assert isinstance(matched_reducers(model, 1.0), Matched)
