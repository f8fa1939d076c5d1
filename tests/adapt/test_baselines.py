import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import (
    check_dict_unchanged,
    check_estimator_repr,
    check_estimators_overwrite_params,
    check_estimators_pickle,
    check_fit_score_takes_y,
    check_get_params_invariance,
    check_mixin_order,
    check_no_attributes_set_in_init,
    check_set_params,
)

from foveal.adapt import baselines
from foveal.adapt.baselines_templates import IMAGENET_TEMPLATES
from foveal.nn.cosine import unit_rows
from foveal.nn.zero_shot import build_zero_shot_classifier

torch.set_num_threads(1)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CLASSES = unit_rows(draw(3, 8))
X = 3 * F.one_hot(torch.arange(30) % 3, 8).float() + draw(30, 8, seed=1)
Y = torch.arange(30) % 3
NEW = draw(5, 8, seed=2)

ALL = [
    baselines.ZeroShot(CLASSES),
    baselines.CLIPAdapter(CLASSES, epochs=20),
    baselines.TipAdapter(CLASSES),
    baselines.TipAdapterF(CLASSES),
    baselines.LinearProbe(3),
]


@pytest.fixture(params=ALL, ids=lambda estimator: type(estimator).__name__)
def estimator(request):
    return clone(request.param)


# What all of them promise ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [
        check_estimator_repr,
        check_get_params_invariance,
        check_mixin_order,
        check_set_params,
        check_no_attributes_set_in_init,
    ],
)
def test_scikit_learn_accepts(estimator, check):
    check(type(estimator).__name__, estimator)


@pytest.mark.parametrize(
    "check",
    [check_dict_unchanged, check_estimators_overwrite_params, check_estimators_pickle, check_fit_score_takes_y],
)
def test_scikit_learn_fits(check):
    """Its checks bring data of a width of their own, for which there are no class features."""
    check("LinearProbe", baselines.LinearProbe(10))


def test_promises_of_a_classifier(estimator):
    assert is_classifier(estimator)
    assert estimator.fit(X, Y) is estimator
    probs = estimator.predict_proba(NEW)
    assert probs.shape == (5, 3)
    torch.testing.assert_close(probs.sum(1), torch.ones(5))
    assert torch.equal(estimator.predict(NEW), probs.argmax(1))
    assert estimator.classes_.tolist() == [0, 1, 2]
    assert estimator.score(X, Y) == pytest.approx((estimator.predict(X) == Y).float().mean().item())
    for answer in (estimator.predict(NEW.numpy()), estimator.predict_proba(NEW.numpy())):
        assert isinstance(answer, np.ndarray)
    np.testing.assert_allclose(estimator.predict_proba(NEW.numpy()), probs.numpy(), rtol=1e-6)
    torch.testing.assert_close(estimator.features(NEW), unit_rows(NEW))
    torch.testing.assert_close(estimator.predict_proba(NEW[:1]), probs[:1], rtol=1e-4, atol=1e-6)  # no batch effects


def test_fits_are_repeatable_and_leave_everything_as_it_was(estimator):
    before = X.clone(), Y.clone(), CLASSES.clone()
    torch.manual_seed(1)
    first = estimator.fit(X, Y).predict_proba(NEW)
    torch.manual_seed(2)
    assert torch.equal(estimator.fit(X, Y).predict_proba(NEW), first)
    copy = clone(estimator)
    assert copy.get_params().keys() == estimator.get_params().keys()
    assert torch.equal(copy.fit(X, Y).predict_proba(NEW), first)
    assert all(map(torch.equal, before, (X, Y, CLASSES)))


def test_a_class_may_have_no_label(estimator):
    some = Y < 2
    probs = estimator.fit(X[some], Y[some]).predict_proba(NEW)
    assert probs.shape == (5, 3)
    assert bool(probs.isfinite().all())


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (X[:, :0], Y, "X"),
        (X[0], Y, "X"),
        (X * torch.nan, Y, "NaN"),
        (X, Y[:-1], "y"),
        (X, Y.float(), "whole numbers"),
        (X, Y + 1, "classes are 0 to 2"),
        (X, Y - 1, "classes are 0 to 2"),
    ],
)
def test_bad_data_is_refused(estimator, x, y, says):
    with pytest.raises(ValueError, match=says):
        estimator.fit(x, y)


def test_other_widths_are_refused(estimator):
    with pytest.raises(ValueError, match="features"):
        estimator.fit(X, Y).predict(NEW[:, :7])


@pytest.mark.parametrize("estimator", ALL[1:], ids=lambda estimator: type(estimator).__name__)
def test_unfitted_ones_say_so(estimator):
    with pytest.raises(NotFittedError, match="fit"):
        clone(estimator).predict(NEW)


def test_grid_search_chooses_alpha_and_beta():
    search = GridSearchCV(baselines.TipAdapter(CLASSES), {"alpha": [0.0, 5.0], "beta": [1.0, 5.5]}, cv=3)
    search.fit(X.numpy(), Y.numpy())
    assert search.best_params_["alpha"] == 5.0
    assert search.best_score_ > baselines.ZeroShot(CLASSES).score(X, Y)


# What each of them computes -------------------------------------------------------------------------------------------


def test_zero_shot_needs_no_fit():
    found = baselines.ZeroShot(CLASSES, scale=10.0).decision_function(NEW)
    torch.testing.assert_close(found, 10 * unit_rows(NEW) @ CLASSES.T)


def test_tip_adapter_is_zero_shot_and_a_cache():
    few, labels = X[:4], Y[:4]
    found = baselines.TipAdapter(CLASSES, alpha=2.0, beta=3.0, scale=10.0).fit(few, labels).decision_function(NEW)
    expected = 10 * unit_rows(NEW) @ CLASSES.T
    for i, row in enumerate(unit_rows(NEW)):
        for key, label in zip(unit_rows(few), labels.tolist(), strict=True):
            expected[i, label] += 2.0 * torch.exp(-3.0 * (1 - row @ key))
    torch.testing.assert_close(found, expected)


def test_tip_adapter_f_starts_at_the_cache_and_lowers_the_loss():
    plain = baselines.TipAdapter(CLASSES).fit(X, Y)
    still = baselines.TipAdapterF(CLASSES, lr=0.0).fit(X, Y)
    torch.testing.assert_close(still.decision_function(NEW), plain.decision_function(NEW))
    trained = baselines.TipAdapterF(CLASSES, lr=0.01, epochs=50).fit(X, Y)
    losses = [F.cross_entropy(model.decision_function(X), Y) for model in (plain, trained)]
    assert losses[1] < losses[0]
    assert (trained.keys_.norm(dim=1) - 1).abs().max() > 1e-3  # keys are free while they are trained


def test_clip_adapter_mixes_before_it_normalises():
    adapter = baselines.CLIPAdapter(CLASSES, ratio=0.3, reduction=2, epochs=1, scale=10.0).fit(X, Y)
    assert adapter.down_.shape == (4, 8)
    assert adapter.up_.shape == (8, 4)
    hidden = (NEW @ adapter.down_.T).clamp(min=0)
    mixed = 0.3 * (hidden @ adapter.up_.T).clamp(min=0) + 0.7 * NEW
    torch.testing.assert_close(adapter.decision_function(NEW), (10 * unit_rows(mixed) @ CLASSES.T).detach())
    nothing = baselines.CLIPAdapter(CLASSES, ratio=0.0, scale=10.0, epochs=1).fit(X, Y)
    torch.testing.assert_close(
        nothing.decision_function(NEW), baselines.ZeroShot(CLASSES, scale=10.0).decision_function(NEW)
    )


def test_clip_adapter_learns():
    shuffled = CLASSES[[1, 2, 0]]
    before = baselines.ZeroShot(shuffled).score(X, Y)
    assert baselines.CLIPAdapter(shuffled, ratio=0.8).fit(X, Y).score(X, Y) > before + 0.2


def test_linear_probe_gives_nothing_to_classes_without_labels():
    some = Y != 1
    probs = baselines.LinearProbe(3).fit(X[some], Y[some]).predict_proba(NEW)
    assert probs[:, 1].abs().max() == 0
    assert bool((probs[:, [0, 2]] > 0).all())


@pytest.mark.parametrize(
    ("estimator", "says"),
    [
        (baselines.TipAdapter(CLASSES, alpha=-1.0), "alpha=-1.0"),
        (baselines.TipAdapter(CLASSES, beta=0.0), "beta=0.0"),
        (baselines.CLIPAdapter(CLASSES, ratio=1.5), "ratio=1.5"),
        (baselines.CLIPAdapter(CLASSES, reduction=9), "reduction=9"),
        (baselines.CLIPAdapter(CLASSES, lr=0.0), "lr=0.0"),
        (baselines.TipAdapterF(CLASSES, epochs=0), "epochs=0"),
        (baselines.TipAdapterF(CLASSES, lr=float("inf")), "lower lr"),
    ],
)
def test_bad_options_are_refused(estimator, says):
    with pytest.raises(ValueError, match=says):
        estimator.fit(X, Y)


# Templates ------------------------------------------------------------------------------------------------------------


def test_templates_are_the_eighty_of_clip():
    assert len(set(IMAGENET_TEMPLATES)) == 80
    digest = hashlib.sha256("\n".join(sorted(IMAGENET_TEMPLATES)).encode()).hexdigest()
    assert digest == "a8a4822f2921936e2ef07cf2e7a5df69be9532aab2f3f4880156bb03563e2467"  # of openai/CLIP's list, sorted


@pytest.mark.parametrize("templates", [baselines.ONE_TEMPLATE, IMAGENET_TEMPLATES])
def test_templates_make_a_zero_shot_classifier(templates):
    seen = []

    def encode(texts):
        seen.extend(texts)
        return torch.tensor([[len(text), text.count("dog"), 1.0] for text in texts])

    features = build_zero_shot_classifier(encode, ["dog", "owl"], templates)
    assert len(seen) == 2 * len(templates)
    assert baselines.ZeroShot(features).predict_proba(draw(4, 3)).shape == (4, 2)
