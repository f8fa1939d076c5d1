"""`foveal align`, called as the command calls it, on a tiny model of the real class with a handful of photos."""

import json
import re
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from evaluate.tiny import save_clip, save_llava
from PIL import Image

from foveal.align.povid import read_preferences
from foveal.cli import _align_povid, _align_report, _align_stic, _align_train
from foveal.cli._align_folder import Folder, Notes
from foveal.evaluate.models import VisionLanguage

from .test_catalog import fail, run

PAGE = (Path(__file__).parents[2] / "docs" / "align.md").read_text(encoding="utf-8")
FAST = ("--stage1-epochs", "1", "--batch-size", "3", "--rank", "2", "--held-out", "0.3", "--lr", "0.01")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return str(save_llava(tmp_path_factory.mktemp("models") / "llava"))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with six photos, captions beside four of them, and a broken one; a language model's replies."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for module, name in ((_align_report, "LONGEST"), (_align_stic, "LONGEST"), (_align_povid, "LONGEST")):
        monkeypatch.setattr(module, name, 6)
    rng = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 32, 3), np.uint8)).save(photos / f"{number}.png")
        if number < 4:
            (photos / f"{number}.txt").write_text(f"A red dog number {number}.\n")
    (photos / "broken.jpg").write_bytes(b"no picture")
    replies = {f"dog number {number}": f"A blue cat number {number}." for number in range(3)}
    (tmp_path / "lm.json").write_text(json.dumps(replies | {"": "There is no dog."}))
    return tmp_path


def povid(capsys, llava, *more):
    arguments = ("--model", llava, "--images", "photos", "--lm", "scripted:lm.json", "-o", "out")
    return run(capsys, "align", "povid", *arguments, *FAST, *more)


def said_by(model, processor):
    """Logits of one prompt."""
    picture = np.full((32, 32, 3), 90, np.uint8)
    inputs = processor(text="USER: <image>\nWhat? ASSISTANT:", images=picture, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


def test_povid(llava, capsys, place):
    report = json.loads(povid(capsys, llava, "--tasks", "world-existence", "--task-n", "1", "--merge", "--json"))
    out = place / "out"
    records = read_preferences(out / "preferences.json")
    assert [record["image"] for record in records] == [f"{number}.png" for number in range(6)]
    assert records[1]["conversations"][1]["value"] == "A red dog number 1."
    assert records[1]["rejected_conversations"][1]["value"] == "A blue cat number 1."
    assert records[5]["rejected_conversations"][1]["value"] == "There is no dog."
    assert report["pairs"] == {"train": 4, "held out": 2}
    assert (report["pictures"], report["captions"]) == (6, 4)
    assert sum(report["skipped"].values()) == 1
    assert set(report["losses"]) == {"stage 1", "stage 2"}
    before, after = (report[when]["metrics"] for when in ("before", "after"))
    assert before.keys() == after.keys()
    assert "world-existence: random accuracy" in before
    assert before["log-probability per token, preferred"] != after["log-probability per token, preferred"]
    assert json.loads((out / "report.json").read_text()) == report
    with Image.open(out / "pairs.png") as picture:
        assert picture.format == "PNG"


def test_the_adapter_is_the_tuned_model(llava, capsys, place):
    povid(capsys, llava, "--merge")
    base = transformers.LlavaForConditionalGeneration.from_pretrained(llava)
    processor = transformers.AutoProcessor.from_pretrained(llava)
    plain = said_by(base, processor)
    adapted = said_by(peft.PeftModel.from_pretrained(base, place / "out" / "adapter"), processor)
    merged = transformers.LlavaForConditionalGeneration.from_pretrained(place / "out" / "model")
    assert (adapted - plain).abs().max() > 1e-3
    torch.testing.assert_close(said_by(merged, processor), adapted, atol=1e-4, rtol=1e-4)


def test_a_stopped_run_goes_on_and_gives_the_same(llava, capsys, place, monkeypatch):
    whole = json.loads(povid(capsys, llava, "--json"))
    adapter = (place / "out" / "adapter" / "adapter_model.safetensors").read_bytes()
    (place / "out").rename(place / "first")

    trained = _align_train.Tuning.fit

    def stop(self, model, data, collate, loss, out):
        if out.name == "stage2":
            raise KeyboardInterrupt
        return trained(self, model, data, collate, loss, out)

    with monkeypatch.context() as patch:
        patch.setattr(_align_train.Tuning, "fit", stop)
        with pytest.raises(SystemExit) as stopped:
            povid(capsys, llava, "--json")
        assert stopped.value.code == 130
    (place / "lm.json").write_text('["nothing is asked again"]')

    assert not (place / "out" / "report.json").exists()
    capsys.readouterr()
    again = json.loads(povid(capsys, llava, "--json"))
    assert again == whole
    assert (place / "out" / "adapter" / "adapter_model.safetensors").read_bytes() == adapter


def stic(capsys, llava, *more):
    arguments = ("--model", llava, "--images", "photos", "-o", "out")
    return run(capsys, "align", "stic", *arguments, *FAST, *more)


def test_stic_with_questions(llava, capsys, place, monkeypatch):
    prompts = []
    generate = VisionLanguage.answer

    def answer(self, requests, longest=32):
        prompts.extend(prompt for _, prompt in requests)
        texts = generate(self, requests, longest)
        return [f"{text} {len(prompt)}" for text, (_, prompt) in zip(texts, requests, strict=True)]

    monkeypatch.setattr(VisionLanguage, "answer", answer)
    asked = ("<image>\nIs it red?", "Is it red?\n<image>", "Is it red?")  # all found in LLaVA's files
    lines = [
        {
            "id": n,
            "image": f"{n}.png",
            "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "yes"}],
        }
        for n, text in enumerate(asked)
    ]
    (place / "questions.json").write_text(json.dumps(lines))
    report = json.loads(stic(capsys, llava, "--questions", "questions.json", "--json"))
    records = read_preferences(place / "out" / "preferences.json")
    assert {record["source"] for record in records} <= {"bad_prompt", "low_resolution", "color_jitter"}
    assert report["questions"] == 3
    assert set(report["losses"]) == {"stage 1", "stage 2"}
    assert sum(report["pairs"].values()) == len(records)
    text = stic(capsys, llava, "--questions", "questions.json")
    assert "preferred answer more likely" in text
    assert "wrote out/adapter" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--images", "none"), "'none' is missing"),
        (("--images", "photos", "--noise-step", "1000"), "noise_step=1000"),
        (("--images", "photos", "--held-out", "1"), "held_out=1"),
        (("--images", "photos", "--rank", "0"), "rank=0"),
        (("--images", "photos", "--n", "1"), "n=1"),
        (("--images", "photos", "--n", "3"), "3 readable pictures"),
        (("--images", "photos", "--lm", "gpt"), "lm='gpt'"),
        (("--images", "photos", "--tasks", "world-zero-shot"), "choose from"),
        (("--images", "photos", "--tasks", "pope"), "--task-data"),
        (("--images", "photos", "--model", "clip"), "no vision-language model"),
        (("--images", "photos", "-o", "lm.json"), "is a file"),
        (("--images", "photos", "-o", "photos"), "holds other files"),
    ],
)
def test_bad_input_is_one_line(llava, capsys, place, arguments, message):
    if "clip" in arguments:
        save_clip(place / "clip")
        capsys.readouterr()  # the bar of saving
    given = arguments if "--model" in arguments else (*arguments, "--model", llava)
    given = given if "--lm" in arguments else (*given, "--lm", "scripted:lm.json")
    told = fail(capsys, "align", "povid", *given)
    assert message in told
    assert len(told.strip().splitlines()) == 1
    assert not (place / "povid").exists()


def test_a_language_model_that_writes_nothing(llava, capsys, place):
    (place / "lm.json").write_text('{"": ""}')
    arguments = ("--model", llava, "--images", "photos", "--lm", "scripted:lm.json", "-o", "out")
    assert "wrote no error" in fail(capsys, "align", "povid", *arguments)


def test_other_settings_need_another_folder(tmp_path):
    Folder(tmp_path / "a", {"lr": 1.0, "n": None})
    Folder(tmp_path / "a", {"lr": 1.0, "n": None})
    with pytest.raises(ValueError, match=r"begun with lr=1.0, not 2.0"):
        Folder(tmp_path / "a", {"lr": 2.0, "n": None})


def test_notes_survive_a_cut_off_line(tmp_path):
    calls = []

    def make(keys):
        calls.append(list(keys))
        return [key.upper() for key in keys]

    def quiet(what, done, total):
        """No bar."""

    notes = Notes(tmp_path / "n.jsonl")
    assert notes.each(["a", "b", "c"], make, 2, quiet) == ["A", "B", "C"]
    content = (tmp_path / "n.jsonl").read_bytes()
    (tmp_path / "n.jsonl").write_bytes(content[:-4])
    again = Notes(tmp_path / "n.jsonl")
    assert again.each(["a", "b", "c", "d"], make, 2, quiet) == ["A", "B", "C", "D"]
    assert calls == [["a", "b"], ["c"], ["c", "d"]]
    assert again.once("z", lambda: 1) == Notes(tmp_path / "n.jsonl").once("z", lambda: 2) == 1


def test_the_example_of_the_page_runs(capsys):
    example = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[-1]
    exec(example, {})
    assert capsys.readouterr().out.count("tensor(") == 3


def test_the_page_names_every_file_that_is_written(llava, capsys, place):
    povid(capsys, llava, "--merge")
    for path in (place / "out").iterdir():
        assert f"`{path.name}{'/' * path.is_dir()}`" in PAGE
