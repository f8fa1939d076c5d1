"""A batch holds what its samples hold, and says which sample does not fit."""

import numpy as np
import pytest
import torch

from foveal.data.collate import pixels_and_captions
from foveal.data.record import Sample
from foveal.train.batches import batches_of
from foveal.train.config import FitConfig


def sample(key, height=4, width=6, value=0):
    return Sample(key, images=(np.full((height, width, 3), value, np.uint8),), captions=(f"caption of {key}", "other"))


def test_a_batch_is_its_samples():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    batch = pixels_and_captions([Sample(k, (image,), (k,)) for k, image in zip("ab", images)])
    assert batch["pixels"].dtype == torch.uint8
    assert np.array_equal(batch["pixels"].permute(0, 2, 3, 1).numpy(), images)
    assert (batch["captions"], batch["__key__"]) == (["a", "b"], ["a", "b"])


def test_the_batch_is_a_copy():
    one = sample("a", value=7)
    batch = pixels_and_captions([one])
    batch["pixels"].zero_()
    assert one.image.min() == 7


def test_it_is_what_fit_takes():
    data = [sample(str(index), value=index) for index in range(8)]
    config = FitConfig(lr=1e-3, batch_size=4, collate=pixels_and_captions)
    batch = next(batches_of(data, config, seed=0, rank=0, world=1).open(0, None))
    assert batch["pixels"].shape == (4, 3, 4, 6)
    assert [int(key) for key in batch["__key__"]] == batch["pixels"][:, 0, 0, 0].tolist()


def test_sizes_that_differ_are_named():
    odd = [sample("good"), sample("tall", height=9), sample("good too")]
    with pytest.raises(ValueError, match=r"'good' has 6 x 4 pixels, 'tall' 6 x 9; .*resize_square"):
        pixels_and_captions(odd)
    with pytest.raises(ValueError, match="and more"):
        pixels_and_captions([sample("a"), *(sample(str(i), height=9) for i in range(4))])


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="samples is empty"):
        pixels_and_captions([])
    with pytest.raises(ValueError, match="sample 'x' has no caption"):
        pixels_and_captions([sample("x").with_(captions=())])
    with pytest.raises(ValueError, match="sample 'x' has no image"):
        pixels_and_captions([sample("x").with_(images=())])
    with pytest.raises(ValueError, match="must be an RGB array"):
        pixels_and_captions([Sample("x", (np.zeros((4, 4), np.uint8),), ("c",))])
