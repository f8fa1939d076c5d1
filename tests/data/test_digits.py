"""Digits: the numbers of scikit-learn, cut once, in the order of the writers."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from foveal.data.digits import samples


def test_the_split_is_a_cut():
    train, test = samples("train"), samples("test")
    assert (len(train), len(test), len(samples())) == (1_437, 360, 1_797)
    assert train[-1].key == "digits/1436"
    assert test[0].key == "digits/1437"
    assert {sample.labels[0] for sample in test} == set("0123456789")


def test_pixels_and_words_are_those_of_the_source():
    bunch = load_digits()
    for index in (0, 5, 1_796):
        sample = samples()[index]
        assert sample.labels == (str(bunch.target[index]),)
        assert np.array_equal(np.rint(sample.image[..., 0] / 255 * 16), bunch.images[index])
        assert np.ptp(sample.image, axis=2).max() == 0
    assert samples()[4].caption == "the digit four"


def test_enlarged():
    image = samples("test", 32)[0].image
    assert image.shape == (32, 32, 3)
    assert abs(image.mean() - samples("test")[0].image.mean()) < 8


def test_bad_input():
    with pytest.raises(ValueError, match="split='val'"):
        samples("val")
    with pytest.raises(ValueError, match="size=4"):
        samples(size=4)
