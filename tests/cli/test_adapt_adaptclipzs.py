"""`foveal adapt adaptclipzs` on a tiny random CLIP and plain colours."""

import json

import numpy as np
import pytest
from test_docs_commands import foveal_arguments

from .adapting import call, coloured, csv_of

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30)}


def run(capsys, *arguments):
    return call(capsys, "adaptclipzs", *arguments)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    train, test = {}, {}
    for label, colour in COLOURS.items():
        for i in range(4):
            coloured(colour, 32, rng).save(tmp_path / f"{label}{i}.png")
            if i == 3:
                test[f"{label}{i}.png"] = label
            elif label != "green":
                train[f"{label}{i}.png"] = label
    (tmp_path / "train.csv").write_text(csv_of(train))
    (tmp_path / "test.csv").write_text(csv_of(test))
    bags = {label: [f"a photo of {label}", f"{label} all over"] for label in COLOURS}
    (tmp_path / "captions.json").write_text(json.dumps(bags))
    return tmp_path


def usual(clip, files):
    return ["--model", clip, "--train", files / "train.csv", "--captions", files / "captions.json", "-o", files / "out"]


def test_tunes_tells_and_saves(clip, files, capsys):
    learn = ["--epochs", 12, "--main-lr", 3e-3, "--proj-lr", 3e-3, "--test", files / "test.csv"]
    code, text, _ = run(capsys, *usual(clip, files), *learn)
    assert code == 0
    assert "6 pictures of 2 classes" in text
    report = json.loads((files / "out" / "report.json").read_text())
    assert report["base classes"] == ["blue", "red"]
    assert report["classes"] == list(COLOURS)
    assert report["losses"][-1] < report["losses"][0]
    assert set(report["before"]) == set(report["after"]) == {"base", "novel", "harmonic mean"}
    code, text, _ = run(capsys, *usual(files / "out" / "model", files), "--epochs", 1, "--shots", 2, "--json")
    assert code == 0
    again = json.loads(text)
    assert again["pictures"] == 4
    assert again["before"] is None


def test_the_command_of_the_docs_runs(clip, files, capsys, monkeypatch):
    printed = [arguments for arguments in foveal_arguments() if arguments[:2] == ("adapt", "adaptclipzs")]
    assert printed
    monkeypatch.chdir(files)
    for _, _, *arguments in printed:
        arguments[arguments.index("--model") + 1] = str(clip)
        code, text, error = run(capsys, *arguments, "--epochs", 1)
        assert code == 0, error
        assert "wrote" in text
    assert sorted(path.name for path in (files / "tuned").iterdir()) == ["model", "report.json"]


def test_the_test_is_among_the_classes_named(clip, files, capsys):
    (files / "classes.txt").write_text("red\ngreen\n")
    code, _, error = run(
        capsys, *usual(clip, files), "--classes", files / "classes.txt", "--test", files / "test.csv", "--epochs", 1
    )
    assert (code, error.count("\n")) == (2, 1)
    assert "line 3: label 'blue'" in error


def test_a_broken_picture_is_named_and_skipped(clip, files, capsys):
    (files / "red0.png").write_bytes(b"\x89PNG and no more")
    code, text, error = run(capsys, *usual(clip, files), "--epochs", 1)
    assert code == 1
    assert "5 pictures" in text
    assert "red0.png" in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("train.csv", "image,label\nred0.png,rouge\n"), "line 2: label 'rouge'"),
        (("train.csv", "red0.png,red\n"), "'image,label'"),
        (("train.csv", "image,label\n"), "'image,label'"),
        (("captions.json", "{"), "no JSON"),
        (("captions.json", '{"red": ["red"]}'), "at least two classes"),
        (("captions.json", '{"red": ["red"], "blue": []}'), "class 'blue'"),
        (("classes.txt", "red\nred\n"), "1 different names in 2 lines"),
        (("classes.txt", "red\nmauve\n"), "'mauve'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(change, message, clip, files, capsys):
    name, content = change
    (files / name).write_text(content)
    more = ["--classes", files / "classes.txt"] if name == "classes.txt" else []
    code, _, error = run(capsys, *usual(clip, files), *more)
    assert (code, error.count("\n")) == (2, 1)
    assert message in error
    assert not (files / "out").exists()


def test_a_model_that_is_no_clip_is_refused(files, capsys):
    code, _, error = run(capsys, *usual("nano-llava", files))
    assert code == 2
    assert "nano-llava" in error
