"""The demo's numbers on cases whose answer is known."""

import numpy as np
import pytest
import torch

from foveal.demo import measure
from foveal.demo.measure import Estimate, Naming, name_ranks, naming, retrieval

NOUNS = ["cat", "dog", "face", "boat", "ball", "tree", "shoe", "key"] * 4


def rng(seed=0):
    return np.random.default_rng(seed)


def test_ranks_by_cosine():
    names = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    z = torch.tensor([[9.0, 1.0], [5.0, 4.9]])  # the first is nearest to its own name, the second to the third name
    assert name_ranks(z, names).tolist() == [1, 3]


def test_a_tie_counts_against():
    names = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert name_ranks(names[:2], names).tolist() == [2, 2]
    assert name_ranks(torch.ones(2, 2), torch.zeros(5, 2)).tolist() == [5, 5]


@pytest.mark.parametrize(("z", "names"), [((3, 4), (2, 4)), ((3, 4), (3, 5)), ((4,), (3, 4))])
def test_shapes_are_checked(z, names):
    with pytest.raises(ValueError, match="names"):
        name_ranks(torch.ones(z), torch.ones(names))


def test_retrieval_of_exact_vectors_and_of_noise():
    generator = torch.Generator().manual_seed(0)
    names = torch.randn(200, 64, generator=generator)
    exact = retrieval(names[:140], names, rng())
    assert (exact.first, exact.first_five, exact.median_rank) == (Estimate(1, 1, 1), Estimate(1, 1, 1), 1)
    assert (exact.candidates, exact.pictures, exact.chance) == (200, 140, 0.005)
    assert exact.times_chance == pytest.approx(200)
    noise = retrieval(torch.randn(140, 64, generator=generator), names, rng())
    assert noise.first.low <= noise.chance <= noise.first.high + 0.01
    assert noise.median_rank > 50


def test_naming_what_is_there():
    found = naming([f"a small {noun} here" for noun in NOUNS], NOUNS, rng())
    assert found.own == Estimate(1, 1, 1)
    assert found.shuffled.value == pytest.approx(3 / 31)  # each noun is drawn four times
    assert found.beats_shuffled
    assert found.gain.value == pytest.approx(1 - 3 / 31)


def test_saying_the_same_of_everything_gains_nothing():
    found = naming(["a face"] * len(NOUNS), NOUNS, rng())
    assert found.own.value == found.shuffled.value == pytest.approx(1 / 8)
    assert found.gain.value == pytest.approx(0, abs=1e-12)
    assert not found.beats_shuffled


def test_a_null_effect_is_seldom_called_a_gain(monkeypatch):
    """Captions drawn without a look at the picture: at most a few of 60 intervals may lie above zero."""
    monkeypatch.setattr(measure, "RESAMPLES", 200)
    false = 0
    for seed in range(60):
        words = rng(seed)
        said, nouns = (words.choice(["cat", "dog", "face", "boat"], 80, p=[0.1, 0.2, 0.6, 0.1]).tolist() for _ in "ab")
        false += naming(said, nouns, words).beats_shuffled
    assert false <= 6


def test_same_seed_same_interval():
    said = ["cat", "face"] * (len(NOUNS) // 2)
    assert naming(said, NOUNS, rng(3)) == naming(said, NOUNS, rng(3)) != naming(said, NOUNS, rng(4))


def test_interval_holds_the_value_and_bad_input_is_named():
    found: Naming = naming(["cat"] * 3 + ["dog"] * 5, NOUNS[:8], rng())
    for estimate in (found.own, found.shuffled, found.gain):
        assert estimate.low <= estimate.value <= estimate.high
    with pytest.raises(ValueError, match="said has 1"):
        naming(["cat"], ["cat"], rng())
    with pytest.raises(ValueError, match="2 nouns"):
        naming(["cat"], ["cat", "dog"], rng())
