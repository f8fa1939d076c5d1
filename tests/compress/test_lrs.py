import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import foveal
from foveal.compress import lrs
from foveal.compress.lrs import (
    attention_distillation_loss,
    build_pyramid,
    coarse_to_fine,
    crop_padding,
    pyramid_plan,
    scatter_tiles,
    select_tokens,
    select_tokens_by_threshold,
    text_to_vision_attention,
    vote_tiles,
)

torch.set_num_threads(1)
GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden/lrs.npz"))


def golden(case):
    found = {name.split("__")[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}__")}
    return {name: torch.from_numpy(value) if value.ndim else value.item() for name, value in found.items()}


# Golden numbers -------------------------------------------------------------------------------------------------------


def test_golden_plan():
    ref = golden("plan")
    plan = pyramid_plan(*ref["hw"].tolist())
    rows = [[level.ratio, *level.resized_hw, *level.grid_hw] for level in plan]
    torch.testing.assert_close(torch.tensor(rows, dtype=torch.float64), ref["expected"])


def test_golden_attention():
    ref = golden("attn")
    got = text_to_vision_attention(ref["query"], ref["key"])
    torch.testing.assert_close(got, ref["expected"], atol=1e-6, rtol=1e-5)


def test_golden_selection():
    ref = golden("select")
    chosen = select_tokens(ref["scores"], ref["ratio"], ref["row_length"])
    assert chosen.tolist() == ref["expected"].tolist()


def test_golden_votes():
    ref = golden("vote")
    h, w, gh, gw, newline, most = ref["args"].tolist()
    tiles = vote_tiles(ref["index"], (h, w), (gh, gw), bool(newline), None if most < 0 else most)
    assert tiles.tolist() == ref["expected"].tolist()


def test_golden_divergence():
    ref = golden("kl")
    loss = attention_distillation_loss(ref["student"], ref["teacher"])
    assert float(loss) == pytest.approx(ref["expected"], rel=1e-5)


# Pyramid --------------------------------------------------------------------------------------------------------------

SIDES = st.integers(1, 30_000)


@given(SIDES, SIDES, st.sampled_from([16, 64, 336]), st.sampled_from([64, 192, 1008]))
def test_levels_grow_from_a_thumbnail_to_the_picture(height, width, tile, base):
    thumbnail, *fine = pyramid_plan(height, width, tile, base)
    assert thumbnail.grid_hw == (1, 1)
    assert thumbnail.ratio == min(tile / height, tile / width)
    assert fine[-1].ratio == 1
    assert fine[0].ratio == min(base / max(height, width), 1)
    assert all(finer.ratio == 2 * coarser.ratio for coarser, finer in pairwise(fine[1:]))
    for level in (thumbnail, *fine):
        for resized, grid, padded, side in zip(
            level.resized_hw, level.grid_hw, level.padded_hw, (height, width), strict=True
        ):
            assert 0 < resized <= padded == grid * tile
            assert padded - resized < tile
            assert resized >= math.floor(side * level.ratio)
        assert level.padded_hw[0] == level.resized_hw[0] or level.padded_hw[1] == level.resized_hw[1]
    for coarser, finer in pairwise(fine):
        assert coarser.grid_hw[0] <= finer.grid_hw[0]
        assert coarser.grid_hw[1] <= finer.grid_hw[1]


def test_a_small_picture_keeps_its_thumbnail_and_one_level():
    plan = pyramid_plan(336, 336)
    assert [level.ratio for level in plan] == [1, 1]
    assert [level.grid_hw for level in plan] == [(1, 1), (1, 1)]
    assert [level.ratio for level in pyramid_plan(2016, 1008)[1:]] == [0.5, 1]  # ρ is a power of two: not twice


def test_pixels_by_hand():
    """Bilinear between the centres of pixels, no averaging, the picture top left, zeros elsewhere."""
    image = torch.randn(3, 23, 31, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plan = pyramid_plan(23, 31, tile=8, base_long_side=16)
    for level, tiles in zip(plan, build_pyramid(image, plan, tile=8), strict=True):
        (h, w), (gh, gw) = level.resized_hw, level.grid_hw
        assert tiles.shape == (gh, gw, 3, 8, 8)
        for y in range(gh * 8):
            for x in range(gw * 8):
                got = tiles[y // 8, x // 8, :, y % 8, x % 8]
                if y >= h or x >= w:
                    assert not got.any()
                    continue
                down, across = max((y + 0.5) * 23 / h - 0.5, 0), max((x + 0.5) * 31 / w - 0.5, 0)
                top, left = int(down), int(across)
                corners = image[:, [top, min(top + 1, 22)]][:, :, [left, min(left + 1, 30)]]
                rows = corners[:, 0] * (1 - down + top) + corners[:, 1] * (down - top)
                want = rows[:, 0] * (1 - across + left) + rows[:, 1] * (across - left)
                torch.testing.assert_close(got, want)


# Tokens ---------------------------------------------------------------------------------------------------------------


def test_attention_is_over_the_image_alone_and_after_the_softmax_averaged():
    rng = torch.Generator().manual_seed(0)
    query, key = torch.randn(4, 8, generator=rng) * 4, torch.randn(2, 5, 8, generator=rng)
    heads = [torch.softmax(key[head // 2] @ query[head] / 8**0.5, 0) for head in range(4)]
    torch.testing.assert_close(text_to_vision_attention(query, key), sum(heads) / 4)
    assert text_to_vision_attention(query.bfloat16(), key.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="multiple"):
        text_to_vision_attention(query[:3], key)


@given(st.data())
def test_selection_by_hand(data):
    rows, width = data.draw(st.integers(1, 5)), data.draw(st.integers(2, 6))
    n, newline = rows * width, data.draw(st.booleans())
    scores = data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5]), min_size=n, max_size=n))
    valid = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    ratio = data.draw(st.sampled_from([0.1, 0.25, 0.5, 1.0]))
    there = [place for place in range(n) if valid[place]]
    best = sorted(there, key=lambda place: (-scores[place], place))[: int(len(there) * ratio)]
    newlines = range(width - 1, n, width) if newline else []
    got = select_tokens(torch.tensor(scores), ratio, width if newline else None, torch.tensor(valid))
    assert got.tolist() == sorted({*best, *newlines})


def test_selection_by_threshold():
    scores = torch.tensor([9.0, 1.0, 2.0, 3.0, 50.0, 0.0])
    valid = torch.tensor([False, True, True, True, True, True])
    low, high = np.quantile([1, 2, 3, 50, 0], [0.05, 0.95])
    for threshold in (0.0, 0.02, 0.05, 0.5, float((np.float32(3) - low) / (high - low))):
        want = [
            place for place in range(1, 6) if np.clip((scores[place] - low) / (high - low), 0, 1) > threshold + 1e-7
        ]
        assert select_tokens_by_threshold(scores, threshold, valid=valid).tolist() == want
    assert select_tokens_by_threshold(scores, 0.5, 2, valid).tolist() == [1, 3, 4, 5]
    assert select_tokens_by_threshold(torch.ones(4)).tolist() == []  # nobody stands out


def test_votes_by_hand():
    """Tokens of a 3 × 5 grid, the last column newlines, over 2 × 3 tiles."""
    index = torch.tensor([0, 1, 3, 4, 9, 12, 13, 13])
    assert vote_tiles(index, (3, 5), (2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 1]]
    assert vote_tiles(index, (3, 5), (2, 3), newline=True).tolist() == [[0, 0], [0, 1], [1, 1]]
    assert vote_tiles(index, (3, 5), (2, 3), newline=True, max_tiles=1).tolist() == [[1, 1]]  # three votes
    assert vote_tiles(index, (3, 5), (2, 3), newline=True, max_tiles=2).tolist() == [[0, 0], [1, 1]]
    assert vote_tiles(torch.tensor([0, 3]), (3, 5), (2, 3), max_tiles=1).tolist() == [[0, 0]]  # a tie


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.randoms())
def test_scattered_tiles_are_found_again(rows, columns, side, random):
    positions = [(row, column) for row in range(rows) for column in range(columns)]
    random.shuffle(positions)
    positions = positions[: random.randrange(len(positions) + 1)]
    features = torch.arange(1, len(positions) * side**2 * 2 + 1).view(-1, side**2, 2)
    place = torch.tensor(positions, dtype=torch.long).view(-1, 2)
    canvas, mask = scatter_tiles(features, place, (rows, columns), side)
    assert canvas.shape == (rows * side, columns * side, 2)
    for number, (row, column) in enumerate(positions):
        own = canvas[row * side : (row + 1) * side, column * side : (column + 1) * side]
        assert own.reshape(-1, 2).tolist() == features[number].tolist()
    assert torch.equal(mask, canvas.any(-1))
    assert int(mask.sum()) == len(positions) * side**2


@pytest.mark.parametrize(
    ("resized", "want"),
    [((70, 100), (7, 10)), ((100, 70), (8, 5)), ((64, 80), (8, 10)), ((1, 99), (1, 10)), ((9, 9), (8, 8))],
)
def test_padding_is_cropped_right_or_below(resized, want):
    canvas = torch.arange(80).view(8, 10)
    assert crop_padding(canvas, resized).tolist() == canvas[: want[0], : want[1]].tolist()


def test_divergence_runs_from_teacher_to_student():
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 2, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    student[..., 2] = teacher[..., 2] = -math.inf
    student.requires_grad_(True)
    teacher.requires_grad_(True)
    loss = attention_distillation_loss(student, teacher, 2.0)
    keep = [0, 1, 3, 4, 5]
    p, q = (torch.softmax(logits.detach()[..., keep] / 2, -1) for logits in (teacher, student))
    torch.testing.assert_close(loss.detach(), (p * (p / q).log()).sum(-1).mean())
    loss.backward()
    assert teacher.grad is None
    torch.testing.assert_close(student.grad[..., keep], (q - p) / 2 / (2 * 3 * 4 * 2))
    assert not student.grad[..., 2].any()
    assert attention_distillation_loss(teacher, teacher) == 0
    torch.testing.assert_close(attention_distillation_loss(student[0], teacher[0], 2.0).ndim, 0)


def test_masks_of_student_and_teacher_may_differ():
    masked, plain = torch.tensor([0.0, 1.0, -math.inf]).view(1, 1, 1, 3), torch.zeros(1, 1, 1, 3, requires_grad=True)
    p = torch.softmax(torch.tensor([0.0, 1.0]), -1)
    loss = attention_distillation_loss(plain, masked)
    torch.testing.assert_close(loss.detach(), (p * (3 * p).log()).sum())
    loss.backward()
    torch.testing.assert_close(plain.grad.flatten(), 1 / 3 - torch.cat([p, torch.zeros(1)]))
    assert attention_distillation_loss(masked, plain) == math.inf


# Coarse to fine -------------------------------------------------------------------------------------------------------


def run_by_hand(pyramid, plan, encode, score, side, newline, ratio, last, most):
    """The whole pass with lists of places instead of masks."""
    tiles = [(r, c) for r in range(plan[1].grid_hw[0]) for c in range(plan[1].grid_hw[1])]
    fetched, done = [], None
    for level in range(1, last + 1):
        (gh, gw), (h, w) = plan[level].grid_hw, plan[level].resized_hw
        rows, columns = gh * side, gw * side
        if w * rows > columns * h:
            rows = max(1, int(h * columns / w))
        else:
            columns = max(1, int(w * rows / h))
        table = {}
        for r, c in tiles:
            own = encode(pyramid[level][r, c][None])[0]
            for number in range(side**2):
                y, x = r * side + number // side, c * side + number % side
                if y < rows and x < columns:
                    table[y, x] = own[number]
        if not table:  # nothing but a strip thinner than a token: the level before was the last
            return (*done, fetched)
        fetched.append(tiles)
        width = columns + (newline is not None)
        for y in range(rows if newline is not None else 0):
            table[y, columns] = newline
        tokens = [table.get((y, x)) for y in range(rows) for x in range(width)]
        valid = torch.tensor([token is not None for token in tokens])
        dense = torch.stack([torch.zeros(tokens_dim(tokens)) if token is None else token for token in tokens])
        scores = score(dense, valid, level).tolist()
        there = [place for place, token in enumerate(tokens) if token is not None]
        best = sorted(there, key=lambda place: (-scores[place], place))[: int(len(there) * ratio)]
        ends = {place for place in there if newline is not None and place % width == columns}
        index = sorted({*best, *ends})
        done = dense[index], index
        if level == last:
            return (*done, fetched)
        voters = [place for place in there if place % width < columns]
        voters = sorted(voters, key=lambda place: (-scores[place], place))[: max(1, int(len(voters) * ratio))]
        fine_rows, fine_columns = plan[level + 1].grid_hw
        votes = {}
        for place in voters:
            tile = (place // width * fine_rows // rows, place % width * fine_columns // width)
            votes[tile] = votes.get(tile, 0) + 1
        tiles = sorted(sorted(votes, key=lambda tile: (-votes[tile], tile))[:most])
    raise AssertionError


def tokens_dim(tokens):
    return next(len(token) for token in tokens if token is not None)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(5, 90),
    st.integers(5, 90),
    st.integers(1, 4),
    st.sampled_from([None, 1, 3]),
    st.booleans(),
    st.integers(0, 9),
)
def test_the_whole_pass_by_hand(height, width, max_level, max_tiles, newline, seed):
    rng = torch.Generator().manual_seed(seed)
    plan = pyramid_plan(height, width, tile=4, base_long_side=12)
    pyramid = build_pyramid(torch.randn(3, height, width, generator=rng), plan, 4)
    end = torch.randn(5, generator=rng) if newline else None
    mix, direction = torch.randn(3, 5, generator=rng), torch.randn(5, generator=rng)

    def encode(tiles):
        return torch.nn.functional.avg_pool2d(tiles, 2).flatten(2).transpose(1, 2) @ mix

    def score(tokens, valid, level):
        assert not tokens[~valid].any()
        return torch.where(valid, (tokens * level) @ direction, torch.nan)

    last = min(max_level, len(plan) - 1)
    tokens, index, fetched = run_by_hand(pyramid, plan, encode, score, 2, end, 0.3, last, max_tiles)
    got = coarse_to_fine(pyramid, plan, encode, score, 2, end, 0.3, max_level, max_tiles)
    assert got.level == len(fetched) <= last
    assert [tiles.tolist() for tiles in got.tiles] == [[list(tile) for tile in tiles] for tiles in fetched]
    assert got.tiles_encoded == sum(len(tiles) for tiles in fetched)
    assert got.index.tolist() == index
    torch.testing.assert_close(got.tokens, tokens.view(-1, 5))


def test_few_tiles_are_encoded():
    """One bright spot in 64 × 64 tiles: the way down to it, and nothing else."""
    image = torch.zeros(3, 512, 512)
    image[:, 297:321, 73:97] = 1  # wide enough for the samples of level 1, 16 pixels apart
    plan = pyramid_plan(512, 512, tile=8, base_long_side=32)
    pyramid, seen = build_pyramid(image, plan, 8), []

    def encode(tiles):
        seen.append(len(tiles))
        return torch.nn.functional.max_pool2d(tiles, 2).flatten(2).transpose(1, 2)

    found = coarse_to_fine(pyramid, plan, encode, lambda t, v, level: t.sum(1), 4, None, 0.02, max_level=9, max_tiles=4)
    assert found.level == 5
    assert sum(seen) == found.tiles_encoded < 40
    assert all(37 <= row <= 40 and 9 <= column <= 12 for row, column in found.tiles[-1].tolist())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: pyramid_plan(0, 5), "height=0"),
        (lambda: pyramid_plan(5, 5, tile=0), "tile=0"),
        (lambda: build_pyramid(torch.zeros(4, 8, 8), pyramid_plan(8, 8)), r"image \(4, 8, 8\)"),
        (lambda: build_pyramid(torch.zeros(3, 8, 8, dtype=torch.uint8), pyramid_plan(8, 8)), "uint8"),
        (lambda: build_pyramid(torch.zeros(3, 8, 8), pyramid_plan(8, 8), 64), "tile=64"),
        (lambda: select_tokens(torch.ones(4), 0.0), "keep_ratio=0.0"),
        (lambda: select_tokens(torch.ones(4), 1.1), "keep_ratio=1.1"),
        (lambda: select_tokens(torch.ones(4), 0.5, 3), "row_length=3"),
        (lambda: select_tokens(torch.ones(4), 0.5, valid=torch.ones(3)), r"valid \(3,\)"),
        (lambda: select_tokens(torch.tensor([1.0, math.nan])), "NaN"),
        (lambda: select_tokens_by_threshold(torch.ones(2), valid=torch.zeros(2)), "none of 2"),
        (lambda: vote_tiles(torch.tensor([6]), (2, 3), (2, 2)), "from 6 to 6"),
        (lambda: vote_tiles(torch.tensor([-1]), (2, 3), (2, 2)), "from -1"),
        (lambda: vote_tiles(torch.tensor([2, 5]), (2, 3), (2, 2), newline=True), "none of which may vote"),
        (lambda: vote_tiles(torch.tensor([], dtype=torch.long), (2, 3), (2, 2)), "none of which"),
        (lambda: vote_tiles(torch.tensor([0]), (2, 3), (2, 2), max_tiles=0), "max_tiles=0"),
        (lambda: scatter_tiles(torch.zeros(1, 3, 2), torch.zeros(1, 2).long(), (2, 2), 2), "side=2"),
        (lambda: scatter_tiles(torch.zeros(1, 4, 2), torch.tensor([[0, 2]]), (2, 2), 2), "2 × 2"),
        (lambda: scatter_tiles(torch.zeros(2, 4, 2), torch.zeros(2, 2).long(), (2, 2), 2), "different"),
        (lambda: crop_padding(torch.zeros(2, 2), (0, 3)), "resized_hw"),
        (lambda: attention_distillation_loss(torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 4)), "student"),
        (lambda: attention_distillation_loss(torch.zeros(1, 1, 3), torch.zeros(1, 1, 3)), r"\(K, H, T, n\)"),
        (lambda: attention_distillation_loss(torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 3), 0), "temperature=0"),
        (
            lambda: attention_distillation_loss(torch.zeros(1, 1, 1, 2), torch.full((1, 1, 1, 2), -math.inf)),
            "every token of a row",
        ),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("newline", [None, torch.ones(1)])
def test_tiles_that_the_crop_cuts_away_are_not_the_last_word(newline):
    """The lowest row of tiles of the second level holds 14 pixels of picture, half of a token."""
    plan = pyramid_plan(4065, 2673)[:3]
    assert (plan[2].resized_hw, plan[2].grid_hw) == ((1022, 672), (4, 2))
    pyramid = [torch.zeros(*level.grid_hw, 3, 2, 2) for level in plan]

    def run(score):
        encode = lambda tiles: torch.zeros(len(tiles), 144, 1)  # noqa: E731
        return coarse_to_fine(pyramid, plan, encode, lambda tokens, valid, level: score(len(tokens)), 12, newline)

    lowest, uppermost = run(lambda n: torch.arange(n).float()), run(lambda n: -torch.arange(n).float())
    assert (lowest.level, uppermost.level) == (1, 2)
    assert len(lowest.tiles) == 1
    assert lowest.tiles_encoded == len(lowest.tiles[0])
    assert len(lowest.tokens) == len(lowest.index) > 100


def test_bad_passes():
    plan = pyramid_plan(20, 20, 4, 12)
    pyramid = build_pyramid(torch.zeros(3, 20, 20), plan, 4)

    def run(pyramid=pyramid, tokens=4, scores=lambda n: torch.zeros(n), **options):
        options = {"side": 2, "keep_ratio": 0.5, **options}
        encode = lambda tiles: torch.zeros(len(tiles), tokens, 5)  # noqa: E731
        return coarse_to_fine(pyramid, plan, encode, lambda t, valid, level: scores(len(t)), **options)

    run()
    with pytest.raises(ValueError, match=r"encode gave \(9, 3, 5\)"):
        run(tokens=3)
    with pytest.raises(ValueError, match="score gave"):
        run(scores=lambda n: torch.zeros(n + 1))
    with pytest.raises(ValueError, match="NaN"):
        run(scores=lambda n: torch.full((n,), math.nan))
    with pytest.raises(ValueError, match="max_level=0"):
        run(max_level=0)
    with pytest.raises(ValueError, match="max_tiles=0"):
        run(max_tiles=0)
    with pytest.raises(ValueError, match="keep_ratio=2"):
        run(keep_ratio=2)
    with pytest.raises(ValueError, match="pyramid 1"):
        run(pyramid=pyramid[:1])
    with pytest.raises(ValueError, match=r"pyramid\[1\] has \(1, 1\) tiles"):
        run(pyramid=[pyramid[0]] * 3)


def test_found_by_name():
    assert foveal.compress.LargeImageLlava is lrs.LargeImageLlava
    assert foveal.compress.coarse_to_fine is coarse_to_fine
    assert foveal.compress.load_lrs_vqa is lrs.load_lrs_vqa
