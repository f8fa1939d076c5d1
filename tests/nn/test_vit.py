import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from foveal.nn.vit import VisionTransformer, interpolate_positions

from .openai_names import as_transformers

torch.set_num_threads(1)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vit(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VisionTransformer(16, 4, 8, 2, 2, **options)


def test_shapes_and_what_the_methods_have_in_common():
    model, images = vit(output_dim=5, registers=3), randn(2, 3, 16, 16)
    tokens, states = model.tokens(images), model.hidden_states(images)
    assert tokens.shape == (2, 1 + 3 + 16, 8)
    assert model.prefix == 4
    assert len(states) == 3
    torch.testing.assert_close(model.ln_post(states[-1]), tokens)
    torch.testing.assert_close(model(images), tokens[:, 0] @ model.proj)
    assert vit()(images).shape == (2, 8)
    assert {name for name, _ in vit().named_parameters() if "." not in name} == {
        "class_embedding",
        "positional_embedding",
    }


def test_keep_drops_patches_before_the_layers():
    model, images = vit(registers=1), randn(2, 3, 16, 16)
    keep = torch.tensor([[3, 0, 15], [7, 8, 9]])
    full = model.embed(images)
    kept = model.embed(images, keep)
    assert torch.equal(kept[:, :2], full[:, :2])
    for row in range(2):
        assert torch.equal(kept[row, 2:], full[row, 2 + keep[row]])
    assert model.tokens(images, keep).shape == (2, 5, 8)
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(model(images, everything), model(images))
    hidden = images.clone()
    hidden[:, :, 4:8, :8] = 100  # patches 4 and 5, which neither image keeps
    torch.testing.assert_close(model(hidden, keep), model(images, keep))


@pytest.mark.parametrize("size", [(16, 16), (24, 12), (32, 32)])
def test_other_sizes_are_those_of_transformers(size):
    """The tower, its positions included, against transformers' CLIP vision model with the same weights."""
    model, images = vit(activation="quick_gelu"), randn(2, 3, *size)
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    peer = CLIPVisionModel(config).eval()
    peer = getattr(peer, "vision_model", peer)  # one level more before transformers 5.4
    weights = as_transformers({f"visual.{name}": value for name, value in model.state_dict().items()})
    peer.load_state_dict({name.removeprefix("vision_model."): value for name, value in weights.items()})
    out = peer(images, interpolate_pos_encoding=True)
    torch.testing.assert_close(model(images), out.pooler_output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.hidden_states(images)[-1], out.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter():
    model = vit(output_dim=5, registers=2)
    model(randn(2, 3, 16, 16)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_bad_input():
    with pytest.raises(ValueError, match=r"patch_size=5.*image_size=16"):
        VisionTransformer(16, 5, 8, 1, 2)
    for shape in ((2, 3, 16, 15), (2, 1, 16, 16), (3, 16, 16)):
        with pytest.raises(ValueError, match=r"images.*patch_size=4"):
            vit()(torch.zeros(shape))
    with pytest.raises(ValueError, match="7 rows"):
        interpolate_positions(torch.zeros(7, 4), (2, 3))
