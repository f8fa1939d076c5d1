"""The global generators of Python, numpy and torch, for libraries that draw from them without being asked."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from foveal.train.guard import private_randomness


@contextmanager
def global_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators (torch's on the CPU and on ``device``) start from ``seed`` inside, untouched outside.

    Recipes draw from `Run.generator` and `Run.rng`; this is for what does not take one (initial weights of modules).
    """
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global state is what must be protected
    try:
        with private_randomness(device):
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - as above
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002 - as above
