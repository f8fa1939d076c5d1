import pytest
from torch import nn

from foveal.nn.modes import evaluating


def test_every_part_goes_back_to_its_mode():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(1, 1)))
    model[1].eval()
    before = [module.training for module in model.modules()]

    def broken_off():
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        broken_off()
    assert [module.training for module in model.modules()] == before
