"""Squares are cut from the middle and scaled, tensors hold the same numbers as the bytes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveal.data.transforms import resize_square, to_tensor


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50))
def test_any_size_gives_the_square(height, width, size):
    square = resize_square(noise(height, width), size)
    assert square.shape == (size, size, 3)
    assert square.dtype == np.uint8


@pytest.mark.parametrize(("height", "width", "rows", "columns"), [(8, 20, (0, 8), (6, 14)), (21, 8, (6, 14), (0, 8))])
def test_the_centre_counts(height, width, rows, columns):
    image = noise(height, width)
    assert np.array_equal(resize_square(image, 8), image[slice(*rows), slice(*columns)])


def test_it_never_returns_the_callers_memory():
    image = noise(8, 8)
    square = resize_square(image, 8)
    square[:] = 0
    assert image.any()


def test_shrinking_averages_instead_of_dropping_pixels():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resize_square(stripes, 8)[:, 1:-1].astype(int) - 128).max() <= 8  # nearest would be 0 or 255


def test_views_that_are_flipped_or_strided():
    image = noise(8, 8)
    assert np.array_equal(resize_square(image[:, ::-1], 8), image[:, ::-1])
    assert np.array_equal(to_tensor(image[::-1]).numpy(), to_tensor(image).flip(1).numpy())


@pytest.mark.parametrize("shape", [(5, 7, 3), (2, 5, 7, 3), (0, 5, 7, 3)])
def test_tensors_hold_the_same_numbers(shape):
    images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    tensor = to_tensor(images)
    assert tensor.dtype == torch.float32
    assert np.array_equal(np.moveaxis((tensor * 255).round().numpy().astype(np.uint8), -3, -1), images)
    assert to_tensor(np.full((1, 1, 3), 255, np.uint8)).max() == 1


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((2, 4, 4, 3), np.uint8)],
)
def test_what_is_no_rgb_picture_is_refused(image):
    with pytest.raises(ValueError, match=r"image of shape \(.*must be an RGB array"):
        resize_square(image, 4)


def test_other_bad_input():
    with pytest.raises(ValueError, match="no pixels"):
        resize_square(np.zeros((0, 4, 3), np.uint8), 4)
    with pytest.raises(ValueError, match="size=0"):
        resize_square(noise(4, 4), 0)
    with pytest.raises(ValueError, match=r"images of shape \(4, 4, 3\) and type float64"):
        to_tensor(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match=r"images of shape \(4, 4\)"):
        to_tensor(np.zeros((4, 4), np.uint8))


def test_the_sources_do_not_need_torch():
    modules = "transforms, twemoji, photos, easyvqa, digits, collate, text, bundled"
    script = f"import sys; from foveal.data import {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
