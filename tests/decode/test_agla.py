import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import BlipConfig, BlipForImageTextRetrieval

from foveal.decode.agla import (
    AglaLogitsProcessor,
    BlipMatcher,
    adaptive_mask,
    agla_logits,
    augmented_view,
    keep_ratio,
    matching_gradcam,
    smooth_map,
)

from .tiny import batch, model

torch.set_num_threads(1)
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "golden/agla.npz").items()}


def seeded(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# Map and mask ---------------------------------------------------------------------------------------------------------


def test_golden():
    cam = matching_gradcam(GOLDEN["cam__attention"], GOLDEN["cam__gradient"], GOLDEN["cam__mask"])
    torch.testing.assert_close(cam, GOLDEN["cam__expected"])
    smooth = smooth_map(GOLDEN["smooth__cam"], tuple(GOLDEN["smooth__size"].tolist()))
    torch.testing.assert_close(smooth, GOLDEN["smooth__expected"], atol=1e-5, rtol=1e-5)
    mask = adaptive_mask(GOLDEN["mask__saliency"], float(GOLDEN["mask__ratio"]))
    assert torch.equal(mask, GOLDEN["mask__expected"])
    mixed = agla_logits(GOLDEN["contrast__logits"], GOLDEN["contrast__other"])
    torch.testing.assert_close(mixed, GOLDEN["contrast__expected"])


def test_only_words_count():
    attention, gradient = seeded(2, 3, 6, 4), seeded(2, 3, 6, 4, seed=1) - 0.5
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    cam = matching_gradcam(attention, gradient, mask)
    for row, words in enumerate(([1, 2, 3, 4], [1])):
        maps = [
            sum(attention[row, head, word] * gradient[row, head, word].clamp(min=0) for head in range(3)) / 3
            for word in words
        ]
        torch.testing.assert_close(cam[row], sum(maps) / len(words))
    changed = attention.clone()
    changed[:, :, 0], changed[0, :, 5], changed[1, :, 2:] = 9, 9, 9  # [CLS], [SEP] and padding
    torch.testing.assert_close(matching_gradcam(changed, gradient, mask), cam)
    left = mask.flip(1)
    flipped = matching_gradcam(attention.flip(2), gradient.flip(2), left)
    torch.testing.assert_close(flipped, cam)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient": torch.ones(1, 2, 4, 8)}, r"gradient \(1, 2, 4, 8\)"),
        ({"attention": torch.ones(2, 4, 9), "gradient": torch.ones(2, 4, 9)}, r"\(B, H, T, N\)"),
        ({"token_mask": torch.ones(1, 5)}, r"token_mask \(1, 5\)"),
        ({"token_mask": torch.tensor([[1, 1, 0, 0]])}, "2 tokens"),
        ({"gradient": torch.full((1, 2, 4, 9), math.nan)}, "NaN"),
    ],
)
def test_bad_attention(change, message):
    good = {"attention": torch.ones(1, 2, 4, 9), "gradient": torch.ones(1, 2, 4, 9), "token_mask": torch.ones(1, 4)}
    with pytest.raises(ValueError, match=message):
        matching_gradcam(**{**good, **change})


def test_smoothing():
    assert not smooth_map(torch.full((3, 3), 7.0), (8, 8)).any()  # a constant says nothing
    peak = torch.zeros(4, 4)
    peak[1, 2] = 1e-9  # gradients of a confident matcher are tiny
    smooth = smooth_map(peak, (40, 60))
    assert smooth.shape == (40, 60)
    assert (float(smooth.min()), float(smooth.max())) == (0.0, 1.0)
    row, column = divmod(int(smooth.argmax()), 60)
    assert abs(row - 15) <= 2
    assert abs(column - 37) <= 2
    sharp, soft = (smooth_map(peak, (40, 60), ratio) for ratio in (0.0, 0.1))
    assert float(sharp.mean()) < float(smooth.mean()) < float(soft.mean())
    assert smooth_map(peak.bfloat16(), (4, 4)).dtype == torch.float32
    assert smooth_map(peak.double(), (4, 4)).dtype == torch.float64


def test_blur_against_a_slow_sum():
    """σ = 0.02 · 50, radius 4, borders mirrored with the edge pixel twice."""
    cam = seeded(50, 30)
    smooth = smooth_map(cam, (50, 30))
    x = torch.arange(-4, 5).double()
    kernel = torch.exp(-(x**2) / 2) / torch.exp(-(x**2) / 2).sum()
    plain = (cam.double() - cam.min()) / (cam.max() - cam.min())
    mirrored = torch.from_numpy(np.pad(plain.numpy(), 4, mode="symmetric"))
    blurred = F.conv2d(mirrored[None, None], (kernel[:, None] * kernel)[None, None])[0, 0]
    expected = (blurred - blurred.min()) / (blurred.max() - blurred.min())
    torch.testing.assert_close(smooth.double(), expected, atol=1e-6, rtol=1e-6)


def test_ratio_and_mask():
    assert keep_ratio(0.4) == pytest.approx(0.8)
    assert keep_ratio(0.9) < keep_ratio(0.1)  # a good match hides more
    assert keep_ratio(-1.0) == 1 - 1e-5
    assert keep_ratio(3.0) == 0.0
    assert type(keep_ratio(torch.tensor(0.4))) is float
    saliency = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    for ratio, kept in ((0.0, 1), (0.5, 16), (0.8, 25), (1 - 1e-5, 30)):
        mask = adaptive_mask(saliency, ratio)
        assert int(mask.sum()) == kept
        assert mask.dtype == torch.bool
        assert saliency[mask].min() >= saliency[~mask].max() if kept < 30 else True
    assert adaptive_mask(torch.ones(3, 3), 0.2).all()  # ties stay
    for call, message in (
        (lambda: keep_ratio(math.nan), "NaN"),
        (lambda: adaptive_mask(saliency, 1.0), "ratio=1.0"),
        (lambda: adaptive_mask(saliency * math.nan, 0.0), "NaN"),
        (lambda: adaptive_mask(saliency, -0.1), "ratio=-0.1"),
        (lambda: adaptive_mask(saliency[0], 0.5), r"\(5,\)"),
        (lambda: smooth_map(saliency[0], (4, 4)), r"\(5,\)"),
        (lambda: smooth_map(saliency * math.nan, (4, 4)), "finite"),
        (lambda: smooth_map(saliency, (0, 4)), r"size=\(0, 4\)"),
        (lambda: smooth_map(saliency, (4, 4), -1), "sigma_ratio=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_view():
    image, cam = seeded(3, 20, 30) * 0.9 + 0.1, seeded(4, 4, seed=1)
    view, mask = augmented_view(image, cam, 0.5)
    assert torch.equal(view[:, mask], image[:, mask])
    assert not view[:, ~mask].any()
    assert int(mask.sum()) == int(600 * 0.75) + 1
    assert torch.equal(mask, adaptive_mask(smooth_map(cam, (20, 30)), 0.75))
    assert torch.equal(augmented_view(image, cam, torch.tensor(0.5))[1], mask)
    for bad, message in ((image[0], r"\(20, 30\)"), (image * 255, r"\[0, 1\]"), (image - 0.5, "not normalised")):
        with pytest.raises(ValueError, match=message):
            augmented_view(bad, cam, 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: agla_logits(torch.zeros(1, 4), torch.zeros(1, 5)), r"\(1, 5\)"),
        (lambda: agla_logits(torch.zeros(1, 4), torch.zeros(1, 4), alpha=-1), "alpha=-1"),
        (lambda: agla_logits(torch.zeros(1, 4), torch.zeros(1, 4), beta=0), "beta=0"),
    ],
)
def test_bad_scores(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Matcher --------------------------------------------------------------------------------------------------------------


@cache
def blip():
    text = {
        "vocab_size": 40,
        "hidden_size": 16,
        "encoder_hidden_size": 24,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "projection_dim": 16,
        "max_position_embeddings": 32,
    }
    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=8))
        for parameter in built.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return built.eval().double()


IDS = torch.tensor([[1, 5, 6, 7, 2, 0], [1, 8, 9, 2, 0, 0]])
MASK = (IDS > 0).long()
PIXELS = seeded(2, 3, 32, 32).double()


def numeric_cam(layer, ids=IDS):
    """The derivative of the match logit by finite differences of the cross-attention itself."""
    matcher = blip()
    attention = matcher.text_encoder.encoder.layer[layer].crossattention.self
    probs = {}

    def nudged(change):
        def hook(module, args, output):
            probs["plain"] = output[1].detach()
            moved = output[1] + change
            values = module.value(image).view(2, -1, 2, 8).transpose(1, 2)
            return ((moved @ values).permute(0, 2, 1, 3).reshape(2, ids.shape[1], 16), output[1])

        handle = attention.register_forward_hook(hook)
        words = matcher.text_encoder(ids, MASK, encoder_hidden_states=image).last_hidden_state
        handle.remove()
        return matcher.itm_head(words[:, 0])[:, 1].sum()

    with torch.no_grad():
        image = matcher.vision_model(PIXELS).last_hidden_state
        shape = (2, 2, ids.shape[1], 17)
        gradient, step = torch.zeros(shape).double(), 1e-5
        for place in np.ndindex(*shape):
            change = torch.zeros(shape).double()
            change[place] = step
            gradient[place] = (nudged(change) - nudged(-change)) / (2 * step)
    return matching_gradcam(probs["plain"][..., 1:], gradient[..., 1:], MASK).unflatten(-1, (4, 4))


def test_map_against_a_numeric_derivative():
    with torch.no_grad():  # as inside generate
        cam, similarity = BlipMatcher(blip(), layer=1)(PIXELS, IDS, MASK)
    torch.testing.assert_close(cam, numeric_cam(1), atol=1e-6, rtol=1e-3)
    matrix = blip()(IDS, PIXELS, use_itm_head=False, attention_mask=MASK).itm_score
    torch.testing.assert_close(similarity, matrix.diagonal().detach(), atol=1e-6, rtol=1e-5)


def test_enc_token_only_where_it_looks_at_the_image():
    plain, enc = (BlipMatcher(blip(), 1, token)(PIXELS, IDS, MASK) for token in (None, 39))
    assert not torch.allclose(plain[0], enc[0])
    torch.testing.assert_close(plain[1], enc[1])
    first = torch.full_like(IDS[:, :1], 39)
    torch.testing.assert_close(
        enc[0], BlipMatcher(blip(), 1)(PIXELS, torch.cat([first, IDS[:, 1:]], 1), MASK)[0], atol=1e-6, rtol=1e-5
    )


def test_matcher_leaves_no_trace():
    matcher, expected = BlipMatcher(blip(), 2), BlipMatcher(blip(), 2)(PIXELS, IDS, MASK)
    parameters = list(blip().parameters())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in parameters)
    blip().requires_grad_(False)
    try:
        with torch.inference_mode():
            frozen = matcher(PIXELS.clone(), IDS.clone(), MASK.clone())
    finally:
        blip().requires_grad_(True)
    for found, wanted in zip(frozen, expected, strict=True):
        torch.testing.assert_close(found, wanted)
        assert not found.requires_grad
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in blip().text_encoder.modules())


def test_rows_do_not_mix():
    both = BlipMatcher(blip(), 1)(PIXELS, IDS, MASK)
    second = BlipMatcher(blip(), 1)(PIXELS[1:], IDS[1:, :4], MASK[1:, :4])
    for together, alone in zip(both, second, strict=True):
        torch.testing.assert_close(together[1:], alone, atol=1e-6, rtol=1e-4)


def test_nothing_before_the_layer_is_tracked():
    """The backward pass ends at the layer that is explained."""
    seen = []
    handle = blip().text_encoder.encoder.layer[0].output.dense.register_full_backward_hook(lambda *_: seen.append(1))
    BlipMatcher(blip(), 1)(PIXELS, IDS, MASK)
    handle.remove()
    assert not seen


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BlipMatcher(blip(), 3), r"layer=3.*\[0, 3\)"),
        (lambda: BlipMatcher(blip(), -1), "layer=-1"),
        (lambda: BlipMatcher(torch.nn.Linear(1, 1)), "Linear: must be a BlipForImageTextRetrieval"),
        (lambda: BlipMatcher(blip(), 1)(PIXELS, IDS[:1], MASK[:1]), "repeat the question"),
        (lambda: BlipMatcher(blip(), 1)(PIXELS, IDS, MASK[:, 1:]), "attention_mask"),
    ],
)
def test_bad_matching(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_dropout_is_refused():
    blip().train()
    try:
        BlipMatcher(blip(), 1)(PIXELS, IDS, MASK)  # it has none
        blip().text_encoder.encoder.layer[0].output.dropout.p = 0.1
        with pytest.raises(ValueError, match="eval"):
            BlipMatcher(blip(), 1)(PIXELS, IDS, MASK)
    finally:
        blip().text_encoder.encoder.layer[0].output.dropout.p = 0.0
        blip().eval()


def test_from_question_to_answer():
    """One map per picture, views of all, and generation with them."""
    inputs = batch("llava")
    pixels = (inputs["pixel_values"] + 1) / 2
    ids, mask = IDS[[0, 1, 1]], MASK[[0, 1, 1]]
    cams, similarities = BlipMatcher(blip(), 1)(pixels.double(), ids, mask)
    views = [augmented_view(*each)[0] for each in zip(pixels, cams, similarities, strict=True)]
    view = torch.stack(views) * 2 - 1  # stands for the image processor's normalisation
    processor = AglaLogitsProcessor(model("llava"), inputs["input_ids"], view, inputs["attention_mask"])
    out = model("llava").generate(**inputs, logits_processor=[processor], max_new_tokens=3, pad_token_id=0)
    assert out.shape == (2, inputs["input_ids"].shape[1] + 3)
    assert processor.forwards == 3


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("llava-next", "image_sizes"), ("llava-onevision", "image_sizes"), ("qwen2-vl", "image_grid_thw")],
)
def test_what_the_image_processor_said_is_asked_for(kind, missing):
    inputs = batch(kind)
    del inputs[missing]
    with pytest.raises(ValueError, match=f"{missing}=None.*processor"):
        AglaLogitsProcessor(model(kind), **inputs)
    with pytest.raises(ValueError, match="pixel_values=None"):
        AglaLogitsProcessor(model("llava"), batch("llava")["input_ids"], None)
