"""Configurations refuse what cannot be drawn, and say why; what they accept can be pickled and compared."""

import pickle
from itertools import pairwise

import pytest

from foveal.data.world.config import WorldConfig
from foveal.data.world.vocabulary import BASE_NOUNS, NOUNS, SHAPES, SPRITE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 31),
        ("size", 8193),
        ("size", (64, 16)),
        ("things", (3, 2)),
        ("things", (-1, 2)),
        ("things", (0, 11)),
        ("nouns", ("unicorn",)),
        ("nouns", ()),
        ("sprites", 1.5),
        ("tint", -0.1),
        ("writing", float("nan")),
        ("min_visible", 2.0),
        ("repeats", 1.1),
        ("companions", -1.0),
        ("colours", ("red", "mauve")),
        ("colours", ("red",)),
        ("colours", ("red", "red")),
        ("textures", ()),
        ("sizes", ("huge",)),
        ("places", ("moon",)),
        ("styles", ("cubist",)),
        ("backgrounds", ("photo",)),
        ("scripts", ("klingon",)),
        ("spurious", {"unicorn": "grass"}),
        ("spurious", {"dog": "moon"}),
        ("spurious_strength", 1.01),
        ("imbalance", -1.0),
        ("imbalance", float("nan")),
        ("depth", (0.5, 3.0)),
        ("depth", (4.0, 4.0)),
        ("depth", (4.0, 11.0)),
        ("radius", (0.0, 0.1)),
        ("radius", (0.2, 0.1)),
        ("radius", (0.2, 0.6)),
    ],
)
def test_bad_values_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        WorldConfig(**{field: value})


def test_spurious_nouns_must_occur():
    with pytest.raises(ValueError, match="spurious"):
        WorldConfig(nouns=("cat",), spurious={"dog": "grass"})


def test_pickle_and_equality():
    config = WorldConfig(nouns=BASE_NOUNS, spurious={"dog": "snow"}, imbalance=1.0)
    shares = config.noun_shares
    again = pickle.loads(pickle.dumps(config))
    assert again == config
    assert again.noun_shares == shares


@pytest.mark.parametrize("sprites", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("imbalance", [0.0, 1.2])
def test_noun_shares_add_up(sprites, imbalance):
    shares = WorldConfig(sprites=sprites, imbalance=imbalance).noun_shares
    assert set(shares) == set(NOUNS)
    assert sum(shares[noun] for noun in SPRITE) == pytest.approx(sprites)
    assert sum(shares[noun] for noun in SHAPES) == pytest.approx(1 - sprites)
    falling = [shares[noun] for noun in WorldConfig(imbalance=imbalance).pools[1][0]]
    if imbalance and sprites:
        assert all(a > b for a, b in pairwise(falling))
        assert falling[0] / falling[9] == pytest.approx(10**imbalance)


def test_one_kind_of_noun_is_enough():
    assert WorldConfig(nouns=("dog", "cat"), sprites=0.0).noun_shares == pytest.approx({"dog": 0.5, "cat": 0.5})
    assert WorldConfig(nouns=("star",), sprites=1.0).noun_shares == {"star": 1.0}
    assert WorldConfig(size=(48, 96)).shape == (48, 96)
