"""`fit`: learning, exact resume, accumulation, kinds of data, frozen parts, bad input."""

import json
import os
import pathlib
import signal
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from foveal.train import CheckpointError, FitConfig, fit

from .tiny import SETTINGS, data, initialise, model, squared_error, weights

SCRIPT = pathlib.Path(__file__).with_name("tiny.py")


@dataclass
class Log:
    seed: int = 0
    rows: list = field(default_factory=list)

    def record(self, name, value, step):
        self.rows.append((name, value, step))


def run(steps=20, net=None, rows=None, loss=squared_error, on=None, out=None, **settings):
    net = net or model()
    rows = data() if rows is None else rows
    config = FitConfig(**{**SETTINGS, **settings})
    return fit(net, rows, steps=steps, loss=loss, config=config, on=on, out=out), net


def test_it_learns_and_reports(capsys):
    report, net = run(steps=120, net=model(dropout=0.0), progress=True)
    assert report.losses[-1] < 0.05 * report.losses[0]
    assert report.steps == len(report.losses) == 120
    assert (
        report.flops == 120 * 2 * 8 * (4 * 16 + 16) * 2 + 120 * 2 * 8 * 16
    )  # forward, weight gradients, one input gradient
    assert report.samples_per_second == pytest.approx(120 * 8 / report.seconds)
    assert not net.training
    assert not any(p.grad is not None for p in net.parameters())
    assert capsys.readouterr() == ("", "")


def test_killed_with_signal_9_and_resumed(tmp_path):
    whole, net = run()
    killed = subprocess.run([sys.executable, SCRIPT, tmp_path, "20", "13"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    report, resumed = run(out=tmp_path)
    assert report.resumed_from == 10
    assert report.losses == whole.losses
    assert weights(resumed) == weights(net)
    assert report.flops == whole.flops
    again, finished = run(out=tmp_path)  # nothing left to do
    assert (again.losses, again.resumed_from, weights(finished)) == (whole.losses, 20, weights(net))


def test_ctrl_c_saves_between_two_steps(tmp_path):
    whole, net = run()
    count = []

    def interrupt(net):
        count.append(1)
        if len(count) == 7:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(out=tmp_path, save_every=0, after_step=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000008"]  # the request is answered after a step
    report, resumed = run(out=tmp_path, save_every=0)
    assert (report.resumed_from, report.losses, weights(resumed)) == (8, whole.losses, weights(net))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_last_step_is_not_lost(tmp_path, number):
    ended = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with pytest.raises(ended):
        run(steps=1, out=tmp_path, after_step=lambda net: os.kill(os.getpid(), number))
    assert (tmp_path / "step-00000001" / "state.json").exists()


def test_buffers_and_tied_weights_are_resumed(tmp_path):
    def build():
        net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 1))
        net[2].weight = net[0].weight
        return initialise(net)

    whole, net = run(net=build())
    run(net=build(), out=tmp_path)
    (tmp_path / "step-00000020" / "state.json").unlink()
    report, resumed = run(net=build(), out=tmp_path)
    assert (report.resumed_from, report.losses) == (15, whole.losses)
    for left, right in zip(net.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"lr": 0.1}, "lr=0.1"), ({"batch_size": 4}, "batch_size=4"), ({"seed": 3}, "seed=3"), ({"steps": 4}, "steps=4")],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, named):
    run(steps=5, out=tmp_path)
    with pytest.raises(ValueError, match=f"{named}.*step-00000005.*give another out"):
        run(**{"steps": 10, "out": tmp_path, **change})


def test_a_launch_in_another_precision_is_another_run(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run(steps=5, out=tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(ValueError, match=r"mixed_precision='no'.*'bf16'"):
        run(steps=10, out=tmp_path)


def test_a_checkpoint_of_another_model_or_damaged_is_refused_and_changes_nothing(tmp_path):
    run(steps=5, out=tmp_path)
    other = nn.Sequential(nn.Linear(4, 1))
    before = weights(other)
    with pytest.raises(CheckpointError, match=r"does not fit model=Sequential at 3\.bias"):
        run(net=other, out=tmp_path)
    assert weights(other) == before
    with pytest.raises(CheckpointError, match="does not fit model=Sequential"):
        run(net=model().double(), out=tmp_path)
    file = tmp_path / "step-00000005" / "training.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"training\.safetensors"):
        run(out=tmp_path)


def test_a_longer_run_may_go_on(tmp_path):
    run(steps=5, out=tmp_path)
    file = tmp_path / "step-00000005" / "state.json"
    state = json.loads(file.read_text())
    assert 0 < state["seconds"] < 60
    file.write_text(json.dumps({**state, "seconds": 1000.0}))
    report, _ = run(steps=8, out=tmp_path)
    assert (report.steps, report.resumed_from) == (8, 5)
    assert 1000 < report.seconds_in_all < 1060


def test_accumulation_equals_the_big_batch():
    big, net = run(net=model(dropout=0.0))
    for accumulate in (2, 4, 8):
        small, other = run(net=model(dropout=0.0), accumulate=accumulate)
        assert small.losses == pytest.approx(big.losses, abs=1e-5)
        for left, right in zip(net.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(left, right, atol=1e-6, rtol=0)


def test_workers_and_collate_change_nothing():
    plain, _ = run()
    rows = [tuple(row) for row in data()]
    listed, _ = run(rows=rows)
    collated, _ = run(rows=rows, collate=lambda samples: [torch.stack(column) for column in zip(*samples, strict=True)])
    loaded, _ = run(rows=rows, workers=2)
    assert plain.losses == listed.losses == collated.losses == loaded.losses


def test_a_batch_bigger_than_the_data_spans_epochs():
    seen = []

    def spy(net, batch):
        seen.extend(batch[0][:, 0].tolist())
        return squared_error(net, batch)

    run(steps=3, rows=data(3), loss=spy)
    values = sorted(data(3).tensors[0][:, 0].tolist())
    assert len(seen) == 24
    assert all(sorted(seen[first : first + 3]) == values for first in range(0, 24, 3))


class Stream:
    """Ready batches with a position that can be saved."""

    def __init__(self, resumable):
        self.position, self.reads = 0, 0
        if resumable:
            self.state_dict = lambda: {"position": self.position}
            self.load_state_dict = lambda state: setattr(self, "position", state["position"])

    def __iter__(self):
        inputs, targets = data().tensors
        while self.position < 6:
            rows = slice(self.position * 8, self.position * 8 + 8)
            self.position += 1
            self.reads += 1
            yield inputs[rows], targets[rows]
        self.position = 0


@pytest.mark.parametrize("resumable", [False, True])
def test_streams_begin_again_and_resume(tmp_path, resumable):
    whole, net = run(steps=15, rows=Stream(resumable), accumulate=2)
    run(steps=15, rows=Stream(resumable), accumulate=2, out=tmp_path)
    (tmp_path / "step-00000015" / "state.json").unlink()
    stream = Stream(resumable)
    report, resumed = run(steps=15, rows=stream, accumulate=2, out=tmp_path)
    assert (report.resumed_from, report.losses, weights(resumed)) == (10, whole.losses, weights(net))
    assert stream.reads == (10 if resumable else 30)
    assert report.samples_per_second == pytest.approx(5 * 2 * 8 / report.seconds)


def test_an_iterable_data_set_with_a_length_is_a_stream():
    class Ready(torch.utils.data.IterableDataset):
        def __len__(self):
            return 6

        def __iter__(self):
            return iter(Stream(False))

    report, _ = run(steps=8, rows=Ready())
    assert report.losses == run(steps=8, rows=Stream(False))[0].losses


def test_losses_extras_hooks_and_the_seed_of_on():
    class Scored(nn.Linear):
        def forward(self, x, y):
            return {"loss": (super().forward(x) - y).square().mean(), "accuracy": 0.5, "logits": x}

    log = Log(seed=3)
    net = Scored(4, 1)
    report, _ = run(steps=3, net=net, loss=None, on=log, after_step=lambda net: net.bias.fill_(9.0))
    assert net.bias.item() == 9.0
    assert [row for row in log.rows if row[0] == "loss"] == [
        ("loss", value, step) for step, value in enumerate(report.losses)
    ]
    assert [row for row in log.rows if row[0] != "loss"] == [("accuracy", 0.5, step) for step in range(3)]
    assert run(on=Log(seed=3))[0].losses == run(seed=3)[0].losses != run()[0].losses


def test_frozen_parts_stay_still():
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)), nn.Linear(4, 1))
    net[0].requires_grad_(False)
    before = {name: value.clone() for name, value in net[0].state_dict().items()}
    report, _ = run(net=net)
    assert all(torch.equal(value, before[name]) for name, value in net[0].state_dict().items())
    assert report.losses != run(net=nn.Sequential(nn.Linear(4, 1)))[0].losses


def test_mixed_precision_of_one_run_does_not_leak_into_the_next():
    types = []

    def spy(net, batch):
        output = net(batch[0])
        types.append(output.dtype)
        return (output - batch[1]).square().mean()

    run(steps=2, loss=spy, mixed_precision="bf16")
    _, net = run(steps=1, loss=spy)
    assert types == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert net(torch.ones(1, 4)).dtype == torch.float32
    assert "forward" not in vars(net)


def test_another_accelerator_of_the_process_stays_as_it_was():
    from accelerate import Accelerator

    alone = run(steps=2, accumulate=2)[0].losses
    theirs = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3)
    before = dict(vars(theirs.state)), dict(vars(theirs.gradient_state))
    try:
        assert run(steps=2, accumulate=2)[0].losses == alone  # not in their bf16
        assert (vars(theirs.state), vars(theirs.gradient_state)) == before
    finally:
        theirs.state._reset_state()
        theirs.gradient_state._reset_state()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": 2.0}, "steps=2.0"),
        ({"rows": torch.empty(0, 4)}, "empty"),
        ({"rows": {"x": torch.ones(3)}}, "data=dict"),
        ({"rows": data().tensors}, "TensorDataset"),
        ({"loss": nn.Linear(4, 1)}, "part of the model"),
        ({"rows": (batch for batch in ())}, "no .further. batch"),
        ({"rows": [object()] * 8}, "FitConfig.collate"),
        ({"net": nn.Linear(4, 1).requires_grad_(False)}, "no trainable parameter"),
        ({"loss": lambda net, batch: 3.0}, "loss returned float"),
        ({"loss": lambda net, batch: torch.tensor(3.0)}, "depends on trainable"),
        ({"on": Log(seed=-1)}, "on.seed=-1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(**{"steps": 2, **arguments})


def test_result_is_json(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path, "2", "0"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert json.loads(done.stdout)["losses"] == pytest.approx(run(steps=2)[0].losses)
