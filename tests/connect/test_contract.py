import pytest
import torch

from .contract import CASES, DIM_LANGUAGE, Case


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


def test_shape_dtype_and_determinism(case):
    connector, features = case.build(0).eval(), case.features(3)
    prompt = connector(features)
    assert prompt.shape == (3, case.prompt_len, DIM_LANGUAGE)
    assert prompt.dtype == torch.float32
    assert prompt.isfinite().all()
    assert torch.equal(prompt, connector(features))


def test_batch_equals_singles(case):
    connector, features = case.build(0).eval(), case.features(4)
    singles = torch.cat([connector(feature[None]) for feature in features])
    torch.testing.assert_close(connector(features), singles)


def test_answers_to_the_image(case):
    connector = case.build(0).eval()
    assert not torch.equal(connector(case.features(3, seed=1)), connector(case.features(3, seed=2)))


def test_state_dict_carries_the_map(case, tmp_path):
    from safetensors.torch import load_file, save_file

    first, second, features = case.build(0).eval(), case.build(1).eval(), case.features(6)
    assert not torch.equal(first(features), second(features))
    save_file(first.state_dict(), tmp_path / "connector.safetensors")
    second.load_state_dict(load_file(tmp_path / "connector.safetensors"))
    assert torch.equal(first(features), second(features))


def test_gradient_reaches_every_parameter_or_there_is_none(case):
    connector, features = case.build(0).eval(), case.features(3).requires_grad_()
    prompt = connector(features)
    if not case.trainable:
        assert not list(connector.parameters())
        assert not prompt.requires_grad
        return
    prompt.square().sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0
    for name, parameter in connector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_bfloat16_module_and_half_precision_features(case):
    features = case.features(3)
    plain = case.build(0).eval()(features)
    half = case.build(0).eval().bfloat16()(features.bfloat16())
    assert half.dtype == torch.bfloat16
    assert half.shape == plain.shape
    if case.trainable:
        torch.testing.assert_close(half.float(), plain, atol=0.05, rtol=0.05)
    assert case.build(0).eval()(features.half()).dtype == torch.float32


def test_bad_shapes_are_named(case):
    connector = case.build(0).eval()
    for shape in case.bad_inputs:
        with pytest.raises(ValueError, match=r"features|weight"):
            connector(torch.zeros(shape))
