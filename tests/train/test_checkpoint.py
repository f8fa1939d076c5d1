"""Whatever happens while a checkpoint is written, the one before it stays loadable; damaged ones say so."""

import contextlib
import errno
import hashlib
import json
import os
import pickle
import shutil

import pytest
import torch

from foveal.train import CheckpointError, checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint


class Killed(BaseException):
    """Stands for the process ending: nothing after it runs."""


def groups(value):
    return {"model": {"w": torch.full((3,), float(value)), "nan": torch.tensor([float("nan")])}, "training": {}}


def steps_on_disk(out):
    return sorted(folder.name for folder in out.iterdir() if (folder / "state.json").exists())


def test_round_trip_and_keep(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, groups(step), {"note": "é"}, keep=2)
    assert steps_on_disk(tmp_path) == ["step-00000002", "step-00000003"]
    tensors, state = load_checkpoint(latest_checkpoint(tmp_path))
    assert tensors["model"]["w"].tolist() == [3.0] * 3
    assert tensors["training"] == {}
    assert (state["step"], state["note"]) == (3, "é")


def test_order_is_by_number_and_metadata_decides(tmp_path):
    for step in (99_999_999, 100_000_000):
        save_checkpoint(tmp_path, step, groups(step), {}, keep=5)
    assert latest_checkpoint(tmp_path).name == "step-100000000"
    (tmp_path / "step-100000000" / "state.json").unlink()
    assert latest_checkpoint(tmp_path).name == "step-99999999"
    assert latest_checkpoint(tmp_path / "nowhere") is None
    save_checkpoint(tmp_path, 100_000_000, groups(5), {}, keep=5)  # replaces the remains
    assert latest_checkpoint(tmp_path).name == "step-100000000"


@pytest.mark.parametrize(
    "call", ["save_file", "load_file", "_digest", "_flush", "_write_text", "os.fsync", "os.replace"]
)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("after", [False, True])
def test_killed_between_any_two_steps(tmp_path, monkeypatch, call, count, after):
    save_checkpoint(tmp_path, 1, groups(1), {})
    owner, name = (os, call[3:]) if call.startswith("os.") else (checkpoint, call)
    original, left = getattr(owner, name), [count]

    def dying(*args, **kwargs):
        left[0] -= 1
        if left[0]:
            return original(*args, **kwargs)
        if after:
            original(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        with contextlib.suppress(Killed):
            save_checkpoint(tmp_path, 2, groups(2), {})
    tensors, state = load_checkpoint(latest_checkpoint(tmp_path))
    assert tensors["model"]["w"].tolist() == [float(state["step"])] * 3
    checkpoint.remove_leftovers(tmp_path)
    save_checkpoint(tmp_path, 2, groups(2), {})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("call", ["write_text", "fsync", "save_file"])
def test_a_full_disk_gives_one_line_and_leaves_nothing(tmp_path, monkeypatch, call):
    save_checkpoint(tmp_path, 5, groups(1), {})

    def full(*args, **kwargs):
        if call == "save_file":  # what the safetensors library raises
            raise checkpoint.SafetensorError("I/O error: No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, "No space left on device")

    owner, name = {
        "write_text": (checkpoint, "_write_text"),
        "fsync": (os, "fsync"),
        "save_file": (checkpoint, "save_file"),
    }[call]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(OSError, match=r"step-00000006: .*No space left.*resumes from step-00000005") as caught:
            save_checkpoint(tmp_path, 6, groups(2), {})
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_what_was_written_is_read_back(tmp_path, monkeypatch):
    def flipping(tensors, path):
        original({name: tensor + 1 for name, tensor in tensors.items()}, path)

    original = checkpoint.save_file
    monkeypatch.setattr(checkpoint, "save_file", flipping)
    with pytest.raises(OSError, match=r"model.safetensors reads back differently; there is no earlier"):
        save_checkpoint(tmp_path, 1, groups(1), {})
    assert latest_checkpoint(tmp_path) is None


def test_a_failed_purge_does_not_fail_the_run(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, groups(1), {}, keep=1)
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # what ignore_errors=True amounts to
    save_checkpoint(tmp_path, 2, groups(2), {}, keep=1)
    assert steps_on_disk(tmp_path) == ["step-00000002"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [(truncate, "bytes instead of"), (flip, "checksum"), (lambda path: path.unlink(), "No such file")],
)
def test_damage_is_told_in_one_line(tmp_path, harm, reason):
    folder = save_checkpoint(tmp_path, 1, groups(1), {})
    harm(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"model.safetensors: .*{reason}.*delete .*step-00000001") as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"step": 1}', '{"step": null, "files": {}}', '{"step":1,"files":{"m":3}}']
)
def test_broken_metadata(tmp_path, text):
    folder = save_checkpoint(tmp_path, 1, groups(1), {})
    (folder / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        load_checkpoint(folder)


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


def test_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save_checkpoint(tmp_path / "run", 1, groups(1), {})
    bad = pickle.dumps(Payload())
    (folder / "model.safetensors").write_bytes(bad)
    state = json.loads((folder / "state.json").read_text())
    state["files"]["model"] = {"bytes": len(bad), "sha256": hashlib.sha256(bad).hexdigest()}  # a forger fixes these
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_checkpoint(folder)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("stem", ["../escape", "/etc/passwd", "a/b"])
def test_file_names_stay_inside_the_folder(tmp_path, stem):
    folder = save_checkpoint(tmp_path, 1, groups(1), {})
    state = json.loads((folder / "state.json").read_text())
    state["files"] = {stem: state["files"]["model"]}
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="not a file name"):
        load_checkpoint(folder)
