import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveal
from foveal.compress.fopru import (
    FoPru,
    encoder_attention,
    image_rows,
    rank_select,
    row_select,
    token_significance,
)

from .tiny import BY_NAME, IMAGE, PATCH, SIDE, best, join

torch.set_num_threads(1)
GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden/fopru.npz"))
KINDS = [BY_NAME[name] for name in ("llava", "llava_next", "llava_onevision")]
LENGTH = SIDE // PATCH


def golden(case):
    return {name.split("__")[1]: torch.from_numpy(v) for name, v in GOLDEN.items() if name.startswith(f"{case}__")}


# Golden numbers -------------------------------------------------------------------------------------------------------


def test_golden_significance():
    ref = golden("sig")
    for aggregate in ("cls", "mean"):
        got = token_significance(ref["attention"], aggregate)
        torch.testing.assert_close(got, ref[aggregate], atol=1e-6, rtol=1e-5)


def test_golden_selection():
    ref = golden("rank")
    assert torch.equal(rank_select(ref["significance"], float(ref["ratio"])), ref["expected"])
    ref = golden("row")
    assert torch.equal(row_select(ref["significance"], ref["grid"].tolist(), float(ref["ratio"])), ref["expected"])


# Pieces ---------------------------------------------------------------------------------------------------------------


def test_significance_by_hand():
    attention = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    cls = [[sum(attention[b, h, 0, j].item() for h in range(3)) / 3 for j in range(1, 5)] for b in range(2)]
    torch.testing.assert_close(token_significance(attention), torch.tensor(cls))  # not renormalised
    assert token_significance(attention, "mean").shape == (2, 5)


@given(st.integers(1, 40), st.integers(1, 40), st.randoms())
def test_rank_is_in_raster_order_and_follows_the_tokens(n, percent, random):
    significance = torch.randperm(n, generator=torch.Generator().manual_seed(random.randrange(2**31))).float()
    order = torch.randperm(n, generator=torch.Generator().manual_seed(random.randrange(2**31)))
    kept = rank_select(significance, percent / 40)
    assert len(kept) == max(1, n * percent // 40)
    assert torch.equal(kept, kept.unique())
    moved = rank_select(significance[order], percent / 40)
    assert torch.equal(order[moved].sort().values, kept)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**31))
def test_rows_stay_whole(height, width, percent, seed):
    significance = torch.rand(height * width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = row_select(significance, (height, width), percent / 40)
    rows = (kept // width).unique()
    assert len(rows) == max(1, height * percent // 40)
    assert kept.tolist() == [row * width + column for row in rows.tolist() for column in range(width)]
    mean = significance.view(height, width).mean(1)
    assert set(rows.tolist()) == set(mean.topk(len(rows)).indices.tolist())


def test_rows_in_half_precision():
    """Sums of 24 such numbers would be rounded, and another row might win."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(50):
        significance = torch.rand(576, generator=rng).bfloat16()
        got = row_select(significance, (24, 24), 0.25)
        assert torch.equal(got, row_select(significance.double(), (24, 24), 0.25))


def test_one_token_of_576():
    significance = torch.zeros(576)
    significance[123] = 1.0
    assert rank_select(significance, 0.001).tolist() == [123]
    assert row_select(significance, (24, 24), 0.001).tolist() == list(range(120, 144))


def test_rows_of_an_image_with_its_enlarged_map():
    nan = torch.nan
    whole = torch.tensor([1.0, 1, 1, 1, 1, 1, 1, nan, 1, 1, 1, nan]).isnan()  # 2 × 2, then two rows of 3
    assert image_rows(whole, 2, 2).tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    assert image_rows(whole[:4], 2, 2).tolist() == [0, 0, 1, 1]
    assert image_rows(torch.tensor([1.0, 1, 1, 1, nan]).isnan(), 2, 2).tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: token_significance(torch.zeros(3, 3)), r"attention has shape \(3, 3\)"),
        (lambda: token_significance(torch.zeros(1, 1, 3, 3), "max"), "aggregate='max' must be 'cls' or 'mean'"),
        (lambda: rank_select(torch.zeros(4), 0.0), "ratio=0.0.*must lie in"),
        (lambda: rank_select(torch.zeros(4), 1.5), "ratio=1.5"),
        (lambda: rank_select(torch.zeros(0), 0.5), r"significance has shape \(0,\)"),
        (lambda: rank_select(torch.zeros(2, 2), 0.5), r"significance has shape \(2, 2\)"),
        (lambda: row_select(torch.zeros(5), (2, 2), 0.5), r"\(5,\), grid=\(2, 2\) has 4 tokens"),
        (lambda: row_select(torch.zeros(4), (2, 2), -0.5), "ratio=-0.5"),
        (lambda: FoPru(0.0), "ratio=0.0"),
        (lambda: FoPru(float("nan")), "ratio=nan"),
        (lambda: FoPru(strategy="column"), "strategy='column' must be 'rank' or 'row'"),
        (lambda: FoPru(positions="new"), "positions='new' must be 'compact' or 'original'"),
        (lambda: FoPru(aggregate="max"), "aggregate='max'"),
        (lambda: FoPru(layer=0), "layer=0 must be 1, 2"),
        (lambda: FoPru(layer=4).attach(BY_NAME["llava"].model()), "layer=4: the vision tower has blocks 1 to 3"),
        (lambda: FoPru(layer=-4).attach(BY_NAME["llava"].model()), "layer=-4"),
        (lambda: FoPru().attach(BY_NAME["llava_onevision"].model()), 'Siglip.* has no class token.*aggregate="mean"'),
        (lambda: FoPru().attach(BY_NAME["qwen2_vl"].model()), "three axes"),
        (lambda: FoPru().attach(BY_NAME["internvl"].model()), r"FoPru cannot work on InternVL.*here take PyramidDrop"),
        (lambda: FoPru().attach(BY_NAME["smolvlm"].model()), r"FoPru cannot work on SmolVLM.*here take PyramidDrop"),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_models_of_several_feature_layers():
    model = BY_NAME["llava"].model()
    model.config.vision_feature_layer = [-1, -2]
    with pytest.raises(ValueError, match=r"several blocks, \[-1, -2\].*layer=…"):
        FoPru().attach(model)


def test_another_feature_layer_at_the_call():
    kind = BY_NAME["llava"]
    model = kind.model()
    inputs = kind.singles(model)[0]
    with FoPru().attached(model), pytest.raises(ValueError, match=r"vision_feature_layer=-1 at the call, -2 in"):
        model(**inputs, vision_feature_layer=-1)
    with FoPru(layer=-1).attached(model):
        model(**inputs, vision_feature_layer=-1)


def test_found_by_name():
    assert foveal.compress.FoPru is FoPru


# Whole models ---------------------------------------------------------------------------------------------------------


def tower_attention(model, pixels, block):
    """As the eager tower itself reports it."""
    tower = model.model.vision_tower
    return tower(pixels, output_attentions=True).attentions[block]


def test_attention_is_the_encoders_own():
    kind = BY_NAME["llava"]
    model = kind.model(attention="eager", dtype=torch.float64)
    pixels = kind.single(model, 2, (SIDE, SIDE), (SIDE, SIDE))["pixel_values"]
    caught = {}

    def catch(module, args, kwargs):
        caught["hidden"] = kwargs["hidden_states"] if kwargs else args[0]

    attention = getattr(model.model.vision_tower, "vision_model", model.model.vision_tower).encoder.layers[1].self_attn
    attention.register_forward_pre_hook(catch, with_kwargs=True)
    want = tower_attention(model, pixels, 1)
    got = encoder_attention(attention, caught["hidden"])
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, want.double(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(encoder_attention(attention, caught["hidden"], [0, 3]), got[:, :, [0, 3]])
    for rows, places in ((slice(0, 2), [0, 1]), (0, [0]), (torch.tensor(1), [1])):
        torch.testing.assert_close(encoder_attention(attention, caught["hidden"], rows), got[:, :, places])
    half = encoder_attention(attention.bfloat16(), caught["hidden"].bfloat16(), torch.tensor([0]))
    assert half.dtype == torch.float32


def shown(size):
    """Rows and columns of the enlarged map that hold picture, not padding."""
    grid_h, grid_w = (side // PATCH for side in best(*size))
    height, width = size
    if width * grid_h > grid_w * height:
        gap = (grid_h - int(round(height * grid_w / width, 7))) // 2
        return range(gap, grid_h - gap), range(grid_w)
    gap = (grid_w - int(round(width * grid_h / height, 7))) // 2
    return range(grid_h), range(gap, grid_w - gap)


def layout(tiles, size):
    """(row, significance or None for a line end) of every feature of an image of NeXT."""
    entries = [(place // LENGTH, value) for place, value in enumerate(tiles[0])]
    if len(tiles) == 1:
        return [*entries, (LENGTH - 1, None)]
    across = best(*size)[1] // SIDE
    rows, columns = shown(size)
    for number, y in enumerate(rows):
        for x in columns:
            tile = 1 + (y // LENGTH) * across + x // LENGTH
            entries.append((LENGTH + number, tiles[tile][(y % LENGTH) * LENGTH + x % LENGTH]))
        entries.append((LENGTH + number, None))
    return entries


def chosen(entries, ratio, strategy):
    if strategy == "rank":
        patches = [place for place, (_, value) in enumerate(entries) if value is not None]
        best_first = sorted(patches, key=lambda place: -entries[place][1])[: max(1, int(len(patches) * ratio))]
        return [place for place, (_, value) in enumerate(entries) if value is None or place in best_first]
    rows = {}
    for row, value in entries:
        rows.setdefault(row, []).extend([] if value is None else [value])
    best_first = sorted(rows, key=lambda row: -sum(rows[row]) / len(rows[row]))[: max(1, int(len(rows) * ratio))]
    return [place for place, (row, _) in enumerate(entries) if row in best_first]


def slow(kind, model, single, sizes, ratio, strategy, aggregate, block):
    """Columns of one prompt that stay."""
    ids = single["input_ids"][0].tolist()
    keep = [column for column, token in enumerate(ids) if token != IMAGE]
    places = [column for column, token in enumerate(ids) if token == IMAGE]
    for number, size in enumerate(sizes):
        pixels = single["pixel_values"][number]
        pixels = pixels[None] if kind.name == "llava" else pixels
        alone = kind.name == "llava_onevision" and len(sizes) > 1  # not cut into tiles
        if kind.name != "llava":
            pixels = pixels[: 1 if alone else 1 + best(*size)[0] * best(*size)[1] // SIDE**2]
        attention = tower_attention(model, pixels, block)
        if aggregate == "cls":
            tiles = attention.mean(1)[:, 0, 1:].tolist()
        else:
            tiles = attention.mean(1).mean(1)[:, kind.name != "llava_onevision" :].tolist()
        image = [(i // LENGTH, value) for i, value in enumerate(tiles[0])]
        entries = image if kind.name == "llava" else layout(tiles, size)
        own, places = places[: len(entries)], places[len(entries) :]
        keep += [own[place] for place in chosen(entries, ratio, strategy)]
    assert not places
    return sorted(keep)


CHOICES = [
    ("llava", 0.25, "rank", "cls", None),
    ("llava", 0.5, "row", "mean", 1),
    ("llava_next", 0.25, "rank", "cls", None),
    ("llava_next", 0.3, "row", "cls", -1),
    ("llava_next", 0.01, "row", "mean", None),
    ("llava_onevision", 0.4, "rank", "mean", None),
    ("llava_onevision", 0.5, "row", "mean", -2),
]


@pytest.mark.parametrize("choice", CHOICES, ids=json.dumps)
def test_choice_against_a_slow_loop(choice):
    """Two images of different sizes are pruned each by itself; line ends go where they belong."""
    name, ratio, strategy, aggregate, layer = choice
    kind = BY_NAME[name]
    model = kind.model(dtype=torch.float64)
    eager = kind.model(dtype=torch.float64, attention="eager")
    block = layer if layer is not None else model.config.vision_feature_layer
    block = block - 1 if block > 0 else block
    singles = kind.singles(model)
    inputs = join(kind, *singles)
    with torch.no_grad(), FoPru(ratio, strategy, aggregate, layer).attached(model) as reducer:
        model(**inputs)
    first, middle, last = kind.sizes[0], kind.sizes[len(kind.sizes) // 2], kind.sizes[-1]
    width = inputs["input_ids"].shape[1]
    for row, (single, sizes) in enumerate(zip(singles, ([first], [last, middle], []), strict=True)):
        gap = width - single["input_ids"].shape[1]
        want = slow(kind, eager, single, sizes, ratio, strategy, aggregate, block)
        assert all((columns - gap).tolist() == want for columns in reducer.kept[row])  # every layer is short


def test_kernels_stay_as_they_are():
    """No eager attention anywhere, and the tower computes what it did."""
    kind = BY_NAME["llava"]
    model = kind.model(dtype=torch.float64)
    inputs = kind.singles(model)[1]
    plain = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    with FoPru().attached(model):
        seen = model.get_image_features(inputs["pixel_values"]).pooler_output
        assert model.config.vision_config._attn_implementation == "sdpa"
    assert all(torch.equal(*both) for both in zip(plain, seen, strict=True))


def test_a_tower_that_lost_a_token():
    """The strategy that drops the first token of an encoder without a class token."""
    kind = BY_NAME["llava"]
    model = kind.model()
    inputs = kind.singles(model)[0]
    with FoPru().attached(model), pytest.raises(ValueError, match=r"17 features for 16 patches.*default"):
        model(**inputs, vision_feature_select_strategy="full")
