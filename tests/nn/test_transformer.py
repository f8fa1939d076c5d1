import pytest
import torch
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

from foveal.nn.transformer import MLP, Block, Transformer, quick_gelu

torch.set_num_threads(1)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def test_block_is_the_formula():
    block, x = seeded(lambda: Block(8, 2)), randn(2, 4, 8)
    middle = x + block.attn(block.ln_1(x))
    torch.testing.assert_close(block(x), middle + block.mlp(block.ln_2(middle)))


def test_activations():
    x = randn(50)
    torch.testing.assert_close(quick_gelu(x), ACT2FN["quick_gelu"](x))
    own = seeded(lambda: MLP(6, 10, "swiglu"))
    peer = LlamaMLP(LlamaConfig(hidden_size=6, intermediate_size=10, num_attention_heads=2, mlp_bias=True))
    for name, part in (("weight", own.c_fc.weight), ("bias", own.c_fc.bias)):
        for layer, half in zip((peer.gate_proj, peer.up_proj), part.chunk(2)):
            setattr(layer, name, torch.nn.Parameter(half))
    peer.down_proj = own.c_proj
    torch.testing.assert_close(own(randn(3, 6)), peer(randn(3, 6)))
    with pytest.raises(ValueError, match=r"activation='relu'.*quick_gelu"):
        MLP(4, 4, "relu")


def test_hidden_states_are_the_way_to_the_output():
    model, x = seeded(lambda: Transformer(8, 3, 2)), randn(2, 4, 8)
    states = model.hidden_states(x, causal=True)
    assert len(states) == 4
    assert torch.equal(states[0], x)
    assert torch.equal(states[2], model.resblocks[1](states[1], causal=True))
    assert torch.equal(states[3], model(x, causal=True))
    assert not torch.allclose(states[3], model(x))


def test_drop_path_skips_whole_samples_and_keeps_the_mean():
    block = seeded(lambda: Block(8, 2, drop_path=0.5))
    x = randn(1, 4, 8).expand(4000, -1, -1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = block._thin(x)
    kept = out.abs().sum((1, 2)) > 0
    torch.testing.assert_close(out[kept], 2 * x[kept])
    assert kept.float().mean() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(block.eval()._thin(x), x)
    assert [b.drop_path for b in Transformer(8, 3, 2, drop_path=0.2).resblocks] == [0, 0.1, 0.2]


@pytest.mark.parametrize(("options", "name"), [({"layers": 0}, "layers"), ({"drop_path": 1.0}, "drop_path")])
def test_bad_sizes(options, name):
    with pytest.raises(ValueError, match=name):
        Transformer(**{"width": 8, "layers": 2, "heads": 2, **options})
