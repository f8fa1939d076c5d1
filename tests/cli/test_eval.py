"""`foveal eval`, called as the command calls it, on tiny models of the real classes."""

import json
import shutil

import pytest
import torch
from evaluate.test_card import RECORD
from evaluate.tiny import save_blip, save_clip, save_llava
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from foveal.decode import agla
from foveal.decode.base import ContrastBranch

from .test_catalog import fail, run


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory):
    return save_blip(tmp_path_factory.mktemp("models") / "blip")


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """Kept outputs go into the folder that one is in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")


def test_a_dual_encoder(clip_folder, capsys, tmp_path):
    tasks = "world-retrieval,world-novel"
    text = run(capsys, "eval", str(clip_folder), "--task", tasks, "--n", "8", "--out", "result.json")
    for said in ("CLIPModel", *tasks.split(","), "image to text R@1", "12.5%", "95 % interval", "result.json"):
        assert said in text
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["model"]["sha256"]
    assert result["versions"]["transformers"]
    assert result["hardware"]["cores"]
    recall = result["tasks"]["world-retrieval"]["metrics"]["image to text R@5"]
    assert recall["chance"] == 5 / 8
    assert recall["low"] <= recall["value"] <= recall["high"]
    rows = (tmp_path / result["tasks"]["world-retrieval"]["predictions"]).read_text().splitlines()
    assert len(rows) == 8
    hits = [json.loads(row)["image to text rank"] <= 5 for row in rows]
    assert sum(hits) / 8 == recall["value"]


def test_the_same_numbers_again(clip_folder, capsys):
    arguments = ("eval", str(clip_folder), "--task", "world-classes", "--n", "10", "--seed", "3", "--json")
    first = json.loads(run(capsys, *arguments))
    again = json.loads(run(capsys, *arguments, "--fresh"))
    for result in (first, again):
        result["tasks"]["world-classes"].pop("seconds")
    assert first == again
    assert json.loads(run(capsys, *arguments[:-2], "4", "--json"))["tasks"] != first["tasks"]


def test_bad_input(clip_folder, capsys, tmp_path):
    folder = str(clip_folder)
    assert "nano-clip, nano-llava" in fail(capsys, "eval", "no-such-model")
    assert "world-classes" in fail(capsys, "eval", folder, "--task", "pets")
    assert "--data" in fail(capsys, "eval", folder, "--task", "imagefolder")
    assert "missing" in fail(capsys, "eval", folder, "--task", "imagefolder", "--data", "nowhere")
    assert "n=0" in fail(capsys, "eval", folder, "--n", "0")
    assert "batch_size=0" in fail(capsys, "eval", folder, "--batch-size", "0")
    assert ".json" in fail(capsys, "eval", folder, "--out", "result.txt")
    assert "device='abacus'" in fail(capsys, "eval", folder, "--device", "abacus")
    assert not list(tmp_path.iterdir())


def test_recorded_answers(capsys, tmp_path):
    (tmp_path / "pope.json").write_text(
        '{"question_id": 7, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}'
    )
    (tmp_path / "answers.json").write_text('[{"question_id": 7, "answer": "no"}]')
    arguments = ("eval", "answers.json", "--task", "pope", "--data", "pope.json", "--json")
    result = json.loads(run(capsys, *arguments))
    assert result["model"]["class_name"] == "recorded answers"
    assert result["tasks"]["pope"]["metrics"]["accuracy"]["value"] == 0
    assert "recorded answers" in run(capsys, *arguments[:-1])
    assert "--task" in fail(capsys, "eval", "answers.json")


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("models") / "llava")


def test_a_vision_language_model(llava_folder, capsys):
    tasks = "world-existence,world-count,world-rec"
    result = json.loads(run(capsys, "eval", str(llava_folder), "--task", tasks, "--n", "3", "--json"))
    assert result["model"]["kind"] == "vision-language"
    assert ",".join(result["tasks"]) == tasks
    assert "dual encoder" in fail(capsys, "eval", str(llava_folder), "--task", "world-classes")


@pytest.mark.parametrize("decoder", ["debias", "damro"])
def test_a_decoder(llava_folder, capsys, monkeypatch, decoder):
    """Its extra passes run, its answers are kept apart from greedy ones, and the result names it."""
    asked = []
    branch = ContrastBranch.__init__
    monkeypatch.setattr(ContrastBranch, "__init__", lambda self, *a, **k: asked.append(1) or branch(self, *a, **k))
    arguments = ("eval", str(llava_folder), "--task", "world-caption", "--n", "2", "--json")
    plain = json.loads(run(capsys, *arguments))
    assert not asked
    result = json.loads(run(capsys, *arguments, "--decode", decoder))
    assert asked
    assert (plain["model"]["settings"], result["model"]["settings"]) == ({}, {"decode": decoder})


def test_a_decoder_is_for_models_that_answer(clip_folder, capsys):
    assert "vision-language" in fail(capsys, "eval", str(clip_folder), "--decode", "damro")


def test_agla_by_a_clip_and_by_a_blip(llava_folder, clip_folder, blip_folder, capsys, monkeypatch):
    """The second look is at its views, which come from the matcher that is named; its answers are kept apart."""
    views, looked = [], []
    made, processor = agla.augmented_view, agla.AglaLogitsProcessor
    monkeypatch.setattr("foveal.cli._eval_agla.augmented_view", lambda *a: views.append(made(*a)) or views[-1])
    monkeypatch.setattr(
        "foveal.cli._eval_agla.AglaLogitsProcessor",
        lambda *a, **k: looked.append(k["pixel_values"]) or processor(*a, **k),
    )
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    arguments = ("eval", str(llava_folder), "--task", "world-caption", "--n", "2", "--json", "--decode", "agla")
    for matcher in (clip_folder, blip_folder):
        views.clear()
        looked.clear()
        result = json.loads(run(capsys, *arguments, "--matcher", str(matcher)))
        assert len(views) == 2
        torch.testing.assert_close(torch.cat(looked) * std + mean, torch.stack([view for view, _ in views]))
        assert result["model"]["settings"] == {"decode": "agla", "matcher": str(matcher)}


def test_what_agla_needs(llava_folder, clip_folder, capsys):
    arguments = ("eval", str(llava_folder), "--task", "world-caption", "--n", "2")
    assert "agla needs a CLIP or BLIP" in fail(capsys, *arguments, "--decode", "agla")
    assert "no other does" in fail(capsys, *arguments, "--decode", "damro", "--matcher", str(clip_folder))
    assert "--decode agla" in fail(capsys, *arguments, "--matcher", str(clip_folder))
    assert "'llava' model" in fail(capsys, *arguments, "--decode", "agla", "--matcher", str(llava_folder))
    assert "matcher='nowhere' is no folder" in fail(capsys, *arguments, "--decode", "agla", "--matcher", "nowhere")


def test_a_model_card(clip_folder, capsys, tmp_path):
    folder = tmp_path / "nano-clip"
    shutil.copytree(clip_folder, folder)
    arguments = ("eval", str(folder), "--task", "world-novel", "--n", "3", "--card", "cards/nano-clip.md")
    assert "foveal train" in fail(capsys, *arguments)
    assert not (tmp_path / ".foveal").exists()  # refused before anything is measured
    (folder / "training.json").write_text(json.dumps(RECORD))
    assert "nano-clip.md" in run(capsys, *arguments)
    assert sorted(path.name for path in (tmp_path / "cards").iterdir()) == ["nano-clip-curves.png", "nano-clip.md"]
    text = (tmp_path / "cards" / "nano-clip.md").read_text()
    assert "| world-novel | top-1 |" in text
    assert "`foveal eval nano-clip --n 3 --card`" in text
    assert ".md" in fail(capsys, *arguments[:-1], "card.html")
