"""`foveal adapt pcb` on nano-clip, and where its labels come from."""

import io
import json
from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from foveal.cli import _pictures
from foveal.cli._adapt_pcb_labels import Asked, chosen, labels_of_csv

from .adapting import call, csv_of, draw_things

NAMES = ["dog", "door", "owl"]


def test_answers_by_number_name_or_beginning():
    assert [chosen(text, NAMES) for text in ("1", "owl\n", "O", "doo", "do", "", "4", "0", "x")] == [
        *("dog", "owl", "owl", "door"),
        *(None, None, None, None, None),
    ]


def pictures(folder, n=4):
    paths = [folder / f"{i}.png" for i in range(n)]
    for path in paths:
        Image.new("RGB", (8, 8), "red").save(path)
    return [path.name for path in paths], paths


def test_answers_are_kept_at_once_and_never_asked_again(tmp_path, monkeypatch):
    keys, paths = pictures(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("2\nnonsense\nowl\n"))
    with pytest.raises(ValueError, match="run the command again"):
        Asked(tmp_path / "out", NAMES, keys, paths)(torch.tensor([0, 1, 2]))
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == {"0.png": "door", "1.png": "owl"}
    assert (tmp_path / "out" / "to_label.png").is_file()
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n"))
    assert Asked(tmp_path / "out", NAMES, keys, paths)(torch.tensor([0, 1, 2])) == [1, 2, 0]


@pytest.mark.parametrize(
    ("text", "says"),
    [("a,b\n", "image and label"), ("image,label\n0.png,cat\n", "'cat'"), ("image,label\n0.png,dog\n", "1.png")],
)
def test_bad_label_files_are_refused(tmp_path, text, says):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(ValueError, match=says):
        labels_of_csv(tmp_path / "l.csv", NAMES, ["0.png", "1.png"])


# The command ----------------------------------------------------------------------------------------------------------

THINGS = ("dog", "apple", "bus")


@pytest.fixture
def events(monkeypatch):
    """What the bars of the command show, in the order of its happening."""
    seen = []

    @contextmanager
    def progress():
        seen.append("bar")
        yield lambda what, done, total: seen.append((what, done, total))
        seen.append("no bar")

    monkeypatch.setattr(_pictures, "progress", progress)
    return seen


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """Twelve pictures of the world in a folder, one that is none, and who is on them; the working folder."""
    files = [f"more/{i}.png" if i % 2 else f"{i}.png" for i in range(12)]
    rows = draw_things(tmp_path / "pool", files, THINGS, things=(1, 1), sizes=("large",))
    (tmp_path / "pool" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "classes.txt").write_text("\n".join(THINGS))
    (tmp_path / "labels.csv").write_text(csv_of(rows))
    monkeypatch.chdir(tmp_path)
    return rows


def run(capsys, oracle, *more):
    usual = ["--pool", "pool", "--classes", "classes.txt", "--oracle", oracle, "--epochs", 4, "--n-ctx", 2]
    return call(capsys, "pcb", *usual, "--gamma", 0.5, "--rounds", 2, *more)


def test_a_folder_is_learnt_from_a_few_labels(pool, capsys, tmp_path, events):
    code, text, error = run(capsys, "labels.csv", "-o", "out", "--json")
    assert code == 0, error
    report = json.loads(text)
    assert (report["pictures"], sum(report["skipped"].values())) == (12, 1)
    assert [row["labels"] for row in report["rounds"]] == [3, 6]
    assert sum(report["labels"].values()) == 6
    assert report["settings"]["balance"]
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {row["image"] for row in rows} == set(pool)
    bought = [row for row in rows if row["labelled"]]
    assert len(bought) == 6
    assert all(row["class"] == pool[row["image"]] for row in bought)
    assert sum(row["class"] == pool[row["image"]] for row in rows) >= 9
    assert load_file(tmp_path / "out" / "context.safetensors")["ctx"].shape[:2] == (3, 2)
    learning = [event for event in events if event[0] == "learning, rounds"]
    assert learning == [("learning, rounds", 0, 2), ("learning, rounds", 1, 2)]
    assert events.count("bar") == 2  # one for the pictures, one for all rounds

    code, text, _ = run(capsys, "labels.csv", "-o", "out", "--plain", "--method", "entropy", "--epochs", 1, "--json")
    assert code == 0
    settings = json.loads(text)["settings"]
    assert (settings["balance"], settings["method"], settings["epochs"]) == (False, "entropy", 1)


def test_no_bar_while_somebody_is_asked(pool, capsys, tmp_path, events, monkeypatch):
    class Lines(io.StringIO):
        def readline(self, size=-1):
            events.append("asked")
            return super().readline(size)

    monkeypatch.setattr("sys.stdin", Lines("1\n2\n3\n" * 2))
    code, text, error = run(capsys, "ask", "-o", "out")
    assert code == 0, error
    assert len(json.loads((tmp_path / "out" / "labels.json").read_text())) == 6
    happened = [event if isinstance(event, str) else "step" for event in events]
    assert "12 pictures, 3 classes; left out: 1" in text
    rounds = happened[happened.index("no bar") + 1 :]
    assert rounds == ["asked"] * 3 + ["bar", "step", "no bar"] + ["asked"] * 3 + ["bar", "step", "no bar"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["labels.txt"], "oracle='labels.txt'"),
        (["labels.csv", "--rounds", 0], "rounds=0"),
        (["labels.csv", "--gamma", -1], "gamma=-1"),
        (["labels.csv", "--model", "nano-llava"], "nano-llava"),
        (["labels.csv", "--pool", "nowhere"], "nowhere"),
        (["nowhere.csv"], "nowhere.csv"),
    ],
)
def test_bad_input_is_one_line(pool, capsys, tmp_path, arguments, message):
    code, _, error = run(capsys, *arguments, "-o", "out")
    assert (code, error.count("\n")) == (2, 1)
    assert message in error
    assert not (tmp_path / "out").exists()
