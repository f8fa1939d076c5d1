"""smol-vl: what is shipped, that it is put together as it was trained, and that it sees."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from foveal import zoo
from foveal.data.world import layout
from foveal.data.world.config import WorldConfig
from foveal.data.world.draw import draw
from foveal.evaluate.models.files import find_folder
from foveal.zoo import nano, smol_vl, smol_vl_training
from foveal.zoo.nano.conversations import Exchange
from foveal.zoo.nano.lessons import Writer
from foveal.zoo.nano.training import digest

RECORD = json.loads((smol_vl.ADAPTER / "training.json").read_text(encoding="utf-8"))
CARD = Path(__file__).parents[2] / "docs" / "models" / "smol-vl.md"


@pytest.fixture(scope="module")
def smol():
    return zoo.load("smol-vl")


def test_the_adapter_is_small_and_the_one_that_was_trained():
    files = {path.name for path in smol_vl.ADAPTER.iterdir()} - {"training.json"}
    assert files == {"adapter_model.safetensors", "adapter_config.json"} == set(RECORD["files"])
    assert sum((smol_vl.ADAPTER / file).stat().st_size for file in files) <= 12e6
    for file, expected in RECORD["files"].items():
        assert hashlib.sha256((smol_vl.ADAPTER / file).read_bytes()).hexdigest() == expected
    card = CARD.read_text(encoding="utf-8")
    assert RECORD["files"]["adapter_model.safetensors"] in card
    assert "`foveal.zoo.smol_vl.folder()`" in card


def test_foveal_train_would_make_this_one_again():
    config = dict(RECORD["config"])
    assert config.pop("nano-llava") == digest(nano.folder("nano-llava"))
    assert config == json.loads(json.dumps(asdict(smol_vl_training.SmolTraining())))


def test_no_adapter_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="foveal train smol-vl"):
        smol_vl.folder(tmp_path)


def test_it_is_the_standard_class(smol):
    folder = smol_vl.folder()
    assert find_folder("smol-vl") == folder
    assert type(AutoModelForImageTextToText.from_pretrained(folder)) is LlavaForConditionalGeneration
    assert AutoProcessor.from_pretrained(folder).chat_template == smol.processor.chat_template
    assert smol.model.config.text_config.num_hidden_layers == 30
    assert sum(p.numel() for p in smol.model.parameters()) == smol_vl.CARD.parameters


def test_the_eyes_are_nano_llavas(smol):
    eyes = zoo.load("nano-llava").model.model.vision_tower.state_dict()
    for name, value in smol.model.model.vision_tower.state_dict().items():
        torch.testing.assert_close(value, eyes[name], atol=0, rtol=0)


def test_lessons_read_as_prompts_do(smol):
    """The tokens that it was trained on are those that the processor makes of the same conversation."""
    writer = Writer(smol.processor, smol.model.config.image_seq_length)
    dialogue = [Exchange("How many dogs are there?", "two", "count"), Exchange("Is there a cat?", "no", "existence")]
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many dogs are there?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
        {"role": "user", "content": [{"type": "text", "text": "Is there a cat?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
    ]
    text = smol.processor.apply_chat_template(turns)
    read = smol.processor(text=text, images=np.zeros((96, 96, 3), np.uint8)).input_ids[0]
    assert list(read) == writer.prefix(1) + writer.branch(dialogue).ids


def test_it_sees(smol):
    """The colour of one big thing, of four colours."""
    colours = ("red", "blue", "green", "yellow")
    clear = WorldConfig(
        size=96, things=(1, 1), nouns=("circle", "square", "star"), sizes=("large",), depth=(2.1, 2.8), tint=0.0
    )
    found = [scene for i in range(60) if (scene := layout.scene(clear, 1_000_321, i)).things[0].colour in colours][:12]
    prompts = [f"USER: <image>\nWhat colour is the {scene.things[0].noun}? ASSISTANT:" for scene in found]
    pictures = [draw(scene, 96).image for scene in found]
    inputs = smol.processor(text=prompts, images=pictures, padding=True, return_tensors="pt")
    ids = smol.model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    told = [text.strip() for text in smol.processor.batch_decode(ids, skip_special_tokens=True)]
    assert np.mean([text == scene.things[0].colour for text, scene in zip(told, found, strict=True)]) > 0.5


def test_training_makes_an_adapter_that_changes_the_language_model_and_the_projector_alone(tmp_path):
    out = smol_vl_training.train(tmp_path / "out", tmp_path / "work", smoke=True)
    assert {path.name for path in out.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "training.json",
    }
    before, _ = smol_vl.assemble()
    merged = PeftModel.from_pretrained(smol_vl.assemble()[0], out).merge_and_unload()
    changed = {
        name.split(".")[1]
        for (name, old), new in zip(before.state_dict().items(), merged.state_dict().values(), strict=True)
        if not torch.equal(old, new)
    }
    assert changed == {"language_model", "multi_modal_projector"}
