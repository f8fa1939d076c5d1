"""What the recipe of `lrs` draws, teaches and counts, against plain loops and against the plug-in itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from foveal.compress.lrs import LargeImageLlava, PyramidLevel, RegionFocusModule
from foveal.compress.lrs_focus import LevelTokens, lay_out
from foveal.lab import Run
from foveal.recipes._large import (
    BASE,
    COLOURS,
    PATCH,
    QUESTION,
    SQUARES,
    TILE,
    WORDS,
    normalised,
    pictures,
    prompt,
    words,
)
from foveal.recipes._large_cases import SIZES, Outcome, outcome, scores
from foveal.recipes._large_lessons import FIRST, SIDE, TILES, TURN, TURNS, Lessons, Seen, lesson
from foveal.recipes._large_model import WIDTH, asking, build, patch_features, sequence
from foveal.recipes._large_rules import chance, even, near
from foveal.recipes._large_tiles import LARGE, PATCHES, PIXELS, drawn

torch.set_num_threads(1)
RUN = Run("any", 100)
LOCAL = TILES * SIDE**2


@pytest.fixture(scope="module")
def large():
    return drawn(RUN, 3, LARGE)


@pytest.fixture(scope="module")
def model():
    return RUN.build(build).eval().requires_grad_(False)


def lessons(large, features=None, **options):
    """With noise, or with these features."""
    if features is None:
        features = torch.randn(3, 1 + TILES, PATCHES**2, WIDTH, generator=RUN.generator("features"))
    return Lessons(Seen(large, features), steps=12, rows=4, seed=1, **options)


def test_a_colour_names_one_square():
    for picture in pictures(3, 4, 128, (12.0, 16.0)):
        assert len(set(picture.squares)) == SQUARES == len(picture.circles)
        assert all(outer != inner for outer, inner in zip(picture.squares, picture.circles))
        for number, (x0, y0, x1, y1) in enumerate(picture.boxes):
            own = np.isin(picture.instance, (number + 1, number + 1 + SQUARES))
            assert own.sum() == own[y0:y1, x0:x1].sum() > 0
            assert (picture.instance[y0:y1, x0:x1] == number + 1 + SQUARES).any(), "the circle lies on its square"
            assert 10 <= max(x1 - x0, y1 - y0) <= 24
            x, y = picture.centre(number)
            assert picture.instance[int(y * 128), int(x * 128)] == number + 1 + SQUARES
            crop, body = picture.crop(number), picture.image[y0:y1, x0:x1]
            assert crop.shape == (TILE, TILE, 3)
            windows = np.lib.stride_tricks.sliding_window_view(crop, body.shape).reshape(-1, body.size)
            assert (windows == body.reshape(-1)).all(1).any(), "the crop holds all of the square"


def test_prompt():
    ids = prompt("cyan", 3)[0].tolist()
    assert WORDS.decode(ids[4:]) == QUESTION.format("cyan")
    assert len(set(ids[1:4])) == 1
    assert [WORDS.decode(words(colour)) for colour in COLOURS] == list(COLOURS)


def test_what_lies_on_a_patch(large):
    """The tiles behind the thumbnail are the picture itself."""
    outer, inner = large.named()
    for number, picture in enumerate(pictures(1000 + RUN.seed, 3, LARGE, PIXELS)):
        for tile in range(TILES):
            top, left = TILE * (tile // 2), TILE * (tile % 2)
            pixels = normalised(picture.image)[:, top : top + TILE, left : left + TILE]
            torch.testing.assert_close(large.tiles[number, 1 + tile], pixels)
            for patch in range(PATCHES**2):
                y, x = top + PATCH * (patch // PATCHES), left + PATCH * (patch % PATCHES)
                counts = np.bincount(picture.instance[y : y + PATCH, x : x + PATCH].ravel(), minlength=2 * SQUARES + 1)
                circles = counts[SQUARES + 1 :]
                for got, named, found, names in (
                    (large.squares, outer, counts[1 : SQUARES + 1] + circles, picture.squares),
                    (large.circles, inner, circles, picture.circles),
                ):
                    want = int(found.argmax()) + 1 if found.any() else 0
                    assert got[number, 1 + tile, patch] == want
                    assert named[number, 1 + tile, patch] == (1 + COLOURS.index(names[want - 1]) if want else 0)


def test_lessons_are_laid_out_like_the_plugin_does(large, model):
    """A whole first level, its features by the tower."""
    picture = next(pictures(1000 + RUN.seed, 1, LARGE, PIXELS))
    seen = Seen(large, torch.stack([patch_features(model.model.vision_tower, tiles) for tiles in large.tiles]))
    asked = lesson(seen, torch.tensor([0]), torch.tensor([[0, 3, 2]]), torch.arange(TILES)[None])
    plugin = LargeImageLlava(model, RegionFocusModule.from_language_model(model, (1,)), base_long_side=BASE)
    want, local = plugin.first_level(normalised(picture.image), prompt(picture.squares[0]))
    got = sequence(model, asked)
    assert local == (FIRST, FIRST + LOCAL)
    torch.testing.assert_close(got[:, : want.shape[1]], want, atol=1e-4, rtol=1e-4)
    assert asking(asked)[0] == want.shape[1] - 1
    assert asked["positions"][0].tolist() == list(range(got.shape[1]))


def test_places_of_fetched_tiles(large):
    """Order and positions are those that the part's own layout gives tiles of any cells."""
    numbers = torch.arange(float(LOCAL)).view(TILES, SIDE**2, 1)
    for grid in (2, 4, 8):
        cells = torch.randperm(grid**2, generator=RUN.generator(str(grid)))[:TILES]
        level = PyramidLevel(1.0, (grid * TILE,) * 2, (grid,) * 2, (grid * TILE,) * 2)
        tokens = lay_out(numbers, torch.stack([cells // grid, cells % grid], 1), level, SIDE, None)
        row, square = torch.tensor([0]), torch.tensor([[1]])
        for spread in (True, False):
            got = lesson(lessons(large).seen, row, square, cells[None], grid, spread)
            assert got["order"][0].tolist() == tokens.features[:, 0].long().tolist()
            places = tokens.valid.nonzero()[:, 0] if spread else torch.arange(LOCAL)
            end = len(tokens.valid) if spread else LOCAL
            want = [*range(FIRST), *(FIRST + places).tolist(), *range(FIRST + end, FIRST + end + TURN)]
            assert got["positions"][0].tolist() == want


def test_answers_are_true(large):
    """The features of a tile are the numbers of its picture and of itself."""
    own = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1 + TILES, PATCHES**2, 1)
    tile = torch.arange(1.0 + TILES).view(1, -1, 1, 1).expand_as(own)
    kinds = set()
    for batch in lessons(large, torch.cat([own, tile], -1)):
        turns = batch["text"].view(len(batch["text"]), -1, TURN).tolist()
        assert [WORDS.decode([turn[-1]]) for turn in turns[0]] == [
            WORDS.decode([batch["text"][0, row + 1 - batch["positions"].shape[1]]]) for row in asking(batch)
        ]
        kinds.add(len(turns[0]))
        for row, picture, shown in zip(turns, *batch["thumbnail"][:, 0].long().T.tolist()):
            for turn in row:
                square = large.outer[picture].tolist().index(COLOURS.index(WORDS.decode(turn[:-1]).split()[-1]))
                assert COLOURS[large.inner[picture, square]] == WORDS.decode(turn[-1:])
                if len(row) == 1:
                    there = (large.squares[picture, 1:] == 1 + square).sum(-1)
                    assert shown == 1 + int(there.argmax())
        assert ("tiles" in batch) == (len(turns[0]) == TURNS)
    assert kinds == {1, TURNS}
    assert all("tiles" in batch for batch in lessons(large, single=False))


def level(grid=8):
    valid = torch.zeros(grid * grid * SIDE**2, dtype=torch.bool)
    valid[::3] = True
    side = grid * SIDE
    return LevelTokens(torch.zeros(int(valid.sum()), 1), valid, torch.zeros_like(valid), (side, side))


def test_rules():
    picture, tokens, rng = next(pictures(5, 1, 256, (12.0, 16.0))), level(), torch.Generator().manual_seed(0)
    found = near(picture, rng, tokens)
    places = tokens.valid.nonzero()[:, 0]
    x, y = (16 * at - 0.5 for at in picture.centre())
    distances = [((place // 16 - y) ** 2 + (place % 16 - x) ** 2) ** 0.5 / 16 for place in places.tolist()]
    torch.testing.assert_close(found, -torch.tensor(distances))
    first = chance(picture, torch.Generator().manual_seed(0), tokens)
    assert torch.equal(first, chance(picture, rng, tokens))
    assert len(first.unique()) > 0.9 * len(places)
    best = even(picture, rng, tokens).sort(descending=True).indices[: len(places) // 8].sort().values
    assert best.diff().max() <= 13
    assert best.diff().min() >= 5


def test_outcomes():
    picture = next(pictures(6, 1, 128, (12.0, 16.0)))
    x, y = picture.centre()
    own, other = [int(4 * y), int(4 * x)], [3 - int(4 * y), int(4 * x)]
    logits = torch.zeros(1, 2, len(WORDS))
    logits[0, -1, words(picture.circles[0])] = 1

    def plugin(level, tiles):
        last = SimpleNamespace(level=level, tiles=[None, torch.tensor(tiles)], tiles_encoded=6)
        return SimpleNamespace(tile=TILE, last=last)

    assert outcome(picture, logits) == Outcome(128, True, False, 1)
    assert outcome(picture, logits, plugin(2, [other, own])) == Outcome(128, True, True, 7)
    assert not outcome(picture, logits, plugin(2, [other])).hit
    assert not outcome(picture, logits, plugin(1, [own])).hit  # a coarser level
    assert not outcome(picture, logits.flip(1), plugin(2, [own])).right
    found = scores([Outcome(size, size == 256, size == 128, size // 32) for size in SIZES])
    assert found["at_256"] == 100
    assert found["at_128"] == found["at_512"] == 0
    assert found["accuracy"] == found["hit"] == pytest.approx(100 / 3)
    assert found["tiles"] == pytest.approx(28 / 3)
