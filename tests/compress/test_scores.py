"""Attention beside the kernel: in blocks of rows, from keys that are projected again or read in the cache."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.compress.baselines import FastV
from foveal.compress.gsearch import LayerwiseKeep
from foveal.compress.scores import ROWS, attention_logits, instruction_attention

from . import reference
from .contract import CASES
from .test_aim import Largest
from .tiny import BY_NAME, KINDS, join

torch.set_num_threads(1)
LOOKING_BACK = [case for case in CASES if case.build(BY_NAME["llava"]).looks_back]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 300), st.integers(0, 10_000))
def test_attention_of_many_rows(groups, heads, n, seed):
    """Instructions longer than the block in memory, grouped heads, rows that see no later token."""
    rng = torch.Generator().manual_seed(seed)
    query, key = torch.randn(heads * groups, n, 4, generator=rng), torch.randn(heads, n, 4, generator=rng)
    rows = torch.randperm(n, generator=rng)[: max(1, n - 3)].sort().values
    query, later = query[:, rows], torch.arange(n) > rows[:, None]
    logits = query @ key.repeat_interleave(groups, 0).mT
    torch.testing.assert_close(attention_logits(query, key), logits)
    shares = (logits / 2).masked_fill(later, -torch.inf).softmax(-1)
    torch.testing.assert_close(instruction_attention(query, key, ~later), shares.mean((0, 1)))


def test_large_scores_in_half_precision():
    query, key = torch.full((4, 2, 8), 300.0), torch.full((2, 5, 8), 300.0)
    torch.testing.assert_close(instruction_attention(query.half(), key.half()), torch.full((5,), 0.2))


def test_heads_must_share_evenly():
    with pytest.raises(ValueError, match="6 heads, no multiple of the 4"):
        attention_logits(torch.zeros(6, 3, 4), torch.zeros(4, 5, 4))


def test_a_long_instruction_takes_the_memory_of_a_block():
    query, key = torch.zeros(4, 10 * ROWS, 8), torch.zeros(2, 500, 8)
    with Largest() as largest:
        instruction_attention(query, key)
    assert largest.entries <= 4 * ROWS * 500


class Seen(LayerwiseKeep):
    """Notes some queries and all keys of the layer before, and how many projections they cost."""

    def __init__(self, kind, cached=True, overheard=True):
        super().__init__((1, 1, 0.7, 0.7, 0.3, 0.1), kind.positions)
        self.cached, self.overheard, self.pairs, self.costs = cached, overheard, [], []

    def select(self, step):
        before = step.previous
        if before is not None:
            assert before.layer == step.layer - 1
            if not self.cached:
                before.cache = None
            if not self.overheard:
                before.query = None
            for sample in range(len(step.n_image)):
                places, _ = before.sample(sample)
                rows = torch.arange(len(places))[-3:]
                asked, spent = [], before.spend
                before.spend = asked.append
                self.pairs.append(before.queries_and_keys(sample, rows))
                before.spend = spent
                self.costs.append(len(asked))
        return super().select(step)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_keys_in_the_cache_and_overheard_queries_are_those_of_the_projections(kind):
    """After drops, with left padding, with positions of three axes and new ones."""
    model = kind.model(dtype=torch.float64)
    inputs = join(kind, *kind.singles(model))
    with torch.no_grad(), Seen(kind).attached(model) as cached:
        model(**inputs, use_cache=True)
    with torch.no_grad(), Seen(kind, cached=False, overheard=False).attached(model) as projected:
        model(**inputs, use_cache=True)
    with torch.no_grad(), Seen(kind).attached(model) as none_kept:
        model(**inputs, use_cache=False)
    assert set(cached.costs) == {0}
    assert set(none_kept.costs) == {1}
    assert set(projected.costs) == {2}
    for mine, others, alone in zip(cached.pairs, projected.pairs, none_kept.pairs, strict=True):
        torch.testing.assert_close(mine, others)
        torch.testing.assert_close(mine, alone)


@pytest.mark.parametrize("case", LOOKING_BACK, ids=lambda case: case.name)
def test_the_cache_saves_the_projection_and_changes_no_choice(case):
    kind = BY_NAME["llava"]
    model = kind.model(dtype=torch.float64)
    inputs = join(kind, *kind.singles(model))
    chosen, costs = [], []
    for use_cache in (True, False):
        with torch.no_grad(), case.build(kind).attached(model) as reducer:
            model(**inputs, use_cache=use_cache)
        chosen.append([columns.tolist() for row in reducer.kept for columns in row])
        costs.append(reducer.report().flops_selection)
    assert chosen[0] == chosen[1]
    assert costs[0] < costs[1]


def test_a_cache_that_holds_no_plain_keys_is_left_alone():
    """Quantized ones keep none: the layer's projections are asked instead."""
    kind = BY_NAME["llava"]
    model = kind.model(dtype=torch.float64)
    inputs = kind.singles(model)[0]
    layers = [SimpleNamespace(keys=torch.zeros(0)), SimpleNamespace(keys=None)]

    class Other(FastV):
        def select(self, step):
            if step.previous is not None:
                step.previous.cache = SimpleNamespace(layers=layers)
            return super().select(step)

    for layer in (1, 2, 3):  # of the third layer that cache has nothing at all
        with torch.no_grad(), FastV(layer).attached(model) as plain:
            model(**inputs)
        with torch.no_grad(), Other(layer).attached(model) as other:
            model(**inputs)
        assert torch.equal(plain.kept[0][-1], other.kept[0][-1])


def test_attention_from_rows_is_that_of_the_model():
    kind = BY_NAME["qwen2_vl"]
    model = kind.model(dtype=torch.float64)
    single = kind.single(model, 3, kind.sizes[0], 6)
    rows, seen = torch.tensor([4, 9]), []

    class Ask(FastV):
        def select(self, step):
            seen.append((step.module, step.hidden, step.rope, step.attention_from(0, rows)))
            return super().select(step)

    with torch.no_grad(), Ask(2, 1.0).attached(model):
        model(**single)
        for module, hidden, rope, scores in seen:
            want = reference.attention(module, hidden, rope)[:, rows].mean((0, 1))
            torch.testing.assert_close(scores, want.float())
