"""Every estimator and adapter of the stage through the promises of its kind; scikit-learn's own checks among them."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_checks

from .contract import ADAPTERS, ESTIMATORS, Adapter, Estimator

torch.set_num_threads(1)
API_CHECKS = (
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
)
"""scikit-learn's checks that feed no data of their own: those would feed plain tables."""


@pytest.fixture(scope="module", params=ESTIMATORS, ids=lambda case: case.name)
def case(request) -> Estimator:
    return request.param


@pytest.fixture(scope="module")
def fitted(case):
    return case.fitted()


def answers(estimator, asked) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(estimator, name)(**asked)) for name in ("predict", "predict_proba")}


def same(left, right) -> bool:
    return all(np.array_equal(left[name], right[name]) for name in left)


# Estimators -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", API_CHECKS)
def test_passes_scikit_learns_check(case, check):
    getattr(estimator_checks, check)(case.name, case.build())


def test_is_a_classifier(case):
    assert is_classifier(case.build())


def test_a_clone_has_the_settings_and_is_not_fitted(case, fitted):
    again, settings = clone(fitted), fitted.get_params(deep=False)
    assert type(again) is type(fitted)
    for name, value in again.get_params(deep=False).items():
        assert value is settings[name] or value == settings[name]
    if case.needs_fit:
        with pytest.raises(NotFittedError):
            again.predict(**case.asked())


def test_asked_before_fit_it_raises_unless_it_needs_none(case, fitted):
    if not case.needs_fit:
        assert same(answers(case.build(), case.asked()), answers(fitted, case.asked()))
        return
    for name in ("predict", "predict_proba"):
        with pytest.raises(NotFittedError, match=type(case.build()).__name__):
            getattr(case.build(), name)(**case.asked())


def test_fit_returns_itself_and_leaves_settings_and_data_alone(case):
    estimator, data = case.build(), case.fit_on(0)
    kept = {name: copy.deepcopy(value) for name, value in data.items() if not isinstance(value, torch.Generator)}
    settings = estimator.get_params(deep=False)
    assert estimator.fit(**data) is estimator
    assert all(value is settings[name] for name, value in estimator.get_params(deep=False).items())
    for name, value in kept.items():
        np.testing.assert_equal(*(x.numpy() if isinstance(x, torch.Tensor) else x for x in (data[name], value)))


def test_learns(case, fitted):
    found, truth = np.asarray(fitted.predict(**case.asked())), np.asarray(case.truth())
    assert (found == truth).mean() > 0.8
    asked = case.asked()
    rows = next(iter(asked))
    rest = {name: value for name, value in asked.items() if name != rows}
    score = fitted.score(asked[rows], case.truth(), **rest)
    assert score == pytest.approx((found == truth).mean())


def test_probabilities_are_finite_and_lead_to_the_prediction(case, fitted):
    found = answers(fitted, case.asked())
    proba = found["predict_proba"]
    assert proba.shape[0] == len(found["predict"])
    assert np.isfinite(proba).all()
    assert (proba >= 0).all()
    pairs = set(zip(proba.argmax(1).tolist(), found["predict"].tolist(), strict=True))
    assert len(pairs) == len({column for column, _ in pairs}) == len({label for _, label in pairs})


def test_a_picture_is_judged_alone(case, fitted):
    asked = case.asked()
    rows = next(iter(asked))
    whole = np.asarray(fitted.predict_proba(**asked))
    alone = [np.asarray(fitted.predict_proba(**asked | {rows: asked[rows][i : i + 1]})) for i in range(3)]
    np.testing.assert_allclose(np.concatenate(alone), whole[:3], atol=1e-5, rtol=1e-4)


def test_same_seed_same_answers_whatever_the_global_generators(case, fitted):
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - to poison it
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    again = case.fitted()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert same(answers(again, case.asked()), answers(fitted, case.asked()))
    if case.draws:
        other = case.fitted(seed=1)
        assert not np.array_equal(
            answers(other, case.asked())["predict_proba"], answers(again, case.asked())["predict_proba"]
        )


def test_a_second_fit_begins_anew(case, fitted):
    twice = case.fitted(estimator=case.fitted(seed=3))
    assert same(answers(twice, case.asked()), answers(fitted, case.asked()))


SETTINGS = [(case, name) for case in ESTIMATORS for name in case.bad_settings]
DATA = [(case, name, value) for case in ESTIMATORS for name, value in case.bad_data]


@pytest.mark.parametrize(("case", "name"), SETTINGS, ids=[f"{case.name}-{name}" for case, name in SETTINGS])
def test_bad_settings_are_named(case, name):
    value = case.bad_settings[name]
    shown = f"{name}={value!r}" if isinstance(value, int | float | str) else name
    with pytest.raises(ValueError, match=shown.replace(".", r"\.")):
        case.build().set_params(**{name: value}).fit(**case.fit_on(0))


@pytest.mark.parametrize(
    ("case", "name", "value"), DATA, ids=[f"{row[0].name}-{row[1]}-{i}" for i, row in enumerate(DATA)]
)
def test_bad_data_are_named(case, name, value):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        case.build().fit(**case.fit_on(0) | {name: value})


# Adapters -------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=ADAPTERS, ids=lambda case: case.name)
def adapter(request) -> Adapter:
    return request.param


def train(adapter: Adapter, model, steps: int = 3) -> None:
    """Plain gradient descent: what moves is what requires a gradient."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sgd = torch.optim.SGD(parameters, adapter.rate)
    for _ in range(steps):
        sgd.zero_grad()
        loss = adapter.run(model).square().mean() if adapter.loss is None else adapter.loss(model)
        loss.backward()
        sgd.step()


def trained(adapter: Adapter):
    model = adapter.attach(adapter.build())
    train(adapter, model)
    return model


def test_a_new_adapter_changes_nothing(adapter):
    plain = adapter.run(adapter.build())
    torch.testing.assert_close(adapter.run(adapter.attach(adapter.build())), plain, atol=1e-5, rtol=1e-4)


def test_only_the_stated_parameters_train(adapter):
    model = adapter.attach(adapter.build())
    stated = {name for name, _ in model.named_parameters() if adapter.trains(name)}
    assert stated
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == stated
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(adapter, model)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == stated


def test_merged_equals_the_adapted_forward_and_is_a_plain_model(adapter):
    model = trained(adapter)
    adapted, plain = adapter.run(model), adapter.build()
    assert (adapted - adapter.run(plain)).abs().max() > 1e-3
    merged = adapter.merge(model)
    torch.testing.assert_close(adapter.run(merged), adapted, atol=1e-5, rtol=1e-4)
    assert type(merged) is type(plain)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert [type(module) for module in merged.modules()] == [type(module) for module in plain.modules()]


def test_what_is_saved_is_the_adapter_and_all_of_it(adapter, tmp_path):
    model = trained(adapter)
    save_file(adapter.state(model), tmp_path / "adapter.safetensors")
    state = load_file(tmp_path / "adapter.safetensors")
    numbers = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert sum(value.numel() for value in state.values()) == numbers
    other = adapter.attach(adapter.build())
    adapter.load(other, state)
    torch.testing.assert_close(adapter.run(other), adapter.run(model), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("adapter", [case for case in ADAPTERS if case.strict], ids=lambda case: case.name)
def test_a_foreign_state_is_refused(adapter):
    model = trained(adapter)
    before = adapter.run(model)
    with pytest.raises(ValueError, match="nobody"):
        adapter.load(model, adapter.state(model) | {"nobody.knows": torch.ones(2)})
    short = adapter.state(model)
    name = next(iter(short))
    with pytest.raises(ValueError, match=name.rpartition(".")[0].split(".")[-1] or name):
        adapter.load(model, {key: value for key, value in short.items() if key != name})
    assert torch.equal(adapter.run(model), before)


ATTACH = [(case, attach, named) for case in ADAPTERS for attach, named in case.bad]


@pytest.mark.parametrize(("adapter", "attach", "named"), ATTACH, ids=[f"{row[0].name}-{row[2]}" for row in ATTACH])
def test_bad_attaching_is_named_and_leaves_the_model_alone(adapter, attach, named):
    model = adapter.build()
    with pytest.raises(ValueError, match=named):
        attach(model)
    assert torch.equal(adapter.run(model), adapter.run(adapter.build()))
    assert all(parameter.requires_grad for parameter in model.parameters())
