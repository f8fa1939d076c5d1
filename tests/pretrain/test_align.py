import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from foveal.pretrain import align
from foveal.pretrain.align import (
    ALIGNModel,
    ALIGNObjective,
    align_loss,
    compose_query,
    frequency_filter,
    retrieve,
)
from foveal.pretrain.base import ContrastiveOutput
from foveal.pretrain.clip import clip_loss

from .contract import pairs

torch.set_num_threads(1)
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "golden/align.npz").items()}


def golden(case):
    return {name.split(".", 1)[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}.")}


def close(actual, expected):
    """Within 1e-4 + 1e-4 · max|expected|."""
    expected = torch.as_tensor(expected).double()
    assert float((actual.detach().double() - expected).abs().max()) <= 1e-4 + 1e-4 * float(expected.abs().max())


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


# Loss -----------------------------------------------------------------------------------------------------------------


def test_golden_loss():
    ref = golden("loss")
    leaves = [ref[name].clone().requires_grad_() for name in ("image_features", "text_features", "temperature")]
    out = align_loss(*leaves, label_smoothing=float(ref["label_smoothing"]))
    for name in ("loss", "image_to_text", "text_to_image"):
        close(getattr(out, name), ref[name])
    out.loss.backward()
    for leaf, name in zip(leaves, ("grad_image", "grad_text", "grad_temperature"), strict=True):
        close(leaf.grad, ref[name])


def test_golden_objective():
    ref = golden("objective")
    objective = ALIGNObjective(6, 7)
    weights = {name.removeprefix("weights."): value for name, value in ref.items() if name.startswith("weights.")}
    assert set(objective.state_dict()) == set(weights)
    objective.load_state_dict(weights, strict=True)
    close(objective.embed_image(ref["feature_map"]), ref["image_embeds"])
    close(objective.embed_text(ref["text_hidden"]), ref["text_embeds"])
    close(objective(ref["feature_map"], ref["text_hidden"]).loss, ref["loss"])
    pooled, first = ref["feature_map"].mean((2, 3)), ref["text_hidden"][:, 0]
    close(objective(pooled, first).loss, ref["loss"])


def test_without_smoothing_it_is_twice_clip():
    image, text = pairs(5, 0)
    ours, clip = align_loss(image, text, 1 / 10, label_smoothing=0.0), clip_loss(image, text, 10.0)
    torch.testing.assert_close(ours.image_to_text, clip.image_to_text)
    torch.testing.assert_close(ours.text_to_image, clip.text_to_image)
    torch.testing.assert_close(ours.logits_per_image, clip.logits_per_image)
    torch.testing.assert_close(ours.loss, 2 * clip.loss)
    assert isinstance(ours, ContrastiveOutput)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_loss_by_the_formula_on_three_ranks(smoothing):
    """−Σ_j q_j log softmax_j over all G columns, the mean over the ranks, in double precision."""
    image, text = (x.double() for x in pairs(6, 1))
    both = {"all_image_features": image, "all_text_features": text}
    parts = [
        align_loss(v, t, 0.2, label_smoothing=smoothing, **both, rank=rank)
        for rank, (v, t) in enumerate(zip(image.chunk(3), text.chunk(3), strict=True))
    ]
    scores = torch.nn.functional.normalize(image) @ torch.nn.functional.normalize(text).T / 0.2
    target = (1 - smoothing) * torch.eye(6).double() + smoothing / 6
    expected = -(target * scores.log_softmax(1)).sum(1).mean() - (target * scores.T.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(torch.stack([part.loss for part in parts]).mean(), expected)
    torch.testing.assert_close(align_loss(image, text, 0.2, label_smoothing=smoothing).loss, expected)
    floor = -(target[0] * target[0].clamp(min=1e-30).log()).sum()
    assert expected >= 2 * floor
    assert parts[1].logits_per_image.shape == (2, 6)


def test_smoothing_and_temperature_pull_as_they_should():
    image = torch.eye(4)
    perfect = align_loss(image, image, 1e-2, label_smoothing=0.0).loss
    assert float(perfect) == pytest.approx(0.0, abs=1e-6)
    assert align_loss(image, image, 1e-2, label_smoothing=0.1).loss > 1
    assert align_loss(image, image, 0.1, label_smoothing=0.0).loss < align_loss(image, image, 1, label_smoothing=0).loss


def test_temperature_is_learned_itself_and_clamped():
    objective = ALIGNObjective(8, 8, temperature_init=0.5)
    assert objective.temperature.item() == 0.5
    assert ALIGNObjective(8, 8).temperature.item() == 1.0
    with torch.no_grad():
        objective.temperature.fill_(-0.2)
    with pytest.raises(ValueError, match=r"temperature=-0\.2"):
        objective(*pairs(3, 0))
    objective.clamp_()
    assert objective.temperature.item() == pytest.approx(1e-3)
    objective.clamp_(0.05)
    assert objective.temperature.item() == pytest.approx(0.05)


def test_only_the_first_token_counts():
    objective, (image, _) = seeded(lambda: ALIGNObjective(8, 5)), pairs(3, 0)
    hidden = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    other = torch.cat([hidden[:, :1], hidden[:, 1:] + 1], 1)
    torch.testing.assert_close(objective(image, hidden).loss, objective(image, other).loss)
    assert not torch.allclose(objective.embed_text(hidden), objective.embed_text(hidden + 1))


def test_a_half_precision_objective_takes_and_gives_what_a_float_one_does():
    objective, (image, text) = seeded(lambda: ALIGNObjective(8, 8)), pairs(4, 0)
    whole = objective(image, text).loss.item()
    assert objective.to(torch.bfloat16)(image, text.bfloat16()).loss.item() == pytest.approx(whole, abs=0.05)


@pytest.mark.parametrize("wide", [0, 1])
def test_sides_of_different_dtypes(wide):
    objective, sides = seeded(lambda: ALIGNObjective(8, 8)), pairs(4, 0)
    double = [x.double() for x in sides]
    mixed = [double[side] if side == wide else sides[side] for side in range(2)]
    loss = align_loss(*mixed, 0.5).loss
    assert loss.dtype == torch.double
    torch.testing.assert_close(loss, align_loss(*double, 0.5).loss)
    torch.testing.assert_close(objective(*mixed).loss.float(), objective(*sides).loss)
    for left, right in zip(retrieve(*mixed, 3), retrieve(*double, 3), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"temperature": 0.0}, "temperature=0.0.*positive"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0.*\[0, 1\)"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1"),
        ({"text_features": torch.ones(4, 7)}, r"text_features \(4, 7\)"),
        ({"all_image_features": torch.ones(8, 8)}, "all_text_features=None"),
        ({"all_image_features": torch.ones(9, 8), "all_text_features": torch.ones(9, 8)}, "multiple of the 4"),
        ({"all_image_features": torch.ones(8, 8), "all_text_features": torch.ones(8, 8), "rank": 2}, "rank=2"),
        ({"rank": 1}, "rank=1"),
    ],
)
def test_bad_losses(change, match):
    with pytest.raises(ValueError, match=match):
        align_loss(**{"image_features": torch.ones(4, 8), "text_features": torch.ones(4, 8), "temperature": 1} | change)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda o: o.embed_image(torch.ones(2, 5, 3, 3)), r"\(2, 5, 3, 3\).*image_dim=6"),
        (lambda o: o.embed_image(torch.ones(2, 6, 3)), "image_dim=6"),
        (lambda o: o.embed_image(torch.ones(2, 6, 0, 3)), "image_dim=6"),
        (lambda o: o.embed_text(torch.ones(7)), r"\(7,\).*text_dim=7"),
        (lambda o: o.embed_text(torch.ones(2, 3, 4, 7)), "text_dim=7"),
        (lambda o: o.embed_text(torch.ones(2, 3, 6)), "text_dim=7"),
        (lambda o: o(torch.ones(2, 6), torch.ones(3, 7)), "image_features"),
        (lambda o: o.clamp_(0.0), "minimum=0.0"),
        (lambda _: ALIGNObjective(0, 7), "image_dim=0"),
        (lambda _: ALIGNObjective(6, 7, temperature_init=0), "temperature_init=0"),
        (lambda _: ALIGNObjective(6, 7, label_smoothing=1), "label_smoothing=1"),
    ],
)
def test_bad_objectives(call, match):
    with pytest.raises(ValueError, match=match):
        call(ALIGNObjective(6, 7))


# Towers ---------------------------------------------------------------------------------------------------------------


def peer() -> transformers.AlignModel:
    """transformers' ALIGN, tiny, random weights."""
    text = {
        "vocab_size": 30,
        "hidden_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 8,
    }
    vision = {
        "image_size": 32,
        "width_coefficient": 0.2,
        "depth_coefficient": 0.1,
        "kernel_sizes": [3, 3],
        "in_channels": [32, 16],
        "out_channels": [16, 24],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 6],
        "depthwise_padding": [],
        "hidden_dim": 16,
    }
    config = transformers.AlignConfig(text_config=text, vision_config=vision, projection_dim=8)
    return seeded(lambda: transformers.AlignModel(config)).eval()


IDS = torch.tensor([[1, 3, 4, 2], [1, 5, 2, 0], [1, 6, 7, 2]])
MASK = (IDS > 0).long()


def test_the_class_of_transformers():
    """Same embeddings and scores, twice its loss, and training ours trains theirs."""
    theirs = peer()
    model = ALIGNModel.from_transformers(theirs)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    reference = theirs(input_ids=IDS, pixel_values=pixels, attention_mask=MASK, return_loss=True)
    torch.testing.assert_close(model.encode_image(pixels), reference.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.encode_text(IDS, MASK), reference.text_embeds, atol=1e-5, rtol=1e-4)
    out = model(pixels, IDS, MASK)
    torch.testing.assert_close(out.logits_per_image, reference.logits_per_image, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.loss, 2 * reference.loss, atol=1e-5, rtol=1e-4)
    out.loss.backward()
    assert theirs.temperature.grad.abs() > 0
    assert theirs.text_projection.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in theirs.vision_model.parameters())
    keys = {name for name in theirs.state_dict() if name.startswith(("temperature", "text_projection"))}
    assert set(model.objective.state_dict()) == keys


class Stub(nn.Module):
    """A tower that answers with a fixed output and remembers how it was asked."""

    def __init__(self, output):
        super().__init__()
        self.output, self.asked = output, None

    def forward(self, *values, **named):
        self.asked = values, named
        return self.output


def test_towers_may_return_tensors_or_outputs():
    ref = golden("objective")
    objective = ALIGNObjective(6, 7)
    objective.load_state_dict({k.removeprefix("weights."): v for k, v in ref.items() if k.startswith("weights.")})
    for wrap in (lambda x: x, lambda x: SimpleNamespace(last_hidden_state=x)):
        image, text = Stub(wrap(ref["feature_map"])), Stub(wrap(ref["text_hidden"]))
        model = ALIGNModel(image, text, objective)
        pixels, ids = torch.zeros(5, 3, 4, 4), torch.ones(5, 4, dtype=torch.long)
        close(model(pixels, ids).loss, ref["loss"])
        assert text.asked[0] == ()
        assert text.asked[1]["input_ids"] is ids
        assert text.asked[1]["attention_mask"] is None
        assert torch.equal(image.asked[0][0], pixels)


def test_bad_model_inputs():
    model = ALIGNModel.from_transformers(peer())
    with pytest.raises(ValueError, match=r"input_ids \(1, 9\).*at most 8: truncate"):
        model.encode_text(torch.ones(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match=r"input_ids \(4,\)"):
        model.encode_text(IDS[0])
    with pytest.raises(ValueError, match=r"hides the first token of row 1.*pad right"):
        model.encode_text(IDS, MASK.roll(1, 1))  # left padding: row 1 begins with it
    with pytest.raises(ValueError, match="hides the first token of row 0"):
        model.encode_text(IDS, torch.zeros_like(IDS))
    with pytest.raises(ValueError, match="must have the same shape"):
        model.encode_text(IDS, MASK[:, :3])
    with pytest.raises(ValueError, match="image_features"):
        model(torch.zeros(2, 3, 32, 32), IDS, MASK)
    broken = peer()
    broken.config.vision_config.pooling_type = "max"
    with pytest.raises(ValueError, match=r"'max'.*averages"):
        ALIGNModel.from_transformers(broken)


# Data filter ----------------------------------------------------------------------------------------------------------

ROWS, KWARGS = (json.loads(bytes(golden("filter")[name].numpy())) for name in ("rows", "kwargs"))
OFF = {
    "min_side": 0,
    "max_aspect": math.inf,
    "max_texts_per_image": 10**9,
    "max_images_per_text": 10**9,
    "min_words": 0,
    "max_words": 10**9,
}


def columns(rows):
    texts, ids, sizes = zip(*rows, strict=True)
    return list(texts), list(ids), [tuple(size) for size in sizes]


def test_golden_filter():
    keep = frequency_filter(*columns(ROWS), **KWARGS)
    assert keep.dtype == torch.bool
    assert torch.equal(keep, golden("filter")["keep"])
    assert 0 < int(keep.sum()) < len(keep)


def test_the_order_of_the_rows_does_not_matter():
    """Except for ties at the end of the vocabulary, so with a vocabulary that holds everything."""
    options, order = {**KWARGS, "vocab_size": 10**6}, np.random.default_rng(0).permutation(len(ROWS))
    keep = frequency_filter(*columns(ROWS), **options)
    assert torch.equal(frequency_filter(*columns([ROWS[i] for i in order]), **options), keep[order])
    assert bool(frequency_filter(*columns(ROWS), **OFF).all())
    assert frequency_filter([], [], []).shape == (0,)


def kept(rows, **limits):
    return frequency_filter(*columns(rows), **{**OFF, **limits}).tolist()


def test_every_limit_at_its_edge():
    sizes = [(200, 300), (201, 300), (300, 201), (201, 603), (201, 602)]
    assert kept([("a", i, size) for i, size in enumerate(sizes)], min_side=200) == [False, True, True, True, True]
    assert kept([("a", i, size) for i, size in enumerate(sizes)], max_aspect=3.0)[3:] == [False, True]
    assert kept([("a", 0, (400, 440))], max_aspect=1.1) == [440 / 400 < 1.1] == [False]  # but 440 < 1.1 * 400 holds
    assert kept([("a", 0, (0, 5))], min_side=-1) == [False]
    words = [(" ".join("abcde"[:n]), n, (9, 9)) for n in range(1, 6)]
    assert kept(words, min_words=2, max_words=4) == [False, True, True, True, False]
    # distinct texts of an image and distinct images of a text: repeats of a row do not add up
    several = [("a b", 0, (9, 9)), ("a b", 0, (9, 9)), ("a c", 0, (9, 9)), ("a c", 1, (9, 9))]
    assert kept(several, max_texts_per_image=2) == [True] * 4
    assert kept(several, max_texts_per_image=1) == [False, False, False, True]
    assert kept(several, max_images_per_text=2) == [True] * 4
    assert kept(several, max_images_per_text=1) == [True, True, False, False]


def test_one_table_of_words_and_pairs():
    texts = ["x y", "x y", "y x", "Z"]
    table = Counter({"y": 3, "x": 3, "x y": 2, "y x": 1, "z": 1})  # first seen: x, y, x y, then y x, then z
    assert kept([(text, 0, (9, 9)) for text in texts], vocab_size=3) == [True, True, False, False]
    assert kept([(text, 0, (9, 9)) for text in texts], vocab_size=2) == [False] * 4
    assert kept([(text, 0, (9, 9)) for text in texts], vocab_size=4) == [True, True, True, False]
    assert kept([(text, 0, (9, 9)) for text in texts], vocab_size=len(table)) == [True] * 4


def test_frequencies_count_rows_that_are_not_kept():
    rows = [("rare word", 0, (500, 500)), ("rare word", 1, (10, 10)), ("other", 2, (500, 500))]
    assert kept(rows, min_side=200, vocab_size=3) == [True, False, False]


def test_image_ids_of_a_tensor_are_values():
    texts, sizes = ["a", "b", "c"], [(9, 9)] * 3
    for ids in (torch.tensor([1, 1, 2]), np.array([1, 1, 2])):
        keep = frequency_filter(texts, ids, sizes, **{**OFF, "max_texts_per_image": 1})
        assert keep.tolist() == [False, False, True]


def test_columns_must_match():
    with pytest.raises(ValueError, match=r"texts \(2\), image_ids \(1\) and sizes \(2\)"):
        frequency_filter(["a", "b"], [1], [(9, 9)] * 2)


# Search ---------------------------------------------------------------------------------------------------------------


def test_golden_compose_and_retrieve():
    ref = golden("compose")
    for name in [name for name in ref if name.startswith(("add", "subtract"))]:
        operation, image_weight, text_weight = name.split("_")
        query = compose_query(
            ref["image_features"],
            ref["text_features"],
            operation=operation,
            image_weight=float(image_weight),
            text_weight=float(text_weight),
        )
        close(query, ref[name])
    query = compose_query(ref["image_features"], ref["text_features"])
    close(query, ref["add_1.0_2.0"])
    scores, indices = retrieve(query, ref["gallery"], int(ref["k"]))
    close(scores, ref["scores"])
    assert torch.equal(indices, ref["indices"])
    assert torch.equal(retrieve(query, ref["gallery"], int(ref["k"]), exclude=ref["exclude"])[1], ref["indices_excl"])


def test_composed_queries():
    image, text = pairs(5, 0)
    query = compose_query(3 * image, 0.1 * text, operation="subtract", text_weight=1.5)
    torch.testing.assert_close(query.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(query, compose_query(image, text, text_weight=-1.5))
    with pytest.raises(ValueError, match="operation='multiply'"):
        compose_query(image, text, operation="multiply")
    with pytest.raises(ValueError, match=r"\(4, 8\)"):
        compose_query(image, text[:4])
    with pytest.raises(ValueError, match="row 0: image and text cancel"):
        compose_query(image, image, operation="subtract", text_weight=1.0)
    with pytest.raises(ValueError, match="NaN"):
        compose_query(image * math.nan, text)


def test_retrieval(monkeypatch):
    gallery = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    query = torch.tensor([[5.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    scores, indices = retrieve(query, gallery, 3)
    assert indices[:2].tolist() == [[1, 2, 3], [0, 3, 1]]  # equal cosines: the lower index first
    assert bool((scores.diff(dim=1) <= 1e-7).all())
    exclude = torch.tensor([1, 0, 3])
    left = retrieve(query, gallery, 3, exclude=exclude)
    assert not bool((left[1] == exclude[:, None]).any())
    assert bool(left[0].isfinite().all())
    monkeypatch.setattr(align, "_CHUNK", 2)
    assert torch.equal(retrieve(query, gallery, 3, exclude=exclude)[1], left[1])
    assert torch.equal(retrieve(query, gallery, 3, exclude=[1, 0, 3])[1], left[1])
    assert retrieve(query[:0], gallery, 2, exclude=[])[1].shape == (0, 2)


@pytest.mark.parametrize(("rows", "width", "queries"), [(3, 8, 1), (7, 64, 3), (13, 17, 8), (50, 512, 3)])
def test_equal_rows_keep_their_order(rows, width, queries):
    """Sums of float32 products may differ in the last digits for equal rows, and for multiples of a row."""
    rng = torch.Generator().manual_seed(rows)
    query, row = torch.randn(queries, width, generator=rng), torch.randn(1, width, generator=rng)
    for gallery in (row.repeat(rows, 1), row * 2.0 ** torch.arange(rows)[:, None]):
        scores, indices = retrieve(query, gallery, rows)
        assert indices.tolist() == [list(range(rows))] * queries
        assert bool((scores == scores[:, :1]).all())
        assert scores.dtype == torch.float32
    torch.testing.assert_close(scores[:, 0], torch.nn.functional.cosine_similarity(query, row))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"k": 0}, r"k=0.*\[1, 4\]"),
        ({"k": 5}, r"k=5.*\[1, 4\]"),
        ({"k": 4, "exclude": torch.zeros(2, dtype=torch.long)}, r"k=4.*\[1, 3\]"),
        ({"exclude": torch.tensor([0, 4])}, r"exclude \[0, 4\]"),
        ({"exclude": torch.tensor([0])}, "2 indices"),
        ({"exclude": [0, -1]}, r"exclude \[0, -1\]"),
        ({"exclude": [0.5, 1.0]}, r"exclude \[0.5, 1.0\]"),
        ({"query": torch.ones(2, 3)}, r"query \(2, 3\)"),
        ({"query": torch.full((2, 2), math.nan)}, "query holds NaN"),
    ],
)
def test_bad_retrieval(change, match):
    with pytest.raises(ValueError, match=match):
        retrieve(**{"query": torch.ones(2, 2), "gallery": torch.ones(4, 2), "k": 1} | change)
