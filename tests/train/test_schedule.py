import math

import pytest
import torch

from foveal.train.schedule import lr_factor, scheduler


def test_closed_form():
    rising = [lr_factor(step, 20, 0.2) for step in range(4)]
    assert rising == [0.25, 0.5, 0.75, 1.0]
    assert lr_factor(4, 20, 0.2) == 1.0
    assert lr_factor(12, 20, 0.2) == pytest.approx(0.5)
    assert lr_factor(12, 20, 0.2, "linear") == pytest.approx(0.5)
    assert lr_factor(8, 20, 0.2, "linear") == pytest.approx(0.75)
    assert lr_factor(8, 20, 0.2, "cosine") == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert lr_factor(19, 20, 0.2, "constant") == 1.0
    assert lr_factor(0, 1) == 1.0
    with pytest.raises(ValueError, match="step"):
        lr_factor(9, 10, 0.0, "step")


@pytest.mark.parametrize("start", [0, 1, 3, 7])
def test_scheduler_can_begin_anywhere(start):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = scheduler(optimizer, 10, 0.2, "cosine", start=start)
    for step in range(start, 10):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3 * lr_factor(step, 10, 0.2))
        optimizer.step()
        schedule.step()
