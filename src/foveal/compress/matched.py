"""Every method of the stage set to one budget, to be compared on one model: which can keep that share, which cannot.

A budget is what `gsearch` calls one: the share of its image tokens that a decoder layer processes, mean over the
layers. Each method spends it in its own way, in the proportions of its paper where the budget leaves a choice.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from foveal import compress
from foveal.compress.anatomy import Anatomy, find
from foveal.compress.runtime import MARK, PrefillReducer


@dataclass(frozen=True)
class Matched:
    """The methods by name."""

    reducers: dict[str, PrefillReducer]
    """Those that can keep that share on that model; none is attached."""
    refused: dict[str, str]
    """Why the others cannot, in one line each."""


def matched_reducers(model: nn.Module, budget: float, seed: int = 0) -> Matched:
    """Every method of the stage that needs no search, at ``budget``.

    Args:
        model: one of the classes that the runtime knows, with nothing attached.
        budget: share of the image tokens that a decoder layer processes, mean over the layers, in (0, 1].
        seed: of the tokens that `RandomDrop` keeps.

    Raises ValueError for another budget, an unknown class and a model that has a reducer attached.
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget={budget}: the share of tokens to keep must lie in (0, 1]")
    anatomy = find(model)
    attached = getattr(anatomy.base, MARK, None)
    if attached is not None:
        raise ValueError(f"model already has a {type(attached).__name__} attached; call its detach() first")
    matched = Matched({}, {})
    for name, build in _BUILDERS.items():
        try:
            reducer = build(anatomy, budget, seed)
            reducer.attach(model).detach()
        except ValueError as error:
            matched.refused[name] = str(error)
        else:
            matched.reducers[name] = reducer
    return matched


def _pyramid(anatomy: Anatomy, budget: float, seed: int) -> PrefillReducer:
    """Three drops in equal distances, each to half of the one before.

    Of the first layers that allow this the one is taken where the first drop leaves closest to a half: at the paper's
    own budget these are the paper's own layers and ratios. Layers 0 and 1 stay whole where the budget pays for them.
    """
    depth, found = len(anatomy.layers), []
    for first in range(1, depth - 2):
        layers = [first + (depth - first) * third // 3 for third in range(3)]
        spans = [end - start for start, end in pairwise([*layers, depth])]
        share = (budget * depth - first) / (spans[0] + spans[1] / 2 + spans[2] / 4)
        if 0 < share <= 1:
            found.append((first < 2, abs(share - 0.5), layers, share))
    if not found:
        least, most = 1 / depth, (depth - 3 + 1.75) / depth
        raise ValueError(
            f"budget={budget:g}: three drops, each by half, in {depth} layers keep between {least:.4g} and {most:.4g}"
        )
    *_, layers, share = min(found)
    return compress.PyramidDrop(layers, (share, share / 2, share / 4), _positions(anatomy))


def _fastv(anatomy: Anatomy, budget: float, seed: int) -> PrefillReducer:
    """One drop at layer 2, as in the paper."""
    depth = len(anatomy.layers)
    if depth <= 2 or budget * depth < 2 - 1e-9:
        raise ValueError(f"budget={budget:g}: FastV leaves 2 of {depth} layers whole, so it keeps {2 / depth:.4g}")
    return compress.FastV(2, max(0.0, (budget * depth - 2) / (depth - 2)))


def _random(anatomy: Anatomy, budget: float, seed: int) -> PrefillReducer:
    """All of it before the decoder."""
    return compress.RandomDrop((0,), (budget,), seed, _positions(anatomy))


def _average(anatomy: Anatomy, budget: float, seed: int) -> PrefillReducer:
    """The grid whose side comes closest."""
    if anatomy.kind != "llava":
        raise ValueError("AveragePool needs images of one square grid of tokens each, as LLaVA-1.5 has them")
    vision = anatomy.model.config.vision_config
    return compress.AveragePool(max(1, round(math.sqrt(budget) * (vision.image_size // vision.patch_size))))


def _fopru(anatomy: Anatomy, budget: float, seed: int) -> PrefillReducer:
    """By the class token where the encoder has one."""
    reducer = compress.FoPru(budget)
    try:
        reducer.check(anatomy)
    except ValueError:  # any other reason will be there again
        return compress.FoPru(budget, aggregate="mean")
    return reducer


def _aim(anatomy: Anatomy, budget: float, seed: int) -> PrefillReducer:
    """Pruned from the middle of the decoder as in the paper, 14 and 1/8 for 28 layers; merging does the rest."""
    depth = len(anatomy.layers)
    start, step = depth // 2, 3.5 / depth
    pruned = (1 + sum(compress.retain_schedule(depth, start, step)[:-1])) / depth
    if budget > pruned:
        return compress.AIM(budget, start=depth)
    return compress.AIM(budget / pruned, start, step)


def _positions(anatomy: Anatomy) -> str:
    return "original" if anatomy.multi_axis else "compact"


_BUILDERS: dict[str, Callable[[Anatomy, float, int], PrefillReducer]] = {
    "PyramidDrop": _pyramid,
    "FastV": _fastv,
    "FoPru": _fopru,
    "AIM": _aim,
    "RandomDrop": _random,
    "AveragePool": _average,
}
