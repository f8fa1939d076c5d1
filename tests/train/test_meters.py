import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from foveal.train import Meter, count_parameters


def test_count_parameters():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    model[1].weight.requires_grad_(False)
    assert count_parameters(model) == 12 + 4 + 12 + 3
    assert count_parameters(model, trainable=True) == 12 + 4 + 3
    tied = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 5, bias=False))
    tied[1].weight = tied[0].weight
    assert count_parameters(tied) == 10


def test_memory():
    """In a fresh process: of one that has run a thousand tests, more pages may leave than enter."""
    code = """
import torch
from foveal.train import Meter
with Meter() as meter:
    block = torch.ones(60_000_000)  # 240 MB
print(meter.peak_memory_bytes)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 200e6 < int(found.stdout) < 400e6


def test_seconds():
    with Meter() as meter:
        time.sleep(0.05)
    assert 0.05 <= meter.seconds < 20
    assert meter.flops == 0


@pytest.mark.parametrize("grad", [False, True])
def test_flops_of_matrix_products_and_attention(grad):
    query = torch.randn(2, 3, 8, 16, generator=torch.Generator().manual_seed(0), requires_grad=grad)
    matrix = torch.ones(16, 5)
    with Meter(flops=True) as meter:
        output = nn.functional.scaled_dot_product_attention(query, query, query) @ matrix
        if grad:
            output.sum().backward()
    attention = 2 * 2 * (2 * 3) * 8 * 8 * 16  # QKᵀ and AV, two operations per multiply-add
    product = 2 * (2 * 3 * 8) * 16 * 5
    # backward: the product's input gradient once; attention's four products and the recomputed QKᵀ
    assert meter.flops == attention + product + (product + attention * 5 // 2 if grad else 0)
