"""`foveal train clip-like` on a tiny model of the real class, with shards, a folder and COCO captions."""

import io
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AlignConfig,
    AlignModel,
    AlignTextConfig,
    AlignVisionConfig,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from foveal.cli import main
from foveal.data.record import Region, Sample
from foveal.data.webdataset import write_shards
from foveal.recipes._clip_learners_all import LEARNERS
from foveal.zoo.nano.bpe import clip_tokenizer

WORDS = ("red", "green", "blue", "black")


def run(capsys, *arguments):
    """Exit code, standard output and standard error of ``foveal train clip-like ...``."""
    try:
        main(["train", "clip-like", *map(str, arguments)])
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A CLIPModel, an AlignModel and a CLIPVisionModel, saved with a processor."""
    place = tmp_path_factory.mktemp("models")
    words = clip_tokenizer([f"a {word} picture of a thing" for word in WORDS], 600, 16)
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = CLIPProcessor(images, words)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": len(words), "eos_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id}
    text = {**small, **ids, "pad_token_id": words.pad_token_id, "max_position_embeddings": 16}
    vision = {**small, "image_size": 16, "patch_size": 4}
    align_vision = AlignVisionConfig(
        image_size=16, width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=16, pooling_type="mean",
        kernel_sizes=[3], in_channels=[8], out_channels=[16], strides=[2], num_block_repeats=[1], expand_ratios=[1],
        depthwise_padding=[],
    )  # fmt: skip
    torch.manual_seed(0)
    models = {
        "clip": CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)),
        "align": AlignModel(
            AlignConfig(
                text_config=AlignTextConfig(**small, vocab_size=len(words), max_position_embeddings=16).to_dict(),
                vision_config=align_vision.to_dict(),
                projection_dim=8,
            )
        ),
        "vision": CLIPVisionModel(CLIPVisionConfig(**vision)),
    }
    for name, model in models.items():
        model.save_pretrained(place / name)
        processor.save_pretrained(place / name)
    return place


def pictured(i, captions=None, labels=(), regions=()):
    picture = np.full((20, 28, 3), 40, np.uint8)
    picture[:, :, i % 3] = 60 * (i % 4)
    word = WORDS[i % 4]
    captions = (
        (f"a {word} thing", f"it is {word}. a picture of a thing. a {word} one") if captions is None else captions
    )
    return Sample(f"{i:03d}", (picture,), captions, labels, regions)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Captions, sentences, regions in two of three samples; every fifth has a class alone."""
    samples = []
    for i in range(40):
        regions = (Region((4.0, 2.0, 18.0, 16.0), label=WORDS[i % 4]),) if i % 3 else ()
        samples.append(pictured(i, (), (WORDS[i % 4],)) if i % 5 == 0 else pictured(i, regions=regions))
    return write_shards(samples, str(tmp_path_factory.mktemp("shards") / "%d.tar"), 20)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """What anybody writes with webdataset: one short caption, no regions, no classes; one caption is blank."""
    path = tmp_path_factory.mktemp("foreign") / "plain.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(24):
            picture = io.BytesIO()
            Image.fromarray(pictured(i).image).save(picture, "jpeg")
            text = " " if i == 3 else f"a {WORDS[i % 4]} thing"
            writer.write({"__key__": f"{i:03d}", "jpg": picture.getvalue(), "txt": text})
    return path


def settings(model, data, out, steps=2):
    given = data if isinstance(data, list) else [data]
    return ["--model", model, "--data", *given, "-o", out, "--steps", steps, "--batch-size", 8, "--lr", 1e-3]


@pytest.mark.parametrize("objective", LEARNERS)
def test_every_objective_changes_the_model(objective, folders, shards, tmp_path, capsys):
    options = settings(folders / "clip", shards, tmp_path / "out")
    code, text, error = run(capsys, "--objective", objective, *options)
    assert code == 0, error
    assert text.splitlines()[-1] == str(tmp_path / "out")
    before, after = (CLIPModel.from_pretrained(place) for place in (folders / "clip", tmp_path / "out"))
    moved = {name for name, weight in after.state_dict().items() if not torch.equal(weight, before.state_dict()[name])}
    assert any(name.startswith("vision_model.encoder") for name in moved)
    assert any(name.startswith("text_model.encoder") for name in moved)
    CLIPProcessor.from_pretrained(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["config"]["objective"] == objective
    beside = tmp_path / "out" / "objective.safetensors"
    assert beside.is_file() == (objective in ("dreamlip", "prefix_conditioning", "cloc", "grain", "dito", "m3i"))
    if beside.is_file():
        assert not [name for name in load_file(beside) if name.startswith("model.")]


def test_align_on_its_own_towers(folders, shards, tmp_path, capsys):
    code, _, error = run(capsys, "--objective", "align", *settings(folders / "align", shards, tmp_path / "out"))
    assert code == 0, error
    before, after = (AlignModel.from_pretrained(place) for place in (folders / "align", tmp_path / "out"))
    assert not torch.equal(before.text_projection.weight, after.text_projection.weight)


def test_a_folder_and_coco_captions(folders, tmp_path, capsys):
    place = tmp_path / "pictures"
    place.mkdir()
    images, annotations = [], []
    for i in range(12):
        Image.fromarray(pictured(i).image).save(place / f"{i:02d}.png")
        (place / f"{i:02d}.txt").write_text(f"a {WORDS[i % 4]} thing")
        images.append({"id": i, "file_name": f"{i:02d}.png"})
        annotations.append({"image_id": i, "caption": f"a {WORDS[i % 4]} thing"})
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"images": images, "annotations": annotations}))
    found = []
    for name, data in (("folder", [place]), ("coco", [captions, "--images", place])):
        code, text, error = run(
            capsys, "--objective", "clip", *settings(folders / "clip", data, tmp_path / name), "--json"
        )
        assert code == 0, error
        found.append(json.loads(text))
    assert len({document["last_loss"] for document in found}) == 1  # the same pictures in the same order
    code, _, error = run(
        capsys, "--objective", "clip", *settings(folders / "clip", place, tmp_path / "big"), "--batch-size", 99
    )
    assert code == 2
    assert "the data has 12 usable samples" in error


def test_shards_of_others(folders, foreign, tmp_path, capsys, caplog):
    code, _, error = run(capsys, "--objective", "filip", *settings(folders / "clip", foreign, tmp_path / "out", 4))
    assert code == 0, error
    assert "neither" in caplog.text or "no text" in caplog.text


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("cloc", "needs boxes"),
        ("grain", "annotate of foveal.pretrain.grain"),
        ("dreamlip", "needs several sentences"),
        ("prefix_conditioning", "needs captioned samples and others that have only a class"),
        ("uniter", "UNITERForPretraining"),
        ("tldr", "foveal curate tldr"),
    ],
)
def test_what_an_objective_needs(objective, message, folders, foreign, tmp_path, capsys):
    code, _, error = run(capsys, "--objective", objective, *settings(folders / "clip", foreign, tmp_path / "out"))
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("objective", "model", "message"),
    [
        ("filip", "align", "needs a CLIPModel, and model="),
        ("align", "vision", "needs a CLIPModel or an AlignModel"),
        ("clip", "nowhere", "is no folder here"),
    ],
)
def test_the_class_of_the_model(objective, model, message, folders, foreign, tmp_path, capsys):
    code, _, error = run(capsys, "--objective", objective, *settings(folders / model, foreign, tmp_path / "out"))
    assert code == 2
    assert message in error


def test_bad_data_and_out(folders, foreign, tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("")
    for data, out, message in (
        (foreign, taken, "choose a new folder"),
        (tmp_path / "x.csv", tmp_path / "a", "no .tar or .json"),
        ([foreign, tmp_path], tmp_path / "b", "give .tar shards, or one folder"),
        (tmp_path / "no.tar", tmp_path / "c", "not one of 1 files exists"),
    ):
        code, _, error = run(capsys, "--objective", "clip", *settings(folders / "clip", data, out))
        assert code == 2
        assert message in error
    code, _, error = run(
        capsys, "--objective", "clip", *settings(folders / "clip", foreign, tmp_path / "d"), "--batch-size", 64
    )
    assert code == 2
    assert "choose a smaller one" in error


@pytest.mark.parametrize("objective", ["m3i", "nevlp"])
def test_killed_and_resumed(objective, folders, shards, tmp_path, capsys):
    """State beside the trained weights (a momentum encoder, the latest losses) is part of the checkpoint."""
    whole = ["--objective", objective, *settings(folders / "clip", shards, tmp_path / "whole", 12)]
    assert run(capsys, *whole)[0] == 0
    options = [*map(str, settings(folders / "clip", shards, tmp_path / "cut", 12)), "--save-every", "1"]
    script = "from foveal.cli import main; main()"
    killed = subprocess.Popen(
        [sys.executable, "-c", script, "train", "clip-like", "--objective", objective, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},  # sums depend on it
    )
    work = tmp_path / ".cut-training"
    deadline = time.monotonic() + 120
    while len(list(work.glob("step-*"))) == 0 or int(sorted(work.glob("step-*"))[-1].name[5:]) < 3:
        assert killed.poll() is None, killed.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    code, text, error = run(capsys, "--objective", objective, *options, "--json")
    assert code == 0, error
    assert 3 <= json.loads(text)["resumed_from"] <= 12
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_training_is_not_mixed_in(folders, foreign, tmp_path, capsys):
    options = settings(folders / "clip", foreign, tmp_path / "out")
    assert run(capsys, "--objective", "clip", *options)[0] == 0
    code, _, error = run(capsys, "--objective", "filip", *options)
    assert code == 2
    assert "objective='filip'" in error
    assert "holds a training with 'clip'" in error


def test_boxes_follow_the_crop():
    from foveal.cli._train_data import centre_square

    sides = Region((0.0, 0.0, 4.0, 20.0), label="left"), Region((4.0, 2.0, 18.0, 16.0), label="mid")
    found = centre_square(pictured(0, regions=sides))
    assert found.image.shape == (20, 20, 3)
    assert [(region.label, region.box) for region in found.regions] == [("mid", (0.0, 2.0, 14.0, 16.0))]


def test_unknown_objective_and_command(folders, foreign, tmp_path, capsys):
    code, *_ = run(capsys, "--objective", "siglip", *settings(folders / "clip", foreign, tmp_path / "out"))
    assert code == 2
    with pytest.raises(SystemExit) as stopped:
        main(["train", "nano-blip"])
    assert stopped.value.code == 2
