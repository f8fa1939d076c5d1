import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from foveal.decode.damro import (
    DamroLogitsProcessor,
    cls_attention,
    damro_logits,
    outlier_branch_inputs,
    outlier_indices,
)

from .contract import outliers_only, tower_of
from .tiny import CONFIGS, IMAGE, PROMPTS, TEXT, VISION, Prompt, batch, model

torch.set_num_threads(1)
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "golden/damro.npz").items()}


def given(kind, prompts=PROMPTS, **change):
    inputs = {**batch(kind, prompts), **change}
    names = ("input_ids", "pixel_values", "attention_mask", "image_sizes")
    return {name: inputs[name] for name in names if inputs.get(name) is not None}


# Attention ------------------------------------------------------------------------------------------------------------


def test_golden():
    query, key = GOLDEN["cls__query"], GOLDEN["cls__key"]
    merged = cls_attention(query, key)
    torch.testing.assert_close(merged, GOLDEN["cls__merged"])
    torch.testing.assert_close(cls_attention(query, key, int(GOLDEN["cls__heads"])), GOLDEN["cls__mean"])
    assert torch.equal(outlier_indices(merged, int(GOLDEN["cls__k"])), GOLDEN["cls__index"])
    mixed = damro_logits(GOLDEN["contrast__logits"], GOLDEN["contrast__other"])
    torch.testing.assert_close(mixed, GOLDEN["contrast__expected"])


def test_mean_over_heads_is_the_attention_of_the_eager_kernel():
    eager = model("llava", attention="eager")
    pixels = batch("llava")["pixel_values"]
    weights = eager.model.vision_tower(pixels, output_attentions=True, return_dict=True).attentions[-2]
    caught = {}
    attention = tower_of(eager).encoder.layers[-2].self_attn
    for name in ("q_proj", "k_proj"):
        hook = getattr(attention, name).register_forward_hook(
            lambda module, args, output, name=name: caught.update({name: output})
        )
        eager.model.vision_tower(pixels)
        hook.remove()
    mean = cls_attention(caught["q_proj"], caught["k_proj"], 2)
    torch.testing.assert_close(mean, weights.mean(1)[:, 0, 1:])


def test_indices_go_down_and_are_not_sorted_by_place():
    attended = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    assert outlier_indices(attended, 3).tolist() == [[1, 3, 2]]
    assert outlier_indices(attended, 4).dtype == torch.int64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cls_attention(torch.zeros(1, 5, 8), torch.zeros(1, 6, 8)), r"\(1, 5, 8\) and key \(1, 6, 8\)"),
        (lambda: cls_attention(torch.zeros(5, 8), torch.zeros(5, 8)), "alike"),
        (lambda: cls_attention(torch.zeros(1, 1, 8), torch.zeros(1, 1, 8)), "N > 0"),
        (lambda: cls_attention(torch.zeros(1, 5, 8), torch.zeros(1, 5, 8), 3), "num_heads=3"),
        (lambda: cls_attention(torch.zeros(1, 5, 8), torch.zeros(1, 5, 8), 0), "num_heads=0"),
        (lambda: cls_attention(torch.full((1, 5, 8), math.nan), torch.zeros(1, 5, 8)), "NaN"),
        (lambda: outlier_indices(torch.tensor([[math.nan, 1.0]]), 1), "NaN"),
        (lambda: outlier_indices(torch.zeros(1, 4), 0), "k=0"),
        (lambda: outlier_indices(torch.zeros(1, 4), 5), "k=5"),
        (lambda: outlier_indices(torch.zeros(4), 2), "k=2"),
        (lambda: damro_logits(torch.zeros(1, 4), torch.zeros(1, 4), alpha=-0.5), "alpha=-0.5"),
        (lambda: damro_logits(torch.zeros(1, 4), torch.zeros(1, 4), beta=2), "beta=2"),
        (lambda: damro_logits(torch.zeros(1, 4), torch.zeros(2, 4)), r"\(2, 4\)"),
    ],
)
def test_bad_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Prompts of outliers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llava", "llava-next", "internvl"])
def test_prompts(kind):
    """Two pictures next to each other, a padded row, and the same features in the same order as worked out by hand."""
    found = outlier_branch_inputs(model(kind), **given(kind), top_k=3)
    expected = [outliers_only(model(kind), batch(kind, (prompt,)))[0]["inputs_embeds"][0] for prompt in PROMPTS]
    for row, embeds in enumerate(expected):
        padding = found["inputs_embeds"].shape[1] - len(embeds)
        assert found["attention_mask"][row].tolist() == [0] * padding + [1] * len(embeds)
        torch.testing.assert_close(found["inputs_embeds"][row, padding:], embeds)
        assert not found["inputs_embeds"][row, :padding].any()
    per_image = 4 if kind == "llava-next" else 3
    tags = 2 if kind == "internvl" else 0
    assert list(map(len, expected)) == [5 + per_image + tags, 6 + 2 * (per_image + tags)]


def test_both_readings_differ():
    merged, mean = (
        outlier_branch_inputs(model("llava"), **given("llava"), top_k=8, heads=heads) for heads in ("merged", "mean")
    )
    assert not torch.equal(merged["inputs_embeds"], mean["inputs_embeds"])


def test_a_row_without_picture_stays_text():
    prompts = (Prompt((5, 6), (), (7,)), PROMPTS[0])
    found = outlier_branch_inputs(model("llava"), **given("llava", prompts), top_k=2)
    assert found["attention_mask"].sum(-1).tolist() == [3, 7]
    words = model("llava").get_input_embeddings()(torch.tensor([5, 6, 7]))
    torch.testing.assert_close(found["inputs_embeds"][0, -3:], words)


def test_all_tokens_kept_are_the_image_itself():
    """Every outlier: the plain prompt, only in another order."""
    host, inputs = model("llava"), given("llava")
    found = outlier_branch_inputs(host, **inputs, top_k=16)
    plain = host.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
    place = int((inputs["input_ids"][0] == IMAGE).nonzero()[0])
    shuffled = found["inputs_embeds"][0, place : place + 16]
    assert sorted(shuffled.sum(-1).tolist()) == pytest.approx(sorted(plain[0].sum(-1).tolist()), abs=1e-5)
    assert torch.equal(found["attention_mask"], inputs["attention_mask"])


def test_internvl_in_tiles_takes_the_thumbnail():
    """The processor puts it last."""
    host = model("internvl")
    pixels = batch("internvl")["pixel_values"]
    ids = torch.tensor([[5, 58, *[IMAGE] * 12, 59, 6]])
    tiled = outlier_branch_inputs(host, ids, pixels, top_k=2)
    alone = outlier_branch_inputs(host, torch.tensor([[5, 58, *[IMAGE] * 4, 59, 6]]), pixels[2:], top_k=2)
    torch.testing.assert_close(tiled["inputs_embeds"], alone["inputs_embeds"])


def test_features_with_the_cls_token():
    host = copy.deepcopy(model("llava"))
    host.config.vision_feature_select_strategy = "full"
    ids = torch.tensor([[5, *[IMAGE] * 17, 6]])
    pixels = batch("llava")["pixel_values"][:1]
    full = outlier_branch_inputs(host, ids, pixels, top_k=3)
    patches = outlier_branch_inputs(model("llava"), torch.tensor([[5, *[IMAGE] * 16, 6]]), pixels, top_k=3)
    torch.testing.assert_close(full["inputs_embeds"], patches["inputs_embeds"])


@pytest.mark.parametrize("layer", [-1, -3, 1, 2])
def test_the_block_whose_output_is_used(layer):
    host = copy.deepcopy(model("llava"))
    host.config.vision_feature_layer = layer
    seen = []
    for block in tower_of(host).encoder.layers:
        block.self_attn.q_proj.register_forward_hook(lambda module, *_: seen.append(len(module._forward_hooks)))
    outlier_branch_inputs(host, **given("llava"), top_k=2)
    block = layer if layer < 0 else layer - 1
    assert seen[block] == 2
    assert sum(seen) == 4


def test_one_pass_of_the_encoder():
    host, calls = copy.deepcopy(model("llava-next")), []
    host.model.vision_tower.register_forward_pre_hook(lambda *_: calls.append(1))
    DamroLogitsProcessor(host, **given("llava-next"), top_k=2)
    assert len(calls) == 1


# Errors ---------------------------------------------------------------------------------------------------------------


def siglip():
    vision = {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False}
    text = {"model_type": "llama", **TEXT}
    return transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_select_strategy="full"
    )


@pytest.mark.parametrize("kind", sorted(set(CONFIGS) - {"llava", "llava-next", "internvl"}))
def test_classes_without_patches_of_their_own(kind):
    with pytest.raises(ValueError, match=f"{type(model(kind)).__name__}.*here take Debias.*Agla"):
        DamroLogitsProcessor(model(kind), **given(kind))


def test_a_tower_without_cls():
    host = transformers.LlavaForConditionalGeneration(siglip())
    with pytest.raises(ValueError, match=r"Siglip.*no CLS.*here take"):
        DamroLogitsProcessor(host, **given("llava"))


@pytest.mark.parametrize("layer", [0, 4, -4, [-1, -2]])
def test_a_layer_that_is_no_block(layer):
    host = copy.deepcopy(model("llava"))
    host.config.vision_feature_layer = layer
    with pytest.raises(ValueError, match="vision_feature_layer="):
        DamroLogitsProcessor(host, **given("llava"))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llava", {"pixel_values": batch("llava")["pixel_values"][:2]}, "32 image tokens"),
        ("llava", {"pixel_values": batch("llava")["pixel_values"][[0, 1, 2, 0]]}, "64 image tokens"),
        ("llava", {"input_ids": batch("llava")["input_ids"][:, 1:]}, r"attention_mask"),
        ("internvl", {"pixel_values": batch("internvl")["pixel_values"][:2]}, "8 image tokens"),
        ("internvl", {"pixel_values": batch("internvl")["pixel_values"][[0, 1, 2, 0]]}, "16 image tokens"),
        ("internvl", {"input_ids": batch("internvl")["input_ids"].index_fill(1, torch.tensor([5]), 7)}, "image tokens"),
        ("llava-next", {"image_sizes": None}, "image_sizes=None"),
    ],
)
def test_prompts_and_pictures_that_do_not_fit(kind, change, message):
    with pytest.raises(ValueError, match=message):
        outlier_branch_inputs(model(kind), **given(kind, **change), top_k=2)
