"""A killed run goes on where it stopped and gives the same numbers; a finished one asks nothing again."""

import json
import subprocess
import sys
import time

import pytest

from foveal.evaluate.base import Item, Scored, Setting, Task, share
from foveal.evaluate.run import run_task


class Killed(Exception):
    pass


class Counting:
    """Answers with the square of what it reads, and can die on the way."""

    kind = "dual encoder"
    batch_size = 48

    def __init__(self, dies_at=None):
        self.asked, self.dies_at = [], dies_at

    def squares(self, items):
        self.asked += [item.key for item in items]
        if self.dies_at in self.asked:
            raise Killed
        return [{"square": int(item.texts[0]) ** 2 + 0.1} for item in items]


def make(setting):
    return [Item(f"item {i}", (str(i + setting.seed),)) for i in range(setting.n)]


def score(items, outputs):
    hits = [int(output["square"]) % 3 == 0 for output in outputs]
    return Scored([share("thirds", hits)], [{"key": item.key, **output} for item, output in zip(items, outputs)])


TASK = Task(
    "squares", "dual encoder", "n squares", 10, "thirds", make, lambda model, items: model.squares(items), score
)


@pytest.fixture
def opened(clip):
    """The real thing with another model inside."""
    from dataclasses import replace

    return lambda model: replace(clip, model=model)


def test_going_on_after_a_kill(opened, tmp_path):
    whole = run_task(TASK, opened(Counting()), Setting(300), keep=None)
    dying = Counting("item 200")
    with pytest.raises(Killed):
        run_task(TASK, opened(dying), Setting(300), keep=tmp_path)
    going_on = Counting()
    found = run_task(TASK, opened(going_on), Setting(300), keep=tmp_path)
    assert going_on.asked == [f"item {i}" for i in range(192, 300)]  # chunks of 96, a multiple of 48 that is over 64
    assert found.metrics == whole.metrics
    assert found.rows == whole.rows
    assert found.seconds > 0
    done = Counting()
    assert run_task(TASK, opened(done), Setting(300), keep=tmp_path).metrics == whole.metrics
    assert not done.asked
    run_task(TASK, opened(done), Setting(300), keep=tmp_path, fresh=True)
    assert len(done.asked) == 300


def test_a_line_that_was_cut_off_is_dropped(opened, tmp_path):
    whole = run_task(TASK, opened(Counting()), Setting(300), keep=tmp_path)
    path = next(tmp_path.iterdir())
    for cut in (1, 5, 700):
        path.write_bytes(path.read_bytes()[:-cut])
        again = Counting()
        assert run_task(TASK, opened(again), Setting(300), keep=tmp_path).rows == whole.rows
        assert 0 < len(again.asked) < 300
        assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_file_that_fits_no_run_is_refused(opened, tmp_path):
    run_task(TASK, opened(Counting()), Setting(300), keep=tmp_path)
    path = next(tmp_path.iterdir())
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match="--fresh"):
        run_task(TASK, opened(Counting()), Setting(300), keep=tmp_path)


@pytest.mark.parametrize("change", ["seed", "weights", "versions", "truth", "batch size"])
def test_whatever_changes_the_outputs_starts_anew(change, opened, clip, tmp_path):
    from dataclasses import replace

    run_task(TASK, opened(Counting()), Setting(10), keep=tmp_path, versions={"torch": "1"})
    model = Counting()
    task, setting, other, versions = TASK, Setting(10), opened(model), {"torch": "1"}
    if change == "seed":
        setting = Setting(10, seed=1)
    elif change == "weights":
        other = replace(clip, model=model, sha256="another")
    elif change == "versions":
        versions = {"torch": "2"}
    elif change == "truth":
        task = replace(TASK, make=lambda setting: [replace(item, truth={"a": 1}) for item in make(setting)])
    else:
        model.batch_size = 5
    run_task(task, other, setting, keep=tmp_path, versions=versions)
    assert len(model.asked) == 10


def test_progress_and_bad_input(opened, tmp_path):
    from dataclasses import replace

    seen = []
    run_task(TASK, opened(Counting()), Setting(100), keep=None, report=lambda *what: seen.append(what))
    assert seen == [("squares", 0, 0), ("squares", 0, 100), ("squares", 96, 100), ("squares", 100, 100)]
    with pytest.raises(ValueError, match="needs --data"):
        run_task(replace(TASK, needs=("data",)), opened(Counting()), Setting(1), keep=None)
    with pytest.raises(ValueError, match="text-to-image"):
        run_task(replace(TASK, kind="text-to-image"), opened(Counting()), Setting(1), keep=None)


SLOW = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from foveal.evaluate.base import Item, Scored, Setting, Task, share
from foveal.evaluate.run import run_task

def ask(model, items):
    for item in items:
        time.sleep(0.002)
    return [{"length": len(item.key)} for item in items]

def score(items, outputs):
    return Scored([share("even", [output["length"] % 2 == 0 for output in outputs])], outputs)

task = Task("slow", "dual encoder", "", 1, "", lambda s: [Item("x" * (i % 7)) for i in range(s.n)], ask, score)
opened = SimpleNamespace(kind="dual encoder", model=SimpleNamespace(batch_size=8), folder=Path(sys.argv[1]), name="x",
                         sha256="0", dtype="float32", device="cpu", settings={})
found = run_task(task, opened, Setting(2000), keep=Path(sys.argv[1]) / "kept")
print(found.metrics[0].value, found.items)
"""


def test_a_process_that_is_killed_goes_on(tmp_path):
    command = [sys.executable, "-c", SLOW, str(tmp_path)]
    kept = tmp_path / "kept"
    for _ in range(2):
        before = size(kept)
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while size(kept) < before + 3000 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        assert process.communicate()[0] == b""  # it was not done yet
        assert size(kept) > before
    begun = len(next(kept.iterdir()).read_bytes().splitlines())
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    lengths = [i % 7 for i in range(2000)]
    assert done.stdout.split() == [str(sum(length % 2 == 0 for length in lengths) / 2000), "2000"]
    lines = [json.loads(line) for line in next(kept.iterdir()).read_text().splitlines()]
    assert begun < len(lines) == -(-2000 // 64)
    assert [line["start"] for line in lines] == list(range(0, 2000, 64))


def size(folder):
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0
