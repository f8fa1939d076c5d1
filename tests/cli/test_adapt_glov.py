"""`foveal adapt glov` and `foveal adapt llm_bbo`, on nano-clip with a scripted language model."""

import json

import pytest
from PIL import Image

from .adapting import call, csv_of, draw_things

NOUNS = ("dog", "apple", "bus")
FIRST = "a photo of a <category>."
REPLIES = {"glov": ["a picture of a <category>", "no", "two red <category>", "- a drawing of a <category>"],
           "llm_bbo": ["- a picture of a {}", "no", "- two red {}", "- a drawing of the {} itself"]}  # fmt: skip
SIZES = {
    "glov": ["--per-step", 2],
    "llm_bbo": ["--sample-size", 4, "--k", 2, "--iterations", 3, "--resets", 1, "--pool", "pool.txt"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """few.csv of nine pictures, two scripts, a pool; the working folder."""
    labels = draw_things(tmp_path, [f"pictures/{i}.png" for i in range(9)], NOUNS)
    (tmp_path / "few.csv").write_text(csv_of(labels))
    for method, replies in REPLIES.items():
        (tmp_path / f"{method}.json").write_text(json.dumps(replies))
    (tmp_path / "pool.txt").write_text("a {}\nthe {}\n\nmy {}\none {} on grass\n{}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(method, **more):
    given = {"model": "nano-clip", "train": "few.csv", "lm": f"scripted:{method}.json", "budget": 4, **more}
    return [method, *SIZES[method], *(str(part) for name, value in given.items() for part in (f"--{name}", value))]


@pytest.mark.parametrize("method", ["glov", "llm_bbo"])
def test_finds_prompts_and_goes_on(method, folder, capsys):
    code, text, _ = call(capsys, *arguments(method, test="few.csv"))
    assert code == 0
    assert "ensemble" in text
    out = folder / method
    document = json.loads((out / "prompts.json").read_text())
    assert document["language model"]["replies"] == 4
    prompts = [entry["prompt"] for entry in document["history"]]
    assert prompts.index(
        "a picture of a <category>".replace("<category>", "{}" if method == "llm_bbo" else "<category>")
    )
    assert document["best"]["accuracy"] == max(entry["accuracy"] for entry in document["history"])
    assert document["best"]["accuracy"] == document["best"]["test accuracy"]
    assert document["pictures"] == {"train": 9, "skipped": {}, "test": 9, "test skipped": {}}
    assert document["new prompts"] == 3
    assert Image.open(out / "history.png").size[0] > 300

    journal = json.loads((out / "journal.json").read_text())  # as if it had been stopped after the third reply
    journal["replies"], journal["scores"] = journal["replies"][:3], {}
    (out / "journal.json").write_text(json.dumps(journal))
    (folder / f"{method}.json").write_text(json.dumps(REPLIES[method][3:]))
    code, text, _ = call(capsys, *arguments(method, test="few.csv"), "--json")
    assert code == 0
    assert json.loads(text) == document

    code, _, error = call(capsys, *arguments(method, seed=1))
    assert code == 2
    assert "other settings (seed)" in error


def test_a_larger_budget_goes_on_even_from_less_than_a_step(folder, capsys):
    sizes = ["glov", "--per-step", 3, "--model", "nano-clip", "--train", "few.csv", "--lm", "scripted:glov.json"]
    replies = json.loads((folder / "glov.json").read_text()) * 2
    found = {}
    for budget, out, left in ((2, "raised", replies), (6, "raised", replies[2:]), (6, "at_once", replies)):
        (folder / "glov.json").write_text(json.dumps(left))
        code, text, _ = call(capsys, *sizes, "--budget", budget, "--out", out, "--json")
        assert code == 0
        found[out] = json.loads(text)
        assert found[out]["language model"]["replies"] == budget
    assert found["raised"] == found["at_once"]


def test_rows_that_cannot_be_used_are_counted(folder, capsys):
    (folder / "broken.png").write_bytes(b"no picture")
    with (folder / "few.csv").open("a") as file:
        file.write("broken.png,dog\nnowhere.png,dog\npictures/0.png,wug\n")
    (folder / "classes.txt").write_text("\n".join((*NOUNS, "polar_bear")))
    code, _, error = call(capsys, *arguments("glov", classes="classes.txt"))
    assert code == 0
    for said in ("1 rows skipped: unknown label", "1 rows skipped: not an image", "1 rows skipped: missing file"):
        assert said in error
    assert json.loads((folder / "glov/prompts.json").read_text())["classes"] == [*NOUNS, "polar_bear"]


def test_a_language_model_that_says_nothing(folder, capsys):
    (folder / "glov.json").write_text(json.dumps(["", "\n", "I cannot.", "{}"]))
    code, text, error = call(capsys, *arguments("glov"))
    assert code == 0
    assert "no reply was a template" in error
    assert FIRST in text


@pytest.mark.parametrize(
    ("files", "more", "message"),
    [
        ({"few.csv": "picture,label\na.png,dog\n"}, {}, "columns image and label; it names picture, label"),
        ({"few.csv": ""}, {}, "it names nothing"),
        ({"few.csv": "image,label\n"}, {}, "0 class(es)"),
        ({"few.csv": "image,label\npictures/0.png,dog\n"}, {}, "1 class(es)"),
        ({"few.csv": "image,label\npictures/0.png\n"}, {}, "line 2 lacks"),
        ({"few.csv": "image,label\na.png,dog\nb.png,cat\n"}, {}, "no sample is usable"),
        ({"c.txt": "dog\ncat\ndog\n"}, {"classes": "c.txt"}, "names 'dog' twice"),
        ({"c.txt": "dog\n"}, {"classes": "c.txt"}, "1 class(es)"),
        ({"c.txt": "wug\ndax\n"}, {"classes": "c.txt"}, "no picture of the 2 classes"),
        ({}, {"train": "nowhere.csv"}, "nowhere.csv"),
        ({}, {"budget": 0}, "budget=0"),
        ({}, {"initial": "a {}"}, "initial='a {}'"),
        ({}, {"lm": "gpt"}, "lm='gpt'"),
        ({"glov/journal.json": "[]"}, {}, "no journal"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_code_2(files, more, message, folder, capsys):
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    code, _, error = call(capsys, *arguments("glov", **more))
    assert code == 2
    assert message in error
    assert error.count("\n") <= 2


def test_a_pool_with_a_broken_template(folder, capsys):
    (folder / "pool.txt").write_text("a {}\nthe {name}\n")
    code, _, error = call(capsys, *arguments("llm_bbo"))
    assert code == 2
    assert "pool.txt holds 'the {name}'" in error
