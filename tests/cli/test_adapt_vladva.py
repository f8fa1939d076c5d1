import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveal.adapt.vladva_encoder import VladvaEncoder

from .adapting import call

LONG = "There is a red dog. " * 8


def run(capsys, *arguments):
    return call(capsys, "vladva", *arguments)


@pytest.fixture
def pairs(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for number in range(10):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(tmp_path / f"{number}.png")
        texts = [LONG, f"dog {number}"] if number % 2 else [f"dog {number}"]
        rows.append(
            {"image": f"{number}.png", "captions": texts} if number else {"image": "0.png", "caption": texts[0]}
        )
    rows.append({"image": "0.png", "caption": LONG})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(pairs, llava, out):
    return ["--data", pairs, "--model", llava, "-o", out, "--steps", 2, "--batch-size", 3, "--rank", 2, "--lr", 0.01]


def test_it_trains_saves_and_merges(pairs, llava, tmp_path, capsys):
    out = tmp_path / "out"
    code, text, _ = run(capsys, *settings(pairs, llava, out), "--merge", "--json")
    assert code == 0
    report = json.loads(text)
    assert report == json.loads((out / "report.json").read_text())
    assert (report["pairs"], report["with a long caption"], report["without a short caption"]) == (10, 5, 1)
    assert set(report["before"]) == set(report["after"]) == {"image to text R@1", "text to image R@1"}
    processor = AutoProcessor.from_pretrained(llava)
    again = VladvaEncoder.load(
        AutoModelForImageTextToText.from_pretrained(llava).eval(), processor, out / "adapter.safetensors"
    )
    merged = AutoModelForImageTextToText.from_pretrained(out / "merged")
    layer = "model.language_model.layers.0.mlp.up_proj"
    change = merged.get_submodule(layer).weight - again.model.lvlm.get_submodule(layer).base.weight
    assert change.abs().max() > 0
    code, _, error = run(capsys, *settings(pairs, llava, out))
    assert code == 2
    assert "finished run" in error


def test_a_broken_picture_is_named(pairs, llava, tmp_path, capsys):
    (tmp_path / "3.png").write_bytes(b"no picture")
    code, text, error = run(capsys, *settings(pairs, llava, tmp_path / "out"))
    assert code == 1
    assert "3.png" in error
    assert "on 2 held-out pairs" in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "nowhere.jsonl"], "no such file"),
        (["--batch-size", 9], "lower --batch-size"),
        (["--batch-size", 1], "batch_size=1"),
        (["--held-out", 1.0], "held_out=1.0"),
        (["--rank", 0], "rank=0"),
        (["--model", "nano-clip"], "give a LLaVA-family model"),
    ],
)
def test_bad_input_is_one_line_and_code_2(more, message, pairs, llava, tmp_path, capsys):
    code, _, error = run(capsys, *settings(pairs, llava, tmp_path / "out"), *more)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "line 1: not JSON"), ("[]", 'needs "image"'), ('{"image": "0.png", "captions": []}', 'needs "caption"')],
)
def test_a_bad_line_is_named(line, message, pairs, llava, tmp_path, capsys):
    pairs.write_text(f"{line}\n")
    code, _, error = run(capsys, *settings(pairs, llava, tmp_path / "out"))
    assert code == 2
    assert message in error
