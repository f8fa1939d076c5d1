"""STIC's pairs for many pictures at once: models write in batches what `build_preference_pair` asks for one by one."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from foveal.align.stic import PreferencePair, build_preference_pair

Asked = tuple[Float[Tensor, "3 _ _"], str]
DescribeAll = Callable[[Sequence[Asked]], Sequence[str]]


def pair_generator(seed: int, number: int) -> torch.Generator:
    """What draws for one picture. torch's generator on the CPU looks at 32 bits of a seed alone, so both are hashed."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, number)).generate_state(1)[0]))


def build_preference_pairs(
    images: Sequence[Float[Tensor, "3 _ _"]],
    describe_all: DescribeAll,
    seed: int,
    first: int = 0,
    *,
    p_bad_prompt: float = 0.5,
    p_low_resolution: float = 0.5,
) -> list[PreferencePair]:
    """A pair for each picture, drawn from (seed, its number) alone.

    Args:
        images: RGB in [0, 1].
        describe_all: pictures and prompts to texts; called once, with two of them for every picture.
        seed: of everything that is drawn.
        first: number of the first picture, for who goes through a set in parts.
        p_bad_prompt, p_low_resolution: see `build_preference_pair`.

    Raises:
        ValueError: as `build_preference_pair`, or when there are not as many texts as were asked for.
    """
    asked: list[Asked] = []

    def note(image: Tensor, prompt: str) -> str:
        asked.append((image, prompt))
        return ""

    def build(describe: Callable[[Tensor, str], str]) -> list[PreferencePair]:
        found = []
        for number, image in enumerate(images, first):
            generator = pair_generator(seed, number)
            options = {"p_bad_prompt": p_bad_prompt, "p_low_resolution": p_low_resolution}
            found.append(build_preference_pair(image, describe, generator, **options))
        return found

    build(note)  # what is asked does not depend on the answers
    texts = iter(describe_all(asked))
    try:
        pairs = build(lambda image, prompt: next(texts))
    except StopIteration:
        raise ValueError(f"describe_all gave fewer than the {len(asked)} texts that were asked for") from None
    if next(texts, None) is not None:
        raise ValueError(f"describe_all gave more than the {len(asked)} texts that were asked for")
    return pairs
