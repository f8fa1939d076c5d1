"""One of the processes that test_distributed.py starts; says what happened as JSON in ``out/rank<r>.json``."""

import atexit
import json
import os
import pathlib
import sys

import torch
import torch.distributed
from tiny import SETTINGS, KillAfter, data, model, squared_error, weights
from torch import nn
from torch.utils.data import TensorDataset

from foveal.train import FitConfig, NonFiniteLoss, fit

RANK = int(os.environ["RANK"])


class Positions:
    """Every process has its own shard, and its own place in it."""

    def __init__(self):
        self.position = 0

    def state_dict(self):
        return {"rank": RANK, "position": self.position, "long": "x" * (10 * RANK)}

    def load_state_dict(self, state):
        assert state["rank"] == RANK
        self.position = state["position"]

    def __iter__(self):
        inputs, targets = data(64).tensors
        while True:
            rows = torch.arange(4) + (8 * self.position + 4 * RANK) % 64
            self.position += 1
            yield inputs[rows], targets[rows]


class Unused(nn.Module):
    """A model with a part that gets no gradient, used by another name than ``forward``."""

    def __init__(self):
        super().__init__()
        self.net, self.spare = model(dropout=0.0), nn.Linear(1, 1)

    def predict(self, inputs):
        return self.net(inputs)


class Log:
    seed = 0

    def __init__(self):
        self.rows = []

    def record(self, name, value, step):
        self.rows.append([name, value, step])


def equal(out):
    net, log = Unused(), Log()
    losses = fit(
        net,
        data(),
        steps=20,
        loss=lambda m, b: {"loss": (m.predict(b[0]) - b[1]).square().mean(), "rank": RANK},
        config=FitConfig(**SETTINGS, accumulate=2),
        on=log,
        out=out / "equal",
    ).losses
    return {"losses": losses, "weights": weights(net.net), "log": log.rows}


def streams(out):
    whole = model()
    losses = fit(whole, Positions(), steps=6, loss=squared_error, config=FitConfig(**SETTINGS)).losses
    fit(model(), Positions(), steps=5, loss=squared_error, config=constant(), out=out / "stream")
    fresh = model()
    report = fit(fresh, Positions(), steps=6, loss=squared_error, config=constant(), out=out / "stream")
    again = model()
    straight = fit(again, Positions(), steps=6, loss=squared_error, config=constant())
    assert report.resumed_from == 5
    assert (report.losses, weights(fresh)) == (straight.losses, weights(again)), "a resumed stream differs"
    return losses


def constant():
    return FitConfig(**SETTINGS, schedule="constant", warmup=0)


def poisoned():
    inputs, targets = data().tensors
    targets[17] = float("nan")
    net = model()
    try:
        fit(net, TensorDataset(inputs, targets), steps=20, loss=squared_error, config=FitConfig(**SETTINGS))
    except NonFiniteLoss as error:
        return {"step": error.step, "keys": error.keys, "text": str(error), "weights": weights(net)}
    return None


def left():
    """Is there a group, and the names of its threads."""
    tasks = pathlib.Path("/proc/self/task")
    names = [(task / "comm").read_text().strip() for task in tasks.iterdir()] if tasks.exists() else []
    return torch.distributed.is_initialized(), [name for name in names if "gloo" in name]


def main(out, what):
    torch.set_num_threads(1)
    out = pathlib.Path(out)
    atexit.register(lambda: (out / f"end{RANK}").write_text(json.dumps(left())))
    if what == "die":
        hook = KillAfter(3) if RANK == 1 else None
        fit(model(), data(), steps=10_000, loss=squared_error, config=FitConfig(**SETTINGS, after_step=hook), out=out)
    result = {"equal": equal(out), "streams": streams(out), "poisoned": poisoned()}
    (out / f"rank{RANK}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
