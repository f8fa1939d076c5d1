"""Opening models, and what the adapters promise."""

import json
import shutil

import numpy as np
import pytest
import torch

from foveal.evaluate.models import open_model
from foveal.evaluate.models.files import file_digests, weights_digest

RNG = np.random.default_rng(0)
PICTURES = [
    RNG.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((32, 32), (40, 60), (3, 50), (96, 96), (32, 32))
]
TEXTS = ["a dog", "a picture of two small cats", "x", "a dog " * 40, "an owl"]


def test_what_is_said_of_a_model(clip):
    assert (clip.kind, clip.class_name, clip.dtype, clip.device) == ("dual encoder", "CLIPModel", "float32", "cpu")
    assert clip.parameters == sum(p.numel() for p in clip.model.model.parameters())
    assert clip.weight_bytes == (clip.folder / "model.safetensors").stat().st_size
    assert not clip.model.model.training


def test_features_of_a_batch_are_those_of_singles(clip):
    for encode, inputs in ((clip.model.image_features, PICTURES), (clip.model.text_features, TEXTS)):
        together = encode(inputs)
        assert together.shape == (len(inputs), 8)
        assert together.dtype == torch.float32
        alone = torch.cat([encode([one]) for one in inputs])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        clip.model.batch_size, kept = 2, clip.model.batch_size
        torch.testing.assert_close(encode(inputs), together, rtol=1e-4, atol=1e-5)
        clip.model.batch_size = kept


def test_features_that_are_not_finite_are_refused(clip_folder):
    opened = open_model(str(clip_folder))
    with torch.no_grad():
        opened.model.model.visual_projection.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="not finite"):
        opened.model.image_features(PICTURES[:1])


def test_siglip(tmp_path):
    """Features of padded texts: SigLIP reads its last position."""
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipProcessor

    from .tiny import letters_tokenizer

    tokenizer = letters_tokenizer(longest=16)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**size, "vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config={**size, "image_size": 32, "patch_size": 16},
    )
    SiglipModel(config).save_pretrained(tmp_path)
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    SiglipProcessor(images, tokenizer).save_pretrained(tmp_path)
    opened = open_model(str(tmp_path))
    assert opened.kind == "dual encoder"
    assert opened.model.image_features(PICTURES).shape == (5, 16)
    alone, beside = opened.model.text_features(["a dog"]), opened.model.text_features(["a dog", "a longer text"])
    torch.testing.assert_close(alone[0], beside[0])
    inputs = opened.model.tokenizer(["a dog"], padding="max_length", max_length=16, return_tensors="pt")
    expected = opened.model.model.get_text_features(**inputs).pooler_output
    torch.testing.assert_close(alone, expected)


def test_the_digest_is_of_names_and_contents(clip_folder, tmp_path):
    shutil.copytree(clip_folder, tmp_path / "copy")
    copy = tmp_path / "copy"
    assert weights_digest(copy) == weights_digest(clip_folder)
    assert list(file_digests(copy)) == ["model.safetensors"]
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    assert weights_digest(copy) != weights_digest(clip_folder)


def test_models_that_cannot_be_opened(clip_folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="nano-clip"):
        open_model("nano-klip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.safetensors"):
        open_model(str(tmp_path / "empty"))
    other = tmp_path / "bert"
    shutil.copytree(clip_folder, other)
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert' model, which neither"):
        open_model(str(other))
    (other / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(ValueError, match="no model that this transformers knows"):
        open_model(str(other))
    monkeypatch.setattr("huggingface_hub.snapshot_download", _offline)
    with pytest.raises(ValueError, match=r"could not be fetched .* go online once"):
        open_model("somebody/some-model")


def _offline(name, **_):
    from huggingface_hub.errors import LocalEntryNotFoundError

    raise LocalEntryNotFoundError(f"no network to look up {name}")


def test_bad_options(clip_folder):
    for wrong in ({"device": "tpu"}, {"device": "cuda:99"}, {"dtype": "int8"}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            open_model(str(clip_folder), **wrong)
