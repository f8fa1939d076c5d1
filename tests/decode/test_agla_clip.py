"""CLIP as AGLA's matcher: its map is the gradient of the cosine by what the class token attends to."""

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel

from foveal.decode.agla_clip import ClipMatcher

torch.set_num_threads(1)
SIDE, HEADS = 4, 2


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": HEADS}
    text = {**size, "vocab_size": 30, "max_position_embeddings": 8, "eos_token_id": 29}
    vision = {**size, "image_size": 4 * SIDE, "patch_size": 4}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    config._attn_implementation = "eager"
    return CLIPModel(config).eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 4 * SIDE, 4 * SIDE, generator=generator)
    ids = torch.randint(1, 28, (3, 6), generator=generator)
    ids[:, -1] = 29
    return pixels, ids, torch.ones_like(ids)


def test_map_and_cosine(clip, inputs):
    """Against a finite difference of the cosine by each attention probability."""
    pixels, ids, mask = inputs
    cam, cosine = ClipMatcher(clip)(pixels, ids, mask)
    assert cam.shape == (3, SIDE, SIDE)
    assert (cam >= 0).all()
    assert cam.std() > 0
    block = clip.vision_model.encoder.layers[-1]
    with torch.no_grad():
        hidden = clip.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        text = clip.text_projection(clip.text_model(input_ids=ids, attention_mask=mask).pooler_output)
        x = block.layer_norm1(hidden)
        q, k, v = (
            getattr(block.self_attn, f"{name}_proj")(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in "qkv"
        )
        attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)

        def match(attention):
            mixed = block.self_attn.out_proj((attention @ v).transpose(1, 2).flatten(2))
            out = hidden + mixed
            out = out + block.mlp(block.layer_norm2(out))
            image = clip.visual_projection(clip.vision_model.post_layernorm(out[:, 0]))
            return F.cosine_similarity(image, text)

        torch.testing.assert_close(match(attention), cosine, atol=1e-5, rtol=1e-5)
        for patch in (0, 5, 15):
            expected = 0
            for head in range(HEADS):
                nudge = torch.zeros_like(attention)
                nudge[:, head, 0, 1 + patch] = 1e-2
                slope = (match(attention + nudge) - match(attention - nudge)) / 2e-2
                expected = expected + attention[:, head, 0, 1 + patch] * slope.clamp(min=0) / HEADS
            torch.testing.assert_close(cam.flatten(1)[:, patch], expected, atol=1e-4, rtol=2e-2)


def test_works_without_gradients_and_leaves_none(clip, inputs):
    expected = ClipMatcher(clip)(*inputs)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            for one, other in zip(ClipMatcher(clip)(*inputs), expected, strict=True):
                torch.testing.assert_close(one.clone(), other)
    assert all(parameter.grad is None for parameter in clip.parameters())


def test_bad_input_is_named(clip, inputs):
    pixels, ids, mask = inputs
    with pytest.raises(ValueError, match="must be a CLIPModel"):
        ClipMatcher(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="repeat the text"):
        ClipMatcher(clip)(pixels[:1], ids, mask)
    clip.set_attn_implementation("sdpa")
    try:
        with pytest.raises(ValueError, match="eager"):
            ClipMatcher(clip)
    finally:
        clip.set_attn_implementation("eager")
