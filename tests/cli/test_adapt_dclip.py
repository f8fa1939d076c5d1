"""`foveal adapt dclip`, called as the command calls it, with nano-clip and a scripted language model."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.cli._adapt_dclip_show import drawn
from foveal.data.world import WorldConfig, pairs

from .test_catalog import fail, partly, run

STAR = ["a red star", "a star"]
CIRCLE = ["a blue circle", "a circle"]


def listed(texts):
    return "Here you are:\n" + "\n".join(f"- {text}" for text in texts)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with pictures, classes whose names mean nothing, and a language model that knows them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    for folder, noun, colour in (("a", "star", "red"), ("b", "circle", "blue")):
        world = WorldConfig(96, (1, 1), (noun,), colours=(colour, "white"), sizes=("large",), backgrounds=("plain",))
        found = pairs(1_000_000, 8, world)
        pictures = [image for image, scene in zip(found.images, found.scenes) if scene.things[0].colour == colour]
        Path("photos", folder).mkdir(parents=True)
        for number, image in enumerate(pictures[:2]):
            Image.fromarray(image).save(f"photos/{folder}/{number}.png")
    Path("classes.txt").write_text("\ufeffwug\n\n  dax_a  \n", encoding="utf-8")
    Path("lm.json").write_text(json.dumps({"wug": listed(STAR), "dax a": listed(CIRCLE)}))
    return tmp_path


ARGUMENTS = ("adapt", "dclip", "--model", "nano-clip", "--images", "photos", "--classes", "classes.txt")
SCRIPTED = (*ARGUMENTS, "--lm", "scripted:lm.json", "-o", "out")


def test_from_classes_to_pictures(work, capsys):
    said = run(capsys, *SCRIPTED)
    assert "wrote" in said
    assert "wug 2, dax_a 2" in said
    assert json.loads(Path("out/descriptors.json").read_text()) == {"wug": STAR, "dax_a": CIRCLE}
    document = json.loads(Path("out/predictions.json").read_text())
    assert [(row["image"], row["class"]) for row in document["images"]] == [
        ("photos/a/0.png", "wug"),
        ("photos/a/1.png", "wug"),
        ("photos/b/0.png", "dax_a"),
        ("photos/b/1.png", "dax_a"),
    ]
    for row in document["images"]:
        values = [item["similarity"] for item in row["descriptors"]]
        assert row["score"] == pytest.approx(np.mean(values), abs=2e-4)
        assert values == sorted(values, reverse=True)
        assert row["name alone"]["class"] in ("wug", "dax_a")
        with Image.open(row["picture"]) as picture:
            assert picture.format == "PNG"
            assert len(np.unique(np.asarray(picture))) > 10
    assert document["errors"] == []
    assert document["language model"] == {"name": "scripted:lm.json", "asked": ["wug", "dax_a"], "silent": []}


def test_json_and_one_picture(work, capsys):
    arguments = [part if part != "photos" else "photos/a/1.png" for part in SCRIPTED]
    document = json.loads(run(capsys, *arguments, "--json", "--pictures", "0", "--suffix", ".", "--reduce", "max"))
    (row,) = document["images"]
    assert row["image"] == "photos/a/1.png"
    assert "picture" not in row
    assert not Path("out/pictures").exists()
    assert row["score"] == row["descriptors"][0]["similarity"]
    assert document == json.loads(Path("out/predictions.json").read_text())


def test_what_was_edited_is_kept_and_only_gaps_are_asked_for(work, capsys):
    run(capsys, *SCRIPTED)
    Path("out/descriptors.json").write_text(json.dumps({"wug": ["a heart"], "dax_a": []}))
    Path("lm.json").write_text(json.dumps({"dax a": listed(["a ring"])}))
    run(capsys, *SCRIPTED, "--json")
    assert json.loads(Path("out/descriptors.json").read_text()) == {"wug": ["a heart"], "dax_a": ["a ring"]}


def test_a_killed_run_keeps_the_answers_that_were_paid_for(work, capsys):
    Path("lm.json").write_text(json.dumps([listed(STAR)]))  # the second answer never comes
    assert "none is left" in fail(capsys, *SCRIPTED)
    Path("lm.json").write_text(json.dumps([listed(CIRCLE)]))
    run(capsys, *SCRIPTED, "--json")
    assert json.loads(Path("out/descriptors.json").read_text()) == {"wug": STAR, "dax_a": CIRCLE}


def test_descriptors_of_a_file(work, capsys):
    Path("d.json").write_text(json.dumps({"other": ["x"], "dax_a": CIRCLE, "wug": STAR}))
    arguments = (*ARGUMENTS[:6], "--descriptors", "d.json", "--json")
    assert list(json.loads(run(capsys, *arguments))["descriptors"]) == ["other", "dax_a", "wug"]
    with_classes = json.loads(run(capsys, *ARGUMENTS, "--descriptors", "d.json", "-o", "two", "--json"))
    assert list(with_classes["descriptors"]) == ["wug", "dax_a"]
    assert with_classes["language model"] == {"name": None, "asked": [], "silent": []}
    Path("d.json").write_text(json.dumps({"dax_a": CIRCLE}))
    assert "nothing for wug" in fail(capsys, *ARGUMENTS, "--descriptors", "d.json")


def test_a_language_model_that_says_nothing(work, capsys):
    Path("lm.json").write_text(json.dumps({"wug": listed(STAR), "": "As a language model, I cannot see."}))
    run(capsys, *SCRIPTED, "--json")
    document = json.loads(Path("out/predictions.json").read_text())
    assert document["descriptors"] == {"wug": STAR, "dax_a": []}
    assert document["language model"]["silent"] == ["dax_a"]
    Path("lm.json").write_text(json.dumps({"": ""}))
    assert "listed nothing for any of 2 classes" in fail(capsys, *SCRIPTED[:-1], "other")


def test_pictures_that_cannot_be_read_are_named_and_counted(work, capsys):
    Path("photos/a/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    told = partly(capsys, *SCRIPTED, "--json")
    assert "1 of 5 pictures could not be read" in told.err
    document = json.loads(told.out)
    assert len(document["images"]) == 4
    (error,) = document["errors"]
    assert error["image"] == "photos/a/broken.png"
    for path in Path("photos").rglob("*.png"):
        path.write_bytes(b"no picture")
    assert "none of the 5 pictures could be read" in fail(capsys, *SCRIPTED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes.txt": "wug\ndax\nWug\n"}, "'wug' and 'Wug', which are one class"),
        ({"classes.txt": "sea_eagle\nsea eagle"}, "which are one class"),
        ({"classes.txt": "wug\n\n"}, "classes.txt has 1 class: give at least two"),
        ({"classes.txt": ""}, "has 0 classes"),
        ({"classes.txt": b"\xff\xfe\xe4"}, "no text in UTF-8"),
        ({"lm.json": "{"}, "lm.json: not JSON"),
        ({"--lm": "gpt"}, "lm='gpt'"),
        ({"--lm": "openai:nowhere"}, "base_url='nowhere'"),
        ({"--classes": "none.txt"}, "none.txt"),
        ({"--images": "nowhere"}, "'nowhere' is missing"),
        ({"--images": "empty"}, "holds no image file"),
        ({"--model": "nowhere"}, "nowhere"),
        ({"--model": "nano-llava"}, "give a dual encoder"),
        ({"--max-new-tokens": "0"}, "max_new_tokens=0"),
        ({"--pictures": "-1"}, "pictures=-1"),
        ({"--batch-size": "0"}, "batch_size=0"),
    ],
)
def test_bad_input_is_one_line(change, message, work, capsys):
    Path("empty").mkdir()
    options = []
    for name, value in change.items():
        if name.startswith("--"):
            options += [name, value]
        else:
            Path(name).write_bytes(value if isinstance(value, bytes) else value.encode())
    error = fail(capsys, *SCRIPTED, *options)
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("out").exists()


def test_neither_classes_nor_descriptors(work, capsys):
    assert "classes is missing" in fail(capsys, *ARGUMENTS[:6])


def test_a_drawing_of_odd_texts(work):
    row = {
        "image": "photos/a/0.png",
        "class": "$x$_{",
        "score": 0.5,
        "descriptors": [{"text": "costs $5 or \\frac $ " * 9, "similarity": -0.1}, {"text": "猫", "similarity": 0.2}],
        "name alone": {"class": "wug", "score": 0.1},
    }
    assert drawn(row).startswith(b"\x89PNG")
