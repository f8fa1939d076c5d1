"""The checkpoints in the package: small, whole, of standard classes, with a card that is about them."""

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from foveal import zoo
from foveal.data import world
from foveal.zoo import nano
from foveal.zoo.nano.clip import ClipTraining
from foveal.zoo.nano.llava import LlavaTraining
from foveal.zoo.nano.sd import SdTraining
from foveal.zoo.nano.training import digest

DOCS = Path(__file__).parents[2] / "docs"
SHIPPED = [name for name in nano.CLASSES if (nano.WEIGHTS / name).is_dir()]
MEGABYTES = 12
SETTINGS = {"nano-clip": ClipTraining(), "nano-llava": LlavaTraining(), "nano-sd": SdTraining()}


def record(name):
    return json.loads((nano.folder(name) / "training.json").read_text(encoding="utf-8"))


def test_all_are_shipped():
    assert set(SHIPPED) == set(nano.CLASSES)


@pytest.mark.parametrize("name", SHIPPED)
def test_files_are_small_and_those_that_were_trained(name):
    folder = nano.folder(name)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"training.json"}
    assert sum((folder / file).stat().st_size for file in files) <= MEGABYTES * 1e6
    assert files == set(record(name)["files"])
    for file, expected in record(name)["files"].items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == expected
    assert not [file for file in files if Path(file).suffix in (".bin", ".pt", ".pth", ".pkl")]


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "nano-sd"])
def test_the_auto_classes_read_them(name):
    folder = nano.folder(name)
    auto = AutoModel if name == "nano-clip" else AutoModelForImageTextToText
    model, processor = auto.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert type(model).__name__ == nano.CLASSES[name][1]
    assert type(processor).__name__ == nano.CLASSES[name][2]


@pytest.mark.parametrize("name", SHIPPED)
def test_foveal_train_would_make_this_one_again(name):
    config = record(name)["config"]
    if name != "nano-clip":
        assert config.pop("nano-clip") == digest(nano.folder("nano-clip"))
    assert config == json.loads(json.dumps(asdict(SETTINGS[name])))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_card_is_about_this_checkpoint(name):
    card = (DOCS / "models" / f"{name}.md").read_text(encoding="utf-8")
    weights = [hashed for file, hashed in record(name)["files"].items() if file.endswith(".safetensors")]
    assert weights
    assert all(hashed in card for hashed in weights)


def test_nano_clip_tells_pictures_apart():
    """A handful of scenes of one large thing among four names: far above chance, or something is broken."""
    names = ("car", "banana", "cat", "tree")
    config = world.WorldConfig(size=96, sizes=("large",), depth=(3.0, 3.2), tint=0.0, min_visible=0.9)
    shown = world.classify(1_000_123, 24, names, config)
    clip = zoo.load("nano-clip")
    texts = [f"a picture of a {name}" for name in names]
    inputs = clip.processor(text=texts, images=list(shown.images), return_tensors="pt", padding=True)
    with torch.no_grad():
        found = clip.model(**inputs).logits_per_image.argmax(1)
    assert (found == torch.from_numpy(shown.labels)).float().mean() > 0.6


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", (DOCS / "models.md").read_text(), re.DOTALL))
def test_the_page_of_the_models_runs(block):
    exec(compile(block, "docs/models.md", "exec"), {})


@pytest.mark.skipif("nano-sd" not in SHIPPED, reason="this version ships no nano-sd")
def test_nano_sd_hears_the_prompt():
    """The same noise and other words make another picture."""
    pipeline = zoo.load("nano-sd")
    red, blue = (
        pipeline(
            f"a {colour} circle on a plain background",
            num_inference_steps=8,
            guidance_scale=5.0,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images[0]
        for colour in ("red", "blue")
    )
    assert red.shape == (3, 64, 64)
    tint = (red - blue).mean((1, 2))
    assert tint[0] > tint[2]
