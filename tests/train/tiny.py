"""A regression of a few dozen numbers that trains in milliseconds; as a script, a training run to be killed."""

import json
import os
import signal
import sys

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from foveal.train import FitConfig, fit

SETTINGS = {"lr": 0.05, "batch_size": 8, "save_every": 5, "progress": False}


def data(samples: int = 50) -> TensorDataset:
    inputs = torch.randn(samples, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def model(dropout: float = 0.2) -> nn.Sequential:
    return initialise(nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 1)))


def initialise(net: nn.Sequential) -> nn.Sequential:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return net


def squared_error(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, targets = batch
    return (net(inputs) - targets).square().mean()


def weights(net: nn.Module) -> list[list[float]]:
    return [parameter.detach().flatten().tolist() for parameter in net.parameters()]


class KillAfter:
    """``after_step`` that ends the process the hard way."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self, net: nn.Module) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def main(out: str, steps: int, die: int) -> None:
    torch.set_num_threads(1)
    hook = KillAfter(die) if die else None
    net = model()
    report = fit(net, data(), steps=steps, loss=squared_error, out=out, config=FitConfig(**SETTINGS, after_step=hook))
    json.dump({"losses": report.losses, "weights": weights(net)}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
