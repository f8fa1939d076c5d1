import json

import pytest
import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file
from torch import nn

from foveal.adapt.svfit import apply_svfit, svfit_state_dict
from foveal.adapt.svfit_peft import SVFitConfig, SVFitLayer

from .svfit_models import MODELS, TARGETS, tiny

HAVE_PEFT = [name for name in MODELS if name != "unet"]


def close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    assert float((actual.detach().double() - expected.detach().double()).abs().max()) <= tolerance


def layers(model):
    return [module for module in model.modules() if isinstance(module, SVFitLayer)]


def wrapped(name, **options):
    case = tiny(name)
    return case, get_peft_model(case.model, SVFitConfig(**{"target_modules": list(TARGETS), "rank": 5, **options}))


def changed(model, by=1.5):
    with torch.no_grad():
        for layer in layers(model):
            layer.svfit_sigma["default"] *= by
    return model


def test_the_method_is_one_of_pefts():
    assert PeftType("SVFIT") is PeftType.SVFIT
    assert PeftType.SVFIT.value == "SVFIT"
    assert PeftType.SVFIT in list(PeftType)


@pytest.mark.parametrize("name", HAVE_PEFT)
def test_real_models(name, tmp_path):
    base = tiny(name)()
    case, model = wrapped(name)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == len(layers(model)) == case.layers
    assert all(n.endswith("svfit_sigma.default") for n in trained)
    close(case(), base, 0)
    case().square().mean().backward()
    assert all(layer.svfit_sigma["default"].grad is not None for layer in layers(model))
    changed(model)
    adapted = case()
    assert float((adapted - base).detach().abs().max()) > 1e-4
    with model.disable_adapter():
        close(case(), base, 0)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == case.layers
    assert {tuple(value.shape) for value in saved.values()} == {(5,)}
    again = tiny(name)
    PeftModel.from_pretrained(again.model, tmp_path).eval()
    close(again(), adapted)
    plain = model.merge_and_unload()
    assert plain is case.model
    close(case(), adapted)
    plain.save_pretrained(tmp_path / "plain")
    loaded = type(plain).from_pretrained(tmp_path / "plain").eval()
    assert not layers(loaded)
    case.model.load_state_dict(loaded.state_dict())
    close(case(), adapted)


def test_it_is_the_same_map_as_the_plain_layers():
    case, model = wrapped("llama", rank=None)
    changed(model)
    other = tiny("llama")
    apply_svfit(other.model, TARGETS)
    with torch.no_grad():
        for name, value in svfit_state_dict(other.model).items():
            other.model.get_parameter(name).copy_(1.5 * value)
    close(other(), case())
    assert [layer.svfit_sigma["default"].shape for layer in layers(model)] == [
        value.shape for value in svfit_state_dict(other.model).values()
    ]


def test_diffusers_names():
    """A UNet takes the adapter in place, as diffusers' own loaders do."""
    base, case = tiny("unet")(), tiny("unet")
    inject_adapter_in_model(SVFitConfig(target_modules=["to_q", "to_v"]), case.model)
    assert len(layers(case.model)) == case.layers
    close(case(), base, 0)
    changed(case.model)
    assert float((case() - base).detach().abs().max()) > 1e-4


def test_ranks_are_saved_and_loading_does_not_choose(tmp_path):
    _, model = wrapped("llama", rank=None, energy=0.8)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "SVFIT"
    assert len(config["ranks"]) == 4
    assert isinstance(PeftConfig.from_pretrained(tmp_path), SVFitConfig)
    base = tiny("llama").model
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.01)  # another base model: other spectra
    again = PeftModel.from_pretrained(base, tmp_path)
    ranks = [len(layer.svfit_sigma["default"]) for layer in layers(again)]
    assert ranks == list(config["ranks"].values())


def test_factors_are_saved_when_asked_for(tmp_path):
    case, model = wrapped("llama", deterministic_factors=True)
    for layer in layers(model):
        layer.svfit_u["default"] *= -1  # as another SVD might have it
        layer.svfit_vh["default"] *= -1
    changed(model).save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 4 * case.layers
    again = tiny("llama")
    loaded = PeftModel.from_pretrained(again.model, tmp_path)
    close(again(), case())
    for one, two in zip(layers(loaded), layers(model), strict=True):
        close(one.svfit_u["default"], two.svfit_u["default"], 0)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_two_adapters(tmp_path, low_cpu_mem_usage):
    case, model = wrapped("llama")
    changed(model).save_pretrained(tmp_path)
    adapted = case()
    model.add_adapter("other", SVFitConfig(target_modules=["v_proj"], rank=2))
    model.load_adapter(tmp_path, "loaded", low_cpu_mem_usage=low_cpu_mem_usage)
    model.set_adapter("loaded")
    close(case(), adapted)
    model.set_adapter("other")
    close(case(), tiny("llama")())
    assert {n.rsplit(".", 1)[1] for n, p in model.named_parameters() if p.requires_grad} == {"other"}
    model.delete_adapter("other")
    assert set(get_peft_model_state_dict(model, adapter_name="loaded"))


def test_merging_and_taking_out_again():
    case, model = wrapped("gpt2")
    base, adapted = tiny("gpt2")(), changed(model) and case()
    model.merge_adapter()
    close(case(), adapted)
    model.unmerge_adapter()
    close(case(), adapted)
    with model.disable_adapter():
        close(case(), base)
    changed(model, torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        model.merge_adapter(safe_merge=True)
    with model.disable_adapter():
        close(case(), base)


def test_a_head_is_saved_with_the_adapter(tmp_path):
    case, model = wrapped("llama", modules_to_save=["lm_head"])
    with torch.no_grad():
        for name, parameter in changed(model).named_parameters():
            if "modules_to_save" in name:
                parameter.add_(1)
    model.save_pretrained(tmp_path)
    again = tiny("llama")
    PeftModel.from_pretrained(again.model, tmp_path).eval()
    close(again(), case())


def test_targets_of_known_models():
    for name in ("llama", "roberta", "gpt2", "vit", "clip"):
        case = tiny(name)
        assert len(layers(get_peft_model(case.model, SVFitConfig(rank=1)))) == case.layers


def test_half_precision():
    case = tiny("llama")
    case.model.bfloat16()
    before = case()
    model = get_peft_model(case.model, SVFitConfig(rank=4))
    assert layers(model)[0].svfit_sigma["default"].dtype == torch.float32  # peft trains in full precision
    close(case(), before, 0)
    adapted = changed(model) and case()
    model.merge_and_unload()
    close(case(), adapted, 0.05)
    assert case.model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rank": 0}, "rank=0"), ({"energy": 0.0}, "energy=0.0"), ({"power": -1}, "power=-1")],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        SVFitConfig(**options)


def test_bad_targets():
    with pytest.raises(ValueError, match="Embedding"):
        get_peft_model(tiny("llama").model, SVFitConfig(target_modules=["embed_tokens"]))
    with pytest.raises(ValueError, match="not found"):
        get_peft_model(tiny("llama").model, SVFitConfig(target_modules=["query"]))
    assert isinstance(tiny("llama").model.model.embed_tokens, nn.Embedding)
