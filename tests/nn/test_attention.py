import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from foveal.nn.attention import (
    MultiHeadAttention,
    attention,
    attention_with_weights,
    causal_mask,
    padding_mask,
    prefix_mask,
    rotary_table,
    rotate,
)

torch.set_num_threads(1)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def module(width=12, heads=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attn = MultiHeadAttention(width, heads)
        nn.init.normal_(attn.in_proj_bias)
    return attn


MASKS = {
    "none": None,
    "bool": torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(1)) > 0.4,
    "additive": randn(5, 5, seed=2),
    "prefix": prefix_mask(5, 2),
    "padding": padding_mask(torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])),
    "blind": torch.zeros(5, 5, dtype=torch.bool),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_fused_path_own_path_and_slow_loop_agree(name, causal):
    query, key, value = (randn(2, 3, 5, 4, seed=seed).requires_grad_() for seed in range(3))
    fused = attention(query, key, value, MASKS[name], causal)
    out, weights = attention_with_weights(query, key, value, MASKS[name], causal)
    torch.testing.assert_close(out, fused)
    for left, right in zip(*(torch.autograd.grad(o.square().sum(), (query, key, value)) for o in (out, fused))):
        torch.testing.assert_close(left, right)
    query, key, weights = query.detach(), key.detach(), weights.detach()
    mask = MASKS[name] if MASKS[name] is not None else torch.zeros(5, 5)
    mask = torch.where(mask, 0.0, -math.inf) if mask.dtype == torch.bool else mask
    mask = mask.expand(2, 3, 5, 5)
    for b in range(2):
        for i in range(5):
            seen = [j for j in range(5) if mask[b, 0, i, j] > -math.inf and not (causal and j > i)]
            scores = {j: math.exp(float(query[b, 0, i] @ key[b, 0, j]) / 2 + float(mask[b, 0, i, j])) for j in seen}
            for j in range(5):
                expected = scores[j] / sum(scores.values()) if j in scores else 0.0
                assert float(weights[b, 0, i, j]) == pytest.approx(expected, abs=1e-5)


def test_masks():
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert prefix_mask(3, 2).tolist() == [[True, True, False], [True, True, False], [True, True, True]]
    assert torch.equal(prefix_mask(4, 0), causal_mask(4))
    with pytest.raises(ValueError, match="prefix=5"):
        prefix_mask(4, 5)
    with pytest.raises(ValueError, match="valid"):
        padding_mask(torch.ones(3))
    with pytest.raises(ValueError, match="as many queries as keys, not 2 and 3"):
        attention(randn(1, 1, 2, 4), randn(1, 1, 3, 4), randn(1, 1, 3, 4), causal=True)


@pytest.mark.parametrize("cross", [False, True])
def test_weights_of_torch_load_and_agree(cross):
    attn, peer = module(), nn.MultiheadAttention(12, 3, batch_first=True)
    peer.load_state_dict(attn.state_dict())
    x, context = randn(2, 5, 12), randn(2, 7, 12, seed=1)
    source = context if cross else x
    expected, weights = peer(x, source, source, average_attn_weights=False)
    torch.testing.assert_close(attn(x, context if cross else None), expected)
    out, own = attn.with_weights(x, context if cross else None)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(own, weights)


def test_causal_output_ignores_the_future():
    attn, x = module(), randn(1, 5, 12)
    changed = x.clone()
    changed[:, 3:] += 1
    torch.testing.assert_close(attn(x, causal=True)[:, :3], attn(changed, causal=True)[:, :3])
    assert not torch.allclose(attn(x)[:, :3], attn(changed)[:, :3])


def test_rotary_is_that_of_llama():
    query, key = randn(2, 3, 5, 8), randn(2, 3, 5, 8, seed=1)
    cos, sin = rotary_table(torch.arange(5), 8)
    expected = apply_rotary_pos_emb(query, key, cos[None], sin[None])
    torch.testing.assert_close(rotate(query, (cos, sin)), expected[0])
    torch.testing.assert_close(rotate(key, (cos, sin)), expected[1])


@given(st.integers(0, 500), st.integers(0, 20), st.integers(0, 20))
def test_rotary_products_depend_on_the_distance(shift, i, j):
    query, key = randn(1, 8), randn(1, 8, seed=1)

    def product(a, b):
        return rotate(query, rotary_table(torch.tensor([a]), 8)) @ rotate(key, rotary_table(torch.tensor([b]), 8)).T

    torch.testing.assert_close(product(i + shift, j + shift), product(i, j), atol=1e-3, rtol=1e-3)


def test_rotary_reaches_the_module():
    attn, x = module(), randn(1, 5, 12)
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(attn(x[:, order]), attn(x)[:, order])  # without positions, attention sees a set
    table = rotary_table(torch.arange(5), 4)
    assert not torch.allclose(attn(x[:, order], rotary=table), attn(x, rotary=table)[:, order], atol=1e-3)
    with pytest.raises(ValueError, match="dim=3"):
        rotary_table(torch.arange(2), 3)


@pytest.mark.parametrize(("width", "heads"), [(12, 5), (12, 0), (0, 1)])
def test_bad_sizes(width, heads):
    with pytest.raises(ValueError, match=f"heads={heads}.*width={width}"):
        MultiHeadAttention(width, heads)
