"""`foveal adapt svfit` on a tiny CLIP and a tiny ViT."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import CLIPModel, ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel

import foveal.adapt.svfit_peft
from foveal.cli._adapt_svfit_pictures import split

from .adapting import call, coloured

COLOURS = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230)}


def run(capsys, *arguments):
    return call(capsys, "svfit", *arguments)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    """A folder for each colour with six noisy pictures of it, and one picture that is none."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            coloured(colour, 20, rng).save(tmp_path / "photos" / name / f"{number}.png")
    (tmp_path / "photos" / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return tmp_path / "photos"


def test_a_clip_stays_one(clip, photos, tmp_path, capsys):
    out = tmp_path / "out"
    settings = ["--model", clip, "--data", photos, "-o", out, "--merge", "--steps", 3, "--batch-size", 6]
    code, text, error = run(capsys, *settings, "--json")
    assert code == 0, error
    report = json.loads(text)
    assert report["classes"] == ["blue", "green", "red"]
    assert report["pictures"] == {"train": 12, "held out": 6}
    assert sum(report["skipped"].values()) == 1
    assert 0 <= report["before"]["accuracy"] <= 100
    assert json.loads((out / "report.json").read_text()) == report
    assert sorted(path.name for path in out.iterdir()) == ["adapter", "classes.json", "model", "report.json"]
    base = CLIPModel.from_pretrained(clip)
    numbers = sum(
        p.numel() for n, p in base.vision_model.named_parameters() if n.endswith(("q_proj.bias", "v_proj.bias"))
    )
    assert 0 < report["parameters"]["trained"] <= numbers < report["parameters"]["lora of rank 8"]
    merged, adapted = CLIPModel.from_pretrained(out / "model"), PeftModel.from_pretrained(base, out / "adapter")
    size = merged.config.vision_config.image_size
    pixels = torch.linspace(-1, 1, 3 * size**2).reshape(1, 3, size, size)
    features = [m.get_image_features(pixel_values=pixels).pooler_output for m in (merged, adapted)]
    torch.testing.assert_close(*features)
    plain = CLIPModel.from_pretrained(clip)
    moved = plain.get_image_features(pixel_values=pixels).pooler_output - features[0]
    assert float(moved.detach().abs().max()) > 1e-5
    texts = {n: p for n, p in merged.state_dict().items() if n.startswith("text_model")}
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in texts.items())


def test_a_vit_gets_a_head(vit, photos, tmp_path, capsys):
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in sorted(photos.rglob("[0-9].png"))]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["image,label", *rows]))
    out = tmp_path / "out"
    settings = ["--model", vit, "--data", table, "-o", out, "--merge", "--steps", 4, "--rank", 3]
    code, text, error = run(capsys, *settings)
    assert code == 0, error
    assert "before: its new classifier alone" in text
    assert "12 of" in text  # 2 blocks, query and value, 3 numbers each
    model = ViTForImageClassification.from_pretrained(out / "model")
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    assert ViTImageProcessor.from_pretrained(out / "model").size == {"height": 16, "width": 16}


def test_split_by_class():
    labels = [0] * 8 + [1] * 2
    train, held = split(labels, 0.25, seed=0)
    assert sorted(train + held) == list(range(10))
    assert [labels[row] for row in held] == [0, 0, 1]
    assert split(labels, 0.25, seed=0) == (train, held) != split(labels, 0.25, seed=1)
    assert [labels[row] for row in split(labels, 0.99, seed=0)[0]] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--data", "one.csv"], "at least two"),
        (["--data", "few.csv"], "one readable picture only of b"),
        (["--data", "twice.csv"], "is a above and b here"),
        (["--data", "columns.csv"], "image and label"),
        (["--data", "blank.csv"], "line 2"),
        (["--data", "photos", "-o", "photos"], "exists already"),
        (["--data", "photos", "--held-out", 1.0], "held_out=1.0"),
        (["--data", "photos", "--energy", 2.0], "energy=2.0"),
        (["--data", "photos", "--rank", 0], "rank=0"),
        (["--data", "photos", "--steps", 0], "steps=0"),
        (["--data", "photos", "--template", "x"], "template='x'"),
        (["--data", "photos", "--model", "no-model"], "no-model"),
        (["--data", "photos", "--model", "nano-llava"], "vision-language"),
        (["--data", "photos", "--targets", "qkv"], "qkv"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, message, clip, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    red = [f"photos/red/{number}.png" for number in range(4)]
    tables = {
        "one": f"image,label\n{red[0]},a\n{red[1]},a\n",
        "few": f"image,label\n{red[0]},a\n{red[1]},a\n{red[2]},b\n",
        "twice": f"image,label\n{red[0]},a\n{red[0]},b\n",
        "columns": f"picture,class\n{red[0]},a\n",
        "blank": f"image,label\n{red[0]},\n",
    }
    for name, text in tables.items():
        (tmp_path / f"{name}.csv").write_text(text)
    given = arguments if "--model" in arguments else [*arguments, "--model", clip]
    code, _, error = run(capsys, *given, *([] if "-o" in arguments else ["-o", "out"]))
    assert (code, len(error.strip().splitlines())) == (2, 1), error
    assert message in error
    assert not (tmp_path / "out").exists()
    assert foveal.adapt.svfit_peft.SVFIT == "SVFIT"
