"""Two gloo processes on one machine learn what one learns, and neither waits for a dead partner."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import torch

from foveal.train import FitConfig, StepOrder, fit, latest_checkpoint, load_checkpoint

from .tiny import SETTINGS, data, model, squared_error, weights

SCRIPT = pathlib.Path(__file__).with_name("pair.py")


def launch(out, what, port):
    """What torchrun sets, without its agent, which would hide how each process ends."""
    common = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, SCRIPT, out, what],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    out = tmp_path_factory.mktemp("pair")
    for process in launch(out, "all", 20_000 + os.getpid() % 20_000):
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    return out, [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_equal_one(pair):
    out, results = pair
    net = model(dropout=0.0)
    alone = fit(net, data(), steps=20, loss=squared_error, config=FitConfig(**SETTINGS))
    for result in results:
        assert result["equal"]["losses"] == pytest.approx(alone.losses, abs=1e-6)
        for left, right in zip(result["equal"]["weights"], weights(net), strict=True):
            torch.testing.assert_close(torch.tensor(left), torch.tensor(right), atol=1e-6, rtol=0)
    assert results[0]["equal"]["weights"] == results[1]["equal"]["weights"]
    tensors, state = load_checkpoint(latest_checkpoint(out / "equal"))
    assert (state["step"], state["world"]) == (20, 2)
    assert tensors["training"]["losses"].tolist() == results[0]["equal"]["losses"]


def test_only_the_main_process_records_and_it_records_the_mean(pair):
    _, results = pair
    assert results[1]["equal"]["log"] == []
    assert [row for row in results[0]["equal"]["log"] if row[0] == "rank"] == [
        ["rank", 0.5, step] for step in range(20)
    ]


def test_streams_of_both_processes_are_averaged(pair):
    _, results = pair
    assert results[0]["streams"] == results[1]["streams"]


def test_all_processes_stop_at_the_poisoned_step(pair):
    _, results = pair
    order = StepOrder(50, 8, seed=0)
    step = next(step for step in range(7) if 17 in order.indices(step))
    guilty = next(rank for rank in range(2) if 17 in order.indices(step, rank, 2))
    found, other = results[guilty]["poisoned"], results[1 - guilty]["poisoned"]
    assert found["step"] == other["step"] == step
    assert found["keys"] == order.indices(step, guilty, 2).tolist()
    assert other["keys"] == []
    assert "on another process" in other["text"]
    assert found["weights"] == other["weights"]


def test_no_process_ends_inside_its_group(pair):
    """gloo's threads would still run then, and C++ sometimes aborts a process for it."""
    assert [json.loads((pair[0] / f"end{rank}").read_text()) for rank in range(2)] == [[False, []]] * 2


def test_the_survivor_of_a_killed_process_ends_soon(tmp_path):
    processes = launch(tmp_path, "die", 20_001 + os.getpid() % 20_000)
    processes[1].communicate(timeout=60)
    assert processes[1].returncode == -signal.SIGKILL
    since = time.monotonic()
    _, errors = processes[0].communicate(timeout=30)
    assert processes[0].returncode not in (0, None), errors
    assert time.monotonic() - since < 20
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is None or load_checkpoint(checkpoint)
