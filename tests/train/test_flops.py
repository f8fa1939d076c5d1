import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foveal.nn.transformer import Transformer
from foveal.train.flops import FlopCounter


def model() -> nn.Module:
    convolution = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Flatten(2), nn.Linear(16, 16))
    return nn.Sequential(convolution, Transformer(16, 2, 2))


@pytest.mark.parametrize("mode", ["train", "no_grad", "inference"])
def test_counts_what_torch_counts(mode):
    net, pixels = model(), torch.randn(2, 3, 16, 16)
    counts = []
    for counter in (FlopCounterMode(display=False), FlopCounter(), FlopCounter()):  # the second of ours from memory
        # torch leaves out the fused attention kernel of CPUs
        with sdpa_kernel(SDPBackend.MATH), torch.inference_mode(mode == "inference"), counter:
            with torch.set_grad_enabled(mode == "train"):
                output = net(pixels)
            if mode == "train":
                output.sum().backward()
        counts.append(counter.total if isinstance(counter, FlopCounter) else counter.get_total_flops())
    assert counts[0] > 0
    assert counts == counts[:1] * 3


def test_counters_inside_each_other():
    matrix = torch.ones(4, 4)
    outer, inner = FlopCounter(), FlopCounter()
    with outer:
        matrix @ matrix
        with inner:
            matrix @ matrix
        with inner, FlopCounter() as innermost:
            matrix @ matrix
    matrix @ matrix
    assert (outer.total, inner.total, innermost.total) == (3 * 128, 2 * 128, 128)


def test_counts_until_an_error_and_not_after_it():
    matrix, counter = torch.ones(4, 4), FlopCounter()
    with pytest.raises(RuntimeError, match="size mismatch"), counter:
        (matrix @ matrix) @ torch.ones(3)
    matrix @ matrix
    assert counter.total == 128


def test_counts_fake_tensors():
    """As reports of compressed models make them, also inside a run that is counted."""
    with FlopCounter() as counter:
        matrix = FakeTensorMode().from_tensor(torch.ones(4, 4))
        matrix @ matrix.to(device=matrix.device)
    assert counter.total == 128
