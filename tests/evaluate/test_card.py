"""The model card says what the two files say, and nothing else."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from foveal.evaluate.card import card_files, curves_figure, read_record
from foveal.evaluate.tasks.generation import png_text

RECORD = {
    "name": "nano-clip",
    "command": "foveal train nano-clip",
    "config": {"steps": 1400, "width": 128},
    "data": "Scenes of the world.",
    "limits": "Knows no photographs.",
    "licence": "Apache-2.0",
    "attribution": "Twemoji by Twitter",
    "seconds": 4980.0,
    "curves": {"loss": [[25, 3.0], [50, 2.0]], "regions": [[25, 4.0], [50, 2.5]]},
    "files": {"model.safetensors": "ab" * 32, "config.json": "cd" * 32},
    "versions": {"torch": "2.13"},
    "machine": "x86_64, 2 cores",
}
METRIC = {"value": 0.815, "low": 0.79, "high": 0.84, "chance": 0.001, "n": 1000, "better": "higher", "unit": "share"}
LENGTH = {"value": 12.345, "low": 12.0, "high": 13.0, "chance": None, "n": 9, "better": "neither", "unit": "words"}
RESULT = {
    "model": {
        "name": "nano-clip",
        "kind": "dual encoder",
        "class_name": "CLIPModel",
        "parameters": 2_500_000,
        "weight_bytes": 5 * 2**20,
        "settings": {},
    },
    "seed": 3,
    "n": None,
    "tasks": {
        "world-retrieval": {"summary": "find it", "scorer": "rank", "metrics": {"R@1": METRIC, "length": LENGTH}}
    },
    "versions": {"foveal": "0.1.0"},
}


def test_what_the_card_says():
    files = card_files("nano-clip", RESULT, RECORD)
    assert list(files) == ["nano-clip-curves.png", "nano-clip.md"]
    text = files["nano-clip.md"].decode()
    for said in (
        "# nano-clip",
        "2,500,000 parameters",
        "5.0 MB",
        "zoo.load('nano-clip')",
        "| world-retrieval | R@1 | 81.5% | 79.0% – 84.0% | 0.1% | 1,000 |",
        "| world-retrieval | length | 12.35 words | 12.00 words – 13.00 words |  | 9 |",
        "foveal train nano-clip",
        '"steps": 1400',
        "1 h 23 min",
        "x86_64, 2 cores",
        "Scenes of the world.",
        "Apache-2.0",
        "Twemoji by Twitter",
        "Knows no photographs.",
        "abab",
        "Seed 3",
        "![training curves](nano-clip-curves.png)",
    ):
        assert said in text
    assert "`foveal eval nano-clip --card`" in text
    assert files == card_files("nano-clip", RESULT, RECORD)


def test_samples_of_a_generator():
    rng = np.random.default_rng(0)
    pictures = [(f"prompt {i}", png_text(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))) for i in range(7)]
    result = {**RESULT, "model": {**RESULT["model"], "kind": "text-to-image", "settings": {"steps": 30}}}
    files = card_files("sd", result, {**RECORD, "curves": {}}, pictures)
    assert list(files) == ["sd-samples.png", "sd.md"]
    with Image.open(io.BytesIO(files["sd-samples.png"])) as sheet:
        assert sheet.size == (6 * 132 - 4, 2 * 132 - 4)
        assert sheet.getpixel((0, 0)) == tuple(_first(pictures))
    text = files["sd.md"].decode()
    assert "prompt 0; prompt 1" in text
    assert "steps 30" in text
    assert "curves" not in text


def _first(pictures):
    from foveal.evaluate.tasks.generation import image_of

    return image_of(pictures[0][1])[0, 0].tolist()


def test_curves_are_drawn():
    with Image.open(io.BytesIO(curves_figure({f"curve {i}": [[1, 2.0], [2, 1.0]] for i in range(4)}))) as drawn:
        assert drawn.size == (round(3 * 3.2 * 120), round(2 * 2.4 * 120))
        assert len(drawn.convert("RGB").getcolors(1_000_000)) > 10


def test_a_folder_without_a_record(tmp_path):
    with pytest.raises(ValueError, match="foveal train"):
        read_record(tmp_path)
    (tmp_path / "training.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(ValueError, match="lacks attribution, command"):
        read_record(tmp_path)
    (tmp_path / "training.json").write_text(json.dumps(RECORD))
    assert read_record(tmp_path) == RECORD
