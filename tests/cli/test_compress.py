"""`foveal compress`, called as the command calls it, on a tiny model of the real class with eight examples."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate.tiny import save_clip, save_llava
from PIL import Image
from rich.console import Console

from foveal import compress
from foveal.cli import main
from foveal.cli._compress_examples import Asked, Example, shuffled
from foveal.cli._compress_measure import Judge, _agreement, fitting_metric
from foveal.cli._compress_run import Search, around
from foveal.cli._compress_show import remarks, table
from foveal.evaluate.models import VisionLanguage, open_model

from .test_catalog import fail, run

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "compress.md").read_text(encoding="utf-8")
LAYERS, TOKENS = 6, 16
QUESTIONS = ("Is there a dog in the image?", "red dog?", "yes or no?", "Is it red?")
ANSWERS = ("yes", "a red dog in the image", "no", "there is no red dog in the image, yes")


def save_deep_llava(folder):
    """The tiny LLaVA with six decoder layers, and sixteen tokens for a picture."""
    from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

    save_llava(folder)
    config = LlavaConfig.from_pretrained(folder)
    config.text_config.num_hidden_layers = LAYERS
    config.vision_config.patch_size, config.image_seq_length = 8, TOKENS
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    for weight in model.parameters():
        weight.data.mul_(4)
    model.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    processor.patch_size = 8
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return str(save_deep_llava(tmp_path_factory.mktemp("models") / "llava"))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with eight examples, in which one is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(8):
        Image.fromarray(rng.integers(0, 256, (40, 32, 3), np.uint8)).save(tmp_path / "pictures" / f"{number}.png")
    write(tmp_path / "data.jsonl", [example(number) for number in range(8)])
    return tmp_path


def example(number, **changes):
    answer = ANSWERS[number % len(ANSWERS)]
    return {"image": f"pictures/{number}.png", "question": QUESTIONS[number % 4], "answer": answer} | changes


def write(path, records):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n")


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".jsonl" and path.is_file())


def quiet(what, done, total):
    """No bar."""


def needing(tokens):
    """Answers of a model that is right as long as its last layer gets so many image tokens of every picture."""
    generated = VisionLanguage.answer

    def answer(self, requests, max_new_tokens=32):
        generated(self, requests, 1)
        reducer = getattr(self.model.model, "_foveal_reducer", None)
        left = [TOKENS] * len(requests) if reducer is None else reducer.image_tokens[:, -1].tolist()
        return ["Yes." if count >= tokens else "no" for count in left]

    return answer


FAST = ("--tries", "2", "--points", "1")
LIKELY = ("--metric", "log-likelihood")


def test_a_schedule_its_picture_and_its_numbers(llava, capsys, place):
    arguments = ("--budget", "0.6", "--calibrate", "data.jsonl", "--tries", "3", "--seed", "1", *LIKELY)
    document = json.loads(run(capsys, "compress", llava, *arguments, "-o", "out/my.json", "--json"))
    assert sorted(path.name for path in (place / "out").iterdir()) == ["my.curve.json", "my.json", "my.png"]
    assert json.loads((place / "out" / "my.curve.json").read_text()) == document
    with Image.open(place / "out" / "my.png") as picture:
        assert picture.format == "PNG"

    assert (document["method"], document["evaluations"], document["refused"]) == ("P-Sigmoid", 3, {})
    assert len(document["rates"]) == LAYERS
    assert sum(document["rates"]) / LAYERS == pytest.approx(0.6)
    first, *points = document["points"]
    names = {"P-Sigmoid", "PyramidDrop", "FastV", "FoPru", "AIM", "RandomDrop", "AveragePool"}
    budgets = sorted({point["budget"] for point in points})
    assert len(budgets) == 3
    assert 2 / LAYERS < budgets[0] < budgets[1] == 0.6 < budgets[2] < 1
    for point in points:
        assert point["image_tokens_full"] == TOKENS
        assert point["kept"] <= point["flops"] < 1.02  # text is never dropped
        assert point["log-likelihood"]["low"] <= point["log-likelihood"]["value"] <= point["log-likelihood"]["high"]
    assert {point["method"] for point in points if point["budget"] == 0.6} == names

    notes = json.loads((place / "out" / "my.json").read_text())["notes"]
    assert notes["log-likelihood before"] == first["log-likelihood"]["value"]
    assert notes["log-likelihood after"] == points[1]["log-likelihood"]["value"]
    assert (notes["examples_searched"], notes["examples_reported"], notes["seed"]) == (4, 4, 1)
    assert notes["model"] == llava

    adapter, asked, total = open_model(llava).model, Asked(Path("data.jsonl")), 0.0
    blank = Judge(adapter, asked, asked.examples(quiet), "log-likelihood", asked.examples(quiet))._blank
    for row in shuffled(8, 1)[4:]:  # the other half, by hand
        answer = blank + example(row)["answer"]
        tokens = len(adapter.tokenizer(answer, add_special_tokens=False).input_ids)
        total += adapter.loglikelihood([(example(row)["question"], answer, asked[row].images)])[0][0] / tokens
    assert first["log-likelihood"]["value"] == pytest.approx(total / 4)

    reducer = compress.load("out/my.json")
    with reducer.attached(adapter.model):
        adapter.answer([([asked[0].image], "Is it red?")], 4)
    report = reducer.report()
    kept = sum(report.image_tokens) / LAYERS / TOKENS
    assert kept == pytest.approx(points[1]["kept"])
    assert 1 - report.flops_saved == pytest.approx(points[1]["flops"], abs=0.05)


def test_the_same_bytes_again(llava, capsys, place):
    def written(seed):
        run(capsys, "compress", llava, "--budget", "0.5", "--calibrate", "data.jsonl", "--seed", seed, *FAST, *LIKELY)
        return {name: (place / name).read_bytes() for name in files(place)}

    first, again, other = written("0"), written("0"), written("4")
    assert first == again
    assert list(first) == ["schedule.curve.json", "schedule.json", "schedule.png"]
    first, other = (json.loads(some["schedule.curve.json"])["points"][0] for some in (first, other))
    assert first["log-likelihood"] != other["log-likelihood"]  # of another half


def test_the_table(llava, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # nothing is cut
    monkeypatch.setattr(VisionLanguage, "answer", needing(5))
    write(Path("yes.jsonl"), [example(number, answer="yes") for number in range(8)])
    text = run(capsys, "compress", llava, "--calibrate", "yes.jsonl", "--budget", "0.5", *FAST)
    lines = text.splitlines()
    cells = {line.split("  ")[0]: line for line in lines}
    assert re.search(r"16\.0 100\.0% +100\.0% +100\.0% +100\.0% +51\.0% – 100\.0%", cells["as it is"])
    assert "0.0% – 49.0%" in cells["FastV"]  # (0.5 · 6 − 2) / 4 of 16 tokens: 4 in its last layer
    assert "8.0" in cells["RandomDrop (control)"]
    assert "100.0%" in cells["RandomDrop (control)"]
    for said in ("image tokens", "FLOPs", "KV cache", "95 % interval", "2 strategies tried on 4 examples", "4 others"):
        assert said in text
    for name in ("schedule.json", "schedule.png", "schedule.curve.json"):
        assert f"wrote {name}" in text
    document = json.loads(Path("schedule.curve.json").read_text())
    own = document["points"][1]["accuracy"]["value"]
    assert ("higher than the schedule at this budget: " in text) == (own < 1)


def test_gsearch_finds_what_the_model_needs(llava, capsys, monkeypatch):
    monkeypatch.setattr(VisionLanguage, "answer", needing(6))
    write(Path("yes.jsonl"), [example(number, answer="yes") for number in range(8)])
    arguments = ("--calibrate", "yes.jsonl", "--method", "gsearch", "--tolerance", "0.5", "--points", "1", "--json")
    document = json.loads(run(capsys, "compress", llava, *arguments))
    assert document["rates"] == [1, 1, *[12 / 32] * 4]  # 6 of 16
    assert document["budget"] == pytest.approx((2 + 4 * 12 / 32) / 6)
    assert document["points"][1]["accuracy"]["value"] == 1
    assert document["tolerance"] == 0.5
    assert compress.load("schedule.json").rates == tuple(document["rates"])
    assert "gsearch finds its own" in fail(capsys, "compress", llava, *arguments, "--budget", "0.5")


def test_nothing_is_reported_on_what_was_searched(llava, capsys, monkeypatch):
    searched, reported = set(), set()
    scores, mean = Judge.scores, Search._mean
    inside = []

    def spying(self, examples, reducer=None, saved=None):
        (searched if inside else reported).update(one.row for one in examples)
        return scores(self, examples, reducer, saved)

    def marked(self, rates):
        inside.append(1)
        try:
            return mean(self, rates)
        finally:
            inside.pop()

    monkeypatch.setattr(Judge, "scores", spying)
    monkeypatch.setattr(Search, "_mean", marked)
    run(capsys, "compress", llava, "--calibrate", "data.jsonl", "--budget", "0.5", *FAST, *LIKELY, "--json")
    assert not searched & reported
    assert searched | reported == set(range(8))


def test_all_of_the_budget(llava, capsys):
    document = json.loads(
        run(capsys, "compress", llava, "--calibrate", "data.jsonl", "--budget", "1", *LIKELY, "--json")
    )
    assert document["rates"] == [1] * LAYERS
    assert document["evaluations"] == 0
    before, after = document["points"]
    assert before["log-likelihood"] == after["log-likelihood"]
    assert (after["kept"], after["flops"], after["kv"]) == (1, 1, 1)
    assert compress.load("schedule.json").rates == (1,) * LAYERS


def test_bad_input(llava, capsys, place, tmp_path_factory):
    given = ("compress", llava, "--calibrate", "data.jsonl")
    assert "must be above 0.3333" in fail(capsys, *given, "--budget", "0.3333")
    assert "must be above 0.3333" in fail(capsys, *given)  # 0.25
    for budget in ("0", "1.5", "nan"):
        assert "must lie in (0, 1]" in fail(capsys, *given, "--budget", budget)
    good = (*given, "--budget", "0.5")
    assert "tolerance=-1" in fail(capsys, *given, "--method", "gsearch", "--tolerance", "-1")
    assert "points=0" in fail(capsys, *good, "--points", "0")
    assert "n=1" in fail(capsys, *good, "--n", "1")
    assert ".json" in fail(capsys, *good, "-o", "schedule.txt")
    assert "lies in a file" in fail(capsys, *good, "-o", "data.jsonl/schedule.json")
    assert "cannot read nothing.jsonl" in fail(capsys, "compress", llava, "--calibrate", "nothing.jsonl")
    assert "no folder" in fail(capsys, *good, "--images", "nowhere")
    assert "nano-llava" in fail(capsys, "compress", "no-such-model", *good[2:])
    clip = str(save_clip(tmp_path_factory.mktemp("models") / "clip"))
    assert "a dual encoder model: give a vision-language model" in fail(capsys, "compress", clip, *good[2:])
    shallow = str(save_llava(tmp_path_factory.mktemp("models") / "shallow"))
    assert "2 decoder layers" in fail(capsys, "compress", shallow, *good[2:])
    (place / "data.json").write_text(json.dumps([example(0)]))
    assert "1 example" in fail(capsys, "compress", llava, "--calibrate", "data.json", "--budget", "0.5")
    over = ("compress", llava, "--calibrate", "data.json", "--budget", "0.5", "-o", "data.json")
    assert "write over the examples" in fail(capsys, *over)
    (place / "taken.json").mkdir()
    assert "is a folder" in fail(capsys, *good, "-o", "taken.json")
    assert files(place) == ["data.json"]


def test_broken_examples_are_named(llava, capsys, caplog, place):
    lines = [example(0), '{"image": ', "", example(2, image="gone.png"), *map(example, range(3, 8))]
    write(place / "some.jsonl", lines)
    arguments = ("compress", llava, "--budget", "0.5", *FAST, *LIKELY, "--json", "--calibrate")
    document = json.loads(run(capsys, *arguments, "some.jsonl"))
    assert document["examples"]["skipped"] == {"malformed record": 1, "missing file": 1}
    assert document["examples"]["skipped_keys"] == {"malformed record": ["line 2"], "missing file": ["line 4"]}
    assert document["examples"]["searched"] + document["examples"]["reported"] == 6
    assert "2 of 8 samples skipped" in caplog.text
    assert "line 2" in caplog.text
    write(place / "none.jsonl", [example(0, image="../data.png"), example(1, image="gone.png", id="b")])
    said = fail(capsys, *arguments, "none.jsonl")
    assert "no sample is usable" in said
    assert "(line 1)" in said
    assert "(b)" in said
    assert said.count("\n") == 1


def test_ctrl_c_leaves_nothing(llava, capsys, monkeypatch, place):
    scores, calls = Judge.scores, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return scores(self, *arguments)

    monkeypatch.setattr(Judge, "scores", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["compress", llava, "--calibrate", "data.jsonl", "--budget", "0.5", *FAST, *LIKELY])
    assert stopped.value.code == 130
    assert files(place) == []


def test_forms_of_examples(place):
    turns = [
        {"from": "human", "value": "<image>\nIs it red?"},
        {"from": "gpt", "value": "no"},
        {"from": "human", "value": "Sure?"},
    ]
    write(
        place / "forms.jsonl",
        [
            {"id": "llava", "image": "pictures/0.png", "conversations": turns},
            {"images": ["pictures/0.png", "pictures/1.png"], "question": "Alike?", "answers": ["no", "no", "yes"]},
            {"question": "No picture?", "answer": "no"},
            {"image": "pictures/0.png", "question": "No answer?"},
            {"image": "pictures/0.png", "question": "Empty answer?", "answer": " "},
            {"image": "pictures/0.png", "conversations": turns[:1]},
            {"image": ["pictures/0.png", "pictures/1.png"], "conversations": [*turns[:2], {**turns[0]}]},
            {"image": "pictures/0.png", "question": "What is it?", "answer": ["a dog", "dog"]},
        ],
    )
    asked = Asked(place / "forms.jsonl")
    first, second, third = asked.examples(quiet)
    assert first == Example("llava", 0, 1, "Is it red?", ("no",), False)
    assert second == Example("line 2", 1, 2, "Alike?", ("no", "no", "yes"), True)
    assert third == Example("line 8", 7, 1, "What is it?", ("a dog", "dog"), False)
    assert [picture.shape for picture in asked.pictures(second)] == [(40, 32, 3)] * 2
    assert asked.faults.counts == {
        "no image": 1,
        "malformed record": 1,
        "no question with answer": 2,
        "image in a later turn": 1,
    }
    assert len(Asked(place / "forms.jsonl", n=3, seed=1)) == 3
    assert Asked(place / "forms.jsonl", n=3).keys != Asked(place / "forms.jsonl", n=3, seed=1).keys


@pytest.mark.parametrize(
    ("said", "answers", "by_people", "score"),
    [
        ("Yes, there is.", ("Yes.",), False, 1),
        ("no", ("Yes",), False, 0),
        ("The dog!", ("a dog",), False, 1),
        ("dog", ("cat", "a dog"), False, 1),
        ("red dog", ("dog",), False, 0),
        ("2", ("two",), False, 1),
        ("no", ("no", "no", "yes"), True, (1 / 3 + 1 / 3 + 2 / 3) / 3),
    ],
)
def test_when_an_answer_is_right(said, answers, by_people, score):
    assert _agreement(said, Example("", 0, 1, "", answers, by_people)) == pytest.approx(score)


def test_which_metric_fits_and_with_which_interval(llava, place):
    adapter = open_model(llava).model
    asked = Asked(place / "data.jsonl")
    examples = asked.examples(quiet)
    assert fitting_metric(examples) == "accuracy"  # half of the answers are short
    assert fitting_metric([one for one in examples if one.answers[0] not in ("yes", "no")]) == "log-likelihood"
    judge = Judge(adapter, asked, examples, "accuracy", examples)
    sure, unsure = judge.as_metric([1.0, 0.0, 1.0, 1.0]), judge.as_metric([1.0, 0.3, 0.3, 1.0])
    assert (sure.value, unsure.value) == (0.75, pytest.approx(0.65))
    assert (sure.low, sure.high) == (pytest.approx(0.3006, abs=1e-4), pytest.approx(0.9544, abs=1e-4))  # Wilson
    assert unsure.low >= 0.3


def test_budgets_around_the_one_that_is_asked_for():
    assert around(0.5, 0.25, 1) == [0.5]
    assert around(0.5, 0.25, 3) == pytest.approx([0.375, 0.5, 0.75])
    assert around(0.3, 0.1, 5) == pytest.approx([0.1 + 0.2 / 3, 0.1 + 0.4 / 3, 0.3, 0.4, 0.5])
    assert around(0.25, 0.25, 3) == pytest.approx([0.25, 1 / 3, 5 / 12])
    assert around(1.0, 0.25, 3) == [1.0]


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))
def test_the_pages_examples_run(block, llava, place):
    adapter = open_model(llava).model
    compress.save((1, 1, 0.5, 0.5, 0.25, 0.25), "schedule.json")
    picture = Image.open("pictures/0.png").convert("RGB")
    picture.save("scene.tif")
    names = {"model": adapter.model, "processor": adapter.processor, "picture": picture}
    prompt = "USER: <image>\nIs it red? ASSISTANT:"
    names["inputs"] = inputs = adapter.processor(text=prompt, images=picture, return_tensors="pt")
    names["labels"] = inputs["input_ids"].masked_fill(torch.arange(inputs["input_ids"].shape[1]) < 20, -100)
    exec(compile(block, "docs/compress.md", "exec"), names)
    assert not hasattr(adapter.model.model, "_foveal_reducer")


def test_the_page_shows_what_the_command_printed():
    document = json.loads((DOCS / "compress" / "nano-llava.curve.json").read_text())
    console = Console(width=80, file=io.StringIO())
    console.print(table(document))
    lines = [*map(str.rstrip, console.file.getvalue().splitlines()), *remarks(document)]
    assert "```text\n" + "\n".join(lines) + "\n```" in PAGE
    assert compress.load(DOCS / "compress" / "nano-llava.json").rates == tuple(document["rates"])


def test_there_are_examples():
    assert PAGE.count("```python") >= 5
