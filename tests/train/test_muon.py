import pytest
import torch
from torch import nn

from foveal.train import FitConfig, fit
from foveal.train.muon import LIKE_ADAMW, muon, orthogonalised
from foveal.train.optim import adamw

from .test_optim import Parts, names
from .tiny import SETTINGS, data, model, squared_error, weights


@pytest.mark.parametrize("shape", [(2, 5, 5), (3, 4, 9), (1, 9, 4)])
def test_singular_values_go_to_one_and_singular_vectors_stay(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    found = u.mT @ orthogonalised(matrices) @ v.mT
    diagonal = found.diagonal(dim1=1, dim2=2)
    assert ((diagonal > 0.6) & (diagonal < 1.25)).all()
    torch.testing.assert_close(found, torch.diag_embed(diagonal), atol=1e-6, rtol=0)


def test_which_parameters_take_orthogonal_steps():
    net = Parts()
    groups = {
        (bool(group["orthogonal"]), group["weight_decay"]): names(net, group)
        for group in muon(net, 0.1, (0.9, 0.98), 0.5).param_groups
    }
    assert groups == {
        (True, 0.5): {"hidden.weight"},
        (False, 0.5): {"words.weight"},  # a tied embedding table is a table
        (False, 0.0): {"hidden.bias", "norm.weight", "norm.bias", "scale"},
    }


def test_a_step_is_as_long_as_adamw_would_make_it_and_the_rest_is_adamw():
    one, other = nn.Linear(8, 32), nn.Linear(8, 32)
    other.load_state_dict(one.state_dict())
    before = one.weight.detach().clone()
    optimizers = muon(one, 0.1, (0.9, 0.98), 0.5), adamw(other, 0.1, (0.9, 0.98), 0.5)
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(32, 8, generator=generator), torch.randn(32, generator=generator)
    for net, optimizer in zip((one, other), optimizers, strict=True):
        net.weight.grad, net.bias.grad = (gradient.clone() for gradient in gradients)
        optimizer.step()
    torch.testing.assert_close(one.bias, other.bias)
    step = (one.weight.detach() - before * (1 - 0.1 * 0.5)) / -0.1
    torch.testing.assert_close(step, LIKE_ADAMW * 32**0.5 * orthogonalised(gradients[0][None])[0])
    assert 0.1 < step.square().mean().sqrt() < 0.3


def test_resumed_to_the_last_bit(tmp_path):
    config = FitConfig(**SETTINGS, optimizer="muon")
    whole, parts = model(), model()
    fit(whole, data(), steps=20, loss=squared_error, config=config, out=tmp_path / "whole")
    fit(parts, data(), steps=20, loss=squared_error, config=config, out=tmp_path / "parts")
    for folder in sorted((tmp_path / "parts").glob("step-*"))[1:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    again = model()
    report = fit(again, data(), steps=20, loss=squared_error, config=config, out=tmp_path / "parts")
    assert 0 < report.resumed_from < 20
    assert weights(again) == weights(whole)
    with pytest.raises(ValueError, match="optimizer='adamw'"):
        fit(model(), data(), steps=20, loss=squared_error, config=FitConfig(**SETTINGS), out=tmp_path / "whole")


def test_convolutions_are_matrices_and_patch_embeddings_are_not():
    net = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 2, 1)).double()
    optimizer = muon(net, 0.1, (0.9, 0.98), 0.0)
    orthogonal = next(group for group in optimizer.param_groups if group["orthogonal"])
    assert names(net, orthogonal) == {"1.weight", "2.weight"}
    before = net[1].weight.detach().clone()
    net(torch.randn(2, 3, 16, 16, dtype=torch.float64)).square().sum().backward()
    gradient = net[1].weight.grad.clone()
    optimizer.step()
    step = (net[1].weight.detach() - before).flatten(1) / -0.1
    torch.testing.assert_close(step, LIKE_ADAMW * 72**0.5 * orthogonalised(gradient.flatten(1)[None])[0])
