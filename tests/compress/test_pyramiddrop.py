from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveal
from foveal.compress.pyramiddrop import (
    PyramidDrop,
    answer_query_positions,
    instruction_attention,
    select_image_tokens,
    stage_counts,
)
from foveal.compress.runtime import keep_count, visual_flops

from . import reference
from .test_contract import counted
from .tiny import BY_NAME, IMAGE, KINDS, join

torch.set_num_threads(1)
GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden/pyramiddrop.npz"))


def golden(case):
    return {name.split("__")[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}__")}


# Golden numbers -------------------------------------------------------------------------------------------------------


def test_golden_counts():
    ref = golden("counts")
    for n, expected in zip(ref["n"].tolist(), ref["expected"].tolist(), strict=True):
        assert stage_counts(n, ref["ratios"].tolist()) == expected


def test_golden_attention():
    ref = {name: torch.from_numpy(value) for name, value in golden("attn").items()}
    torch.testing.assert_close(instruction_attention(ref["query"], ref["key"]), ref["expected"], atol=1e-6, rtol=1e-5)


def test_golden_selection():
    ref = golden("select")
    chosen = select_image_tokens(torch.from_numpy(ref["scores"]), torch.from_numpy(ref["index"]), int(ref["keep"]))
    assert chosen.tolist() == ref["expected"].tolist()


def test_golden_answer_positions():
    ref = golden("labels")
    assert answer_query_positions(torch.from_numpy(ref["labels"])).tolist() == ref["expected"].tolist()


def test_golden_flops():
    ref = golden("flops")
    flops = visual_flops(ref["tokens"].tolist(), int(ref["hidden"]), int(ref["inter"]))
    assert flops == pytest.approx(float(ref["expected"]), rel=1e-12)
    assert visual_flops([576] * 32, 4096, 11008) == pytest.approx(3.82e12, rel=2e-3)  # the paper's numbers
    small = np.array([576] * 32, dtype=np.int32)
    assert visual_flops(small, 4096, 11008) == visual_flops(small.tolist(), 4096, 11008)  # int32 holds no such number
    assert type(keep_count(np.int64(3), 1.0)) is int
    assert flops == pytest.approx(1.78e12, rel=2e-3)


# Pieces ---------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 3000), st.integers(1, 40), st.integers(0, 40))
def test_counts_are_floors_of_the_exact_share(n, denominator, numerator):
    numerator = min(numerator, denominator)
    assert keep_count(n, numerator / denominator) == n * numerator // denominator


def test_attention_by_hand():
    rng = torch.Generator().manual_seed(0)
    query, key = torch.randn(6, 3, 4, generator=rng), torch.randn(2, 5, 4, generator=rng)
    mask = torch.ones(3, 5, dtype=torch.bool).tril(1)
    want = torch.zeros(5)
    for head in range(6):
        for row in range(3):
            logits = torch.stack([query[head, row] @ key[head // 3, column] / 2 for column in range(5)])
            logits[~mask[row]] = -torch.inf
            want += logits.softmax(0) / 18
    torch.testing.assert_close(instruction_attention(query, key, mask), want)
    assert instruction_attention(query.bfloat16(), key.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="6 heads, no multiple of the 4"):
        instruction_attention(query, torch.zeros(4, 5, 4))


def test_selection_is_in_raster_order_and_within_bounds():
    scores, places = torch.tensor([0.9, 0.1, 0.5, 0.2, 0.8, 0.3]), torch.tensor([1, 2, 4, 5])
    assert select_image_tokens(scores, places, 2).tolist() == [2, 4]
    assert select_image_tokens(scores, places, 0).tolist() == []
    assert select_image_tokens(scores, places, 4).tolist() == [1, 2, 4, 5]
    for keep in (5, -1):
        with pytest.raises(ValueError, match=rf"keep={keep}.*4 image tokens"):
            select_image_tokens(scores, places, keep)


def test_answer_positions_at_the_edges():
    assert answer_query_positions(torch.tensor([5, 5, -100, 7])).tolist() == [2]  # a span at 0 has no row before it
    assert answer_query_positions(torch.full((4,), -100)).tolist() == []
    assert answer_query_positions(torch.tensor([5])).tolist() == []


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: PyramidDrop((1, 2), (0.5,)), "one length"),
        (lambda: PyramidDrop((2, 2), (0.5, 0.2)), r"layers=\(2, 2\).*rise"),
        (lambda: PyramidDrop((0, 2), (0.5, 0.2)), r"layers=\(0, 2\).*from 1"),
        (lambda: PyramidDrop((1, 2), (0.2, 0.5)), r"ratios=\(0.2, 0.5\).*not rise"),
        (lambda: PyramidDrop((1,), (1.5,)), r"ratios=\(1.5,\).*\[0, 1\]"),
        (lambda: PyramidDrop((1,), (-0.5,)), r"\[0, 1\]"),
        (lambda: PyramidDrop((1,), (float("nan"),)), r"\[0, 1\]"),
        (lambda: PyramidDrop((1,), (0.5,), positions="new"), 'positions=.new.*"compact" or "original"'),
        (lambda: PyramidDrop().attach(BY_NAME["llava"].model()), r"layers 0 to 5; take e.g. \(1, 3, 4\)"),
        (lambda: PyramidDrop((2,), (0.5,)).attach(BY_NAME["qwen2_vl"].model()), 'three axes.*positions="original"'),
        (lambda: PyramidDrop((2,), (0.5,)).attach(BY_NAME["qwen2_5_vl"].model()), 'three axes.*positions="original"'),
        (lambda: stage_counts(-1, [0.5]), "n=-1"),
        (lambda: stage_counts(4, [1.5]), "ratio=1.5"),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_found_by_name():
    assert foveal.compress.PyramidDrop is PyramidDrop
    assert foveal.compress.keep_count is keep_count


# Whole models ---------------------------------------------------------------------------------------------------------


def pyramid(layers, ratios, rows=None):
    """The choice written out; ``rows``: places of the questions, counted from the end of the prompt."""

    def choose(at):
        everything = list(range(len(at.is_image)))
        if at.number not in layers:
            return everything
        keep = int(at.n_image * ratios[layers.index(at.number)])
        questions = [len(everything) - 1 - back for back in (rows if rows is not None else [0])]
        if keep >= len(at.images) or not questions:
            return everything
        scores = reference.attention(at.layer, at.hidden, at.rope)[:, questions].mean(0).mean(0).tolist()
        best = sorted(at.images, key=lambda place: -scores[place])[:keep]
        return sorted([*at.texts, *best])

    return choose


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_choice_against_a_slow_loop(kind, positions):
    """Two images are one pool; ratios are of the original count; ranking is by the layer that comes."""
    if kind.multi_axis and positions == "compact":
        pytest.skip("refused")
    layers, ratios = (1, 3, 5), (0.7, 0.4, 0.15)
    model = kind.model(dtype=torch.float64)
    singles = kind.singles(model)
    inputs = join(kind, *singles)
    with torch.no_grad(), PyramidDrop(layers, ratios, positions).attached(model) as reducer:
        logits = model(**inputs).logits
    width = inputs["input_ids"].shape[1]
    for row, single in enumerate(singles):
        prompt = single["input_ids"].shape[1]
        want, kept = reference.run(model, single, prompt, pyramid(layers, ratios), lambda layer: positions == "compact")
        assert [(columns - (width - prompt)).tolist() for columns in reducer.kept[row]] == kept
        torch.testing.assert_close(logits[row, -1:], want, atol=1e-5, rtol=1e-5)
        n = int((single["input_ids"] == IMAGE).sum())
        stages = [n, *stage_counts(n, ratios)]
        assert reducer.image_tokens[row].tolist() == [
            stages[sum(layer >= start for start in layers)] for layer in range(6)
        ]


def conversation(kind, model, seed):
    """Two answers; the rows before them are the questions."""
    single = kind.single(model, 3, kind.sizes[-1], 4, 2, 3, 2, seed=seed)
    labels = single["input_ids"].clone()
    length = labels.shape[1]
    labels[:, 1 : length - 7] = labels[:, length - 5 : length - 2] = -100
    if seed == 0:  # in the other one the first token has a label too, that nothing can predict
        labels[:, 0] = -100
    return single | {"labels": labels}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_training_loss_against_a_slow_loop(kind, side):
    """Questions are the tokens before each answer, averaged, never the end of the sequence, which knows the answer."""
    layers, ratios = (2, 4), (0.5, 0.25)
    compact = kind.positions == "compact"
    model = kind.model(dtype=torch.float64)
    singles = [conversation(kind, model, seed) for seed in range(2)]
    singles.append(kind.single(model, 2, kind.sizes[0], 3))  # nothing to learn: stays whole
    singles[2]["labels"] = torch.full_like(singles[2]["input_ids"], -100)
    inputs = join(kind, *singles, side=side)
    with torch.no_grad(), PyramidDrop(layers, ratios, kind.positions).attached(model) as reducer:
        loss = model(**inputs).loss
    losses = []
    for row, single in enumerate(singles):
        prompt = single["input_ids"].shape[1]
        plain = {name: part for name, part in single.items() if name != "labels"}
        rows = [] if row == 2 else [7, 2]
        logits, kept = reference.run(model, plain, prompt, pyramid(layers, ratios, rows), lambda layer: compact, True)
        gap = inputs["input_ids"].shape[1] - prompt if side == "left" else 0
        assert [(columns - gap).tolist() for columns in reducer.kept[row]] == kept
        labels = single["labels"][0, kept[-1]]
        losses += [
            torch.nn.functional.cross_entropy(logits[place][None].float(), following[None])
            for place, (_, following) in enumerate(pairwise(labels))
            if following != -100
        ]
    assert len(losses) == 8
    torch.testing.assert_close(loss.float(), torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)


def test_gradient_accumulation_counts_as_the_trainer_does():
    kind = BY_NAME["llava"]
    model = kind.model(dtype=torch.float64)
    inputs = conversation(kind, model, 0)
    with torch.no_grad(), PyramidDrop((2,), (0.5,)).attached(model):
        mean, summed = model(**inputs).loss, model(**inputs, num_items_in_batch=1).loss
    torch.testing.assert_close(4 * mean, summed)


def test_deep_layers_train_faster():
    """FLOPs of forward and backward fall together."""
    from torch.utils.flop_counter import FlopCounterMode

    kind = BY_NAME["llava_next"]
    model = kind.model().train()
    inputs = conversation(kind, model, 0)

    def flops():
        with FlopCounterMode(display=False) as counter:
            model(**inputs).loss.backward()
        return counter.get_total_flops()

    full = flops()
    with PyramidDrop((1,), (0.1,)).attached(model):
        assert flops() < 0.6 * full


def test_report_is_exact():
    """Every FLOP of the decoder layers and of the ranking is in the report."""
    kind = BY_NAME["llava_next"]
    model = kind.model()
    inputs = join(kind, *kind.singles(model))
    with PyramidDrop((1, 4), (0.5, 0.2)).attached(model) as reducer:
        reduced, _ = counted(model, inputs)
    report = reducer.report()
    # older versions compute the rotary angles of a renumbering by a small product
    assert report.flops + report.flops_selection == pytest.approx(reduced, rel=1e-4)


def test_a_whole_image_can_go():
    kind = BY_NAME["llava"]
    model = kind.model()
    inputs = kind.singles(model)[0]
    with PyramidDrop((2,), (0.0,)).attached(model) as reducer:
        model(**inputs)
    assert reducer.image_tokens[0].tolist() == [16, 16, 0, 0, 0, 0]
    alone = kind.single(model, (16, 16))
    with (
        PyramidDrop((2,), (0.0,)).attached(model),
        pytest.raises(ValueError, match=r"image tokens alone.*add text"),
    ):
        model(**alone)
