from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import foveal
from foveal.compress.aim import AIM, bipartite_merge, iterative_merge, pagerank_importance, prune_step, retain_schedule
from foveal.compress.aim_rank import causal_importance

from . import reference
from .test_contract import continued, counted, later, prefilled
from .tiny import BY_NAME, IMAGE, LAYERS, extend, image_counts, join

torch.set_num_threads(1)
GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden/aim.npz"))
KINDS = [BY_NAME[name] for name in ("llava", "llava_next", "llava_onevision")]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def golden(case):
    return {name.split("__")[1]: torch.from_numpy(v) for name, v in GOLDEN.items() if name.startswith(f"{case}__")}


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Golden numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["ranked", "spatial"])
def test_golden_merge(order):
    ref = golden("merge")
    merged, assign = bipartite_merge(ref["x"], int(ref["r"]), order=order)
    torch.testing.assert_close(merged, ref[order], atol=1e-6, rtol=1e-5)
    assert torch.equal(assign, ref[f"{order}_assign"])


def test_golden_rounds():
    ref = golden("iter")
    merged, assign = iterative_merge(ref["x"], int(ref["keep"]))
    torch.testing.assert_close(merged, ref["expected"], atol=1e-6, rtol=1e-5)
    assert torch.equal(assign, ref["assign"])


def test_golden_importance():
    ref = golden("rank")
    torch.testing.assert_close(pagerank_importance(ref["logits"]), ref["expected"], atol=1e-7, rtol=1e-4)


def test_golden_schedule():
    ref = golden("schedule")
    layers, start, step = ref["args"].tolist()
    assert retain_schedule(int(layers), int(start), step) == pytest.approx(ref["expected"].tolist(), abs=1e-12)


# Merging --------------------------------------------------------------------------------------------------------------


def slow_merge(x, keep):
    """(places of the survivors, their vectors), token by token, in raster order."""
    tokens = list(enumerate(x))
    while len(tokens) > keep:
        evens, odds = range(0, len(tokens), 2), range(1, len(tokens), 2)
        cosine = {(i, j): torch.cosine_similarity(tokens[i][1], tokens[j][1], 0).item() for i in evens for j in odds}
        target = {i: max(odds, key=lambda j, i=i: cosine[i, j]) for i in evens}
        alike = sorted(evens, key=lambda i: -cosine[i, target[i]])[: min(len(odds), len(tokens) - keep)]
        for j in odds:
            group = [tokens[j][1], *(tokens[i][1] for i in alike if target[i] == j)]
            tokens[j] = (tokens[j][0], torch.stack(group).mean(0))
        tokens = [token for place, token in enumerate(tokens) if place not in alike]
    return [place for place, _ in tokens], torch.stack([vector for _, vector in tokens])


@given(st.integers(1, 15), st.integers(0, 20), st.sampled_from(["ranked", "spatial"]))
def test_a_round_of_merging(n, r, order):
    """Odd numbers of tokens, r beyond the half, both orders: groups are means, and every row has one."""
    x = noise(2, n, 4)
    merged, assign = bipartite_merge(x, r, order=order)
    r = min(r, n // 2)
    assert merged.shape == (2, n - r, 4)
    for row in range(2):
        assert assign[row].unique().tolist() == list(range(n - r))
        for group in range(n - r):
            torch.testing.assert_close(merged[row, group], x[row, assign[row] == group].mean(0))
        odd = assign[row, 1::2]
        assert len(odd.unique()) == len(odd)  # never merged with one another
        if order == "spatial":
            torch.testing.assert_close(merged[row], slow_merge(x[row], n - r)[1])
        elif r:
            assert odd.tolist() == list(range(n - r - n // 2, n - r))


@given(st.integers(1, 13), st.data())
def test_rounds_of_merging(n, data):
    keep = data.draw(st.integers(1, n))
    x = noise(1, n, 3, seed=n)
    merged, assign = iterative_merge(x, keep)
    torch.testing.assert_close(merged[0], slow_merge(x[0], keep)[1])
    assert assign.unique().tolist() == list(range(keep))


def test_likeness_may_come_from_elsewhere():
    x, metric = noise(1, 6, 4), noise(1, 6, 2, seed=1)
    by_metric = bipartite_merge(metric, 2)[1]
    assert torch.equal(bipartite_merge(x, 2, metric)[1], by_metric)
    assert bipartite_merge(x, 0)[0] is x
    zeros = bipartite_merge(torch.zeros(1, 4, 3), 2)[0]
    assert torch.equal(zeros, torch.zeros(1, 2, 3))


def test_gradients_reach_every_member():
    x = noise(1, 6, 4).requires_grad_()
    iterative_merge(x, 2)[0].sum().backward()
    assert bool((x.grad.abs().sum(-1) > 0).all())


# Importance -----------------------------------------------------------------------------------------------------------


def slow_importance(attention, tau=0.1, iters=5, damping=0.0):
    """From (heads, L, L) attention: softmax(Z / τ) is its power 1 / τ, normalised."""
    transition = (attention.log() / tau).softmax(-1)
    length = attention.shape[-1]
    total = torch.zeros(length, dtype=attention.dtype)
    for head in transition:
        rank = torch.full((length,), 1 / length, dtype=attention.dtype)
        for _ in range(iters):
            rank = (1 - damping) * (rank @ head) + damping / length
        total += rank**2 / len(transition)
    return total.sqrt()


def causal_logits(heads, length, seed=0):
    return noise(1, heads, length, length, seed=seed).masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)


@pytest.mark.parametrize("damping", [0.0, 0.15])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_neither_votes_nor_counts(side, damping):
    logits = causal_logits(3, 7)
    want = slow_importance(logits[0].softmax(-1), damping=damping)
    own = slice(2, 9) if side == "left" else slice(0, 7)
    padded = torch.full((1, 3, 9, 9), -torch.inf, dtype=torch.float64)
    padded[:, :, :, :2] = padded[:, :, 7:] = 3.0  # whatever the model computes for padding
    padded[:, :, own, own] = logits
    valid = torch.zeros(1, 9, dtype=torch.bool)
    valid[:, own] = True
    got = pagerank_importance(padded, valid, damping=damping)
    torch.testing.assert_close(got[0, own], want)
    assert not got[~valid].any()
    torch.testing.assert_close(pagerank_importance(logits, damping=damping)[0], want)


@pytest.mark.parametrize("block", [1, 40, 200, 2**22])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_in_blocks_of_rows(block, damping):
    """Shared key heads; one row, a few or all at a time."""
    query, key = noise(4, 9, 6), noise(2, 9, 6, seed=1)
    logits = query @ key.repeat_interleave(2, 0).transpose(1, 2) / 6**0.5
    logits = logits.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    want = pagerank_importance(logits[None], None, 0.3, 4, damping)[0]
    for first in (0, 1, 5):  # the importance of later tokens needs no queries of earlier ones
        got = causal_importance(query[:, first:], key, 0.3, 4, damping, block=block)
        torch.testing.assert_close(got, want[first:])


class Largest(TorchDispatchMode):
    """Entries of the largest tensor made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.entries = max(self.entries, made.numel() if isinstance(made, torch.Tensor) else 0)
        return made


def test_the_whole_attention_is_never_there():
    query, key = noise(2, 500, 4), noise(1, 500, 4)
    with Largest() as largest:
        causal_importance(query, key, 0.1, 5, 0.0, block=20_000)
    assert largest.entries <= 20_000  # of 500,000


def test_half_precision_is_left_before_the_exponential():
    query, key = noise(2, 6, 4), noise(2, 6, 4, seed=1)
    assert causal_importance(query.bfloat16(), key.bfloat16(), 0.1, 5, 0.0).dtype == torch.float32
    assert pagerank_importance(causal_logits(2, 4).half()).dtype == torch.float32


# Schedule and errors --------------------------------------------------------------------------------------------------


def test_schedule_at_its_ends():
    assert retain_schedule(4, 4) == [1.0] * 4
    assert retain_schedule(4, 1, 0.5) == [1.0, 0.5, 0.0, 0.0]
    assert retain_schedule(3, 0, 0.0) == [1.0] * 3
    assert retain_schedule(3, 0, 0.25) == [0.75, 0.5, 0.25]


def test_text_always_stays():
    importance, is_image = torch.tensor([0.0, 0.1, 0.3, 0.2, 0.0]), torch.tensor([False, True, True, True, False])
    assert prune_step(importance, is_image, 1).tolist() == [0, 2, 4]
    assert prune_step(importance, is_image, 2).tolist() == [0, 2, 3, 4]
    assert prune_step(importance, is_image, 0).tolist() == [0, 4]
    assert prune_step(torch.zeros(5), is_image, 2).tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: bipartite_merge(torch.zeros(1, 4, 2), -1), "r=-1"),
        (lambda: bipartite_merge(torch.zeros(4, 2), 1), r"x has shape \(4, 2\)"),
        (lambda: bipartite_merge(torch.zeros(1, 4, 2), 1, torch.zeros(1, 3, 2)), r"metric has shape \(1, 3, 2\)"),
        (lambda: bipartite_merge(torch.zeros(1, 4, 2), 1, order="random"), "order='random'"),
        (lambda: iterative_merge(torch.zeros(1, 4, 2), 0), r"keep=0 must lie in \[1, 4\]"),
        (lambda: iterative_merge(torch.zeros(1, 4, 2), 5), "keep=5"),
        (lambda: iterative_merge(torch.zeros(1, 4, 2), 4, order="random"), "order='random'"),
        (lambda: pagerank_importance(torch.zeros(1, 2, 3, 4)), r"logits has shape \(1, 2, 3, 4\)"),
        (lambda: pagerank_importance(torch.zeros(1, 2, 3, 3), torch.ones(1, 4).bool()), r"valid has shape \(1, 4\)"),
        (lambda: pagerank_importance(torch.zeros(1, 2, 3, 3), tau=0.0), "tau=0.0"),
        (lambda: retain_schedule(4, 5), r"start=5 must lie in \[0, 4\]"),
        (lambda: retain_schedule(4, -1), "start=-1"),
        (lambda: retain_schedule(4, 1, -0.1), "step=-0.1"),
        (lambda: prune_step(torch.zeros(3), torch.ones(3).bool(), 4), "keep=4: there are 3"),
        (lambda: prune_step(torch.zeros(3), torch.ones(3).bool(), -1), "keep=-1"),
        (lambda: AIM(0.0), "merge_ratio=0.0"),
        (lambda: AIM(1.5), "merge_ratio=1.5"),
        (lambda: AIM(start=-1), "start=-1"),
        (lambda: AIM(step=-0.5), "step=-0.5"),
        (lambda: AIM(tau=0.0), "tau=0.0"),
        (lambda: AIM(iters=0), "iters=0"),
        (lambda: AIM(damping=1.5), "damping=1.5"),
        (lambda: AIM().attach(BY_NAME["qwen2_vl"].model()), "three axes"),
        (lambda: AIM().attach(BY_NAME["internvl"].model()), r"AIM cannot work on InternVL.*here take PyramidDrop"),
        (lambda: AIM().attach(BY_NAME["smolvlm"].model()), r"AIM cannot work on SmolVLM.*here take PyramidDrop"),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_found_by_name():
    assert foveal.compress.AIM is AIM


# Whole models ---------------------------------------------------------------------------------------------------------


def slow_aim(model, sizes, ratio, start, step):
    """The method written out: merging writes into the hidden states, pruning looks at what the layer before did."""
    newline, seen = getattr(model.model, "image_newline", None), {}

    def merge(at):
        stays, places = [*at.texts], at.images
        for size in sizes:
            own, places = places[:size], places[size:]
            ends = [p for p in own if newline is not None and torch.equal(at.hidden[0, p], newline)]
            patches = [p for p in own if p not in ends]
            left, vectors = slow_merge(at.hidden[0, patches], max(1, int(len(patches) * ratio)))
            for place, vector in zip(left, vectors, strict=True):
                at.hidden[0, patches[place]] = vector
            stays += [*ends, *(patches[place] for place in left)]
        assert not places
        seen["n"] = len(stays) - len(at.texts)
        return sorted(stays)

    def prune(at):
        after = at.number - 1
        keep = int(seen["n"] * max(0.0, 1 - (after - start + 1) * step))
        if after < start or keep >= len(at.images):
            return list(range(len(at.is_image)))
        layer, hidden = seen["before"]
        importance = slow_importance(reference.attention(layer, hidden, at.rope)).tolist()
        return sorted([*at.texts, *sorted(at.images, key=lambda place: -importance[place])[:keep]])

    def choose(at):
        stays = merge(at) if at.number == 0 else prune(at)
        seen["before"] = at.layer, at.hidden[:, stays].clone()
        return stays

    return choose


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_whole_models_against_a_slow_loop(kind):
    """Images merge each by itself and are pruned as one pool; later tokens see the survivors at their old numbers."""
    ratio, start, step = 0.6, 1, 0.3
    model = kind.model(dtype=torch.float64)
    singles, words = kind.singles(model), later((1, 2))
    inputs = join(kind, *singles)
    width = inputs["input_ids"].shape[1]
    with torch.no_grad(), AIM(ratio, start, step).attached(model) as reducer:
        last = model(**inputs).logits[:, -1]
        batch = [[columns.tolist() for columns in row] for row in reducer.kept]
        more = [continued(model, prefilled(model, single), words)[0] for single in singles]
    first, middle, final = kind.sizes[0], kind.sizes[len(kind.sizes) // 2], kind.sizes[-1]
    for row, (single, sizes) in enumerate(zip(singles, ([first], [final, middle], []), strict=True)):
        prompt = single["input_ids"].shape[1]
        choose = slow_aim(model, image_counts(kind.name, sizes), ratio, start, step)
        want, kept = reference.run(model, extend(single, words), prompt, choose, lambda layer: layer == 0)
        assert [[column - (width - prompt) for column in columns] for columns in batch[row]] == kept
        torch.testing.assert_close(last[row], want[0], **CLOSE)
        torch.testing.assert_close(more[row], want[1:], **CLOSE)


def test_counts_follow_the_schedule():
    """16 tokens, 8 merged; all of these up to layer ``start``, then 3 fewer of 8 after each."""
    kind = BY_NAME["llava"]
    model = kind.model()
    inputs = kind.singles(model)[0]
    with AIM(0.5, start=1, step=0.375).attached(model) as reducer:
        model(**inputs)
    assert reducer.image_tokens[0].tolist() == [8, 8, 5, 2, 0, 0]
    with AIM(0.001, start=LAYERS).attached(model) as reducer:
        model(**inputs)
    assert reducer.image_tokens[0].tolist() == [1] * LAYERS
    with AIM(1.0, start=0, step=0.25).attached(model) as reducer:
        model(**inputs)
    assert reducer.image_tokens[0].tolist() == [16, 12, 8, 4, 0, 0]


def test_report_is_exact():
    """Every FLOP of the decoder layers, of merging and of the ranking is in the report."""
    kind = BY_NAME["llava_next"]
    model = kind.model()
    inputs = join(kind, *kind.singles(model))
    with AIM(0.5, 1, 0.25).attached(model) as reducer:
        reduced, _ = counted(model, inputs)
    report = reducer.report()
    assert report.flops + report.flops_selection == pytest.approx(reduced, rel=1e-4)
    assert int((inputs["input_ids"] == IMAGE).sum()) == pytest.approx(3 * report.image_tokens_full)
