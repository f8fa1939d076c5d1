"""PyramidDrop: the deeper the decoder layer, the fewer image tokens it gets.

The decoder is cut into stages. At the first layer l of every later stage a fixed share λ_s of the sample's n image
tokens stays: those that the last token of the instruction attends to most, by that layer's own projections.

    y = LayerNorm_l(x)                                    x: what enters layer l
    a_j = mean_h softmax_j(q_h · k_hj / √d)               q from y of the last instruction token, k from y, with RoPE;
                                                          softmax over text and image columns alike
    keep the ⌊n·λ_s⌋ image tokens of largest a_j, in raster order, and all text

In training the questions are the rows right before each answer, averaged, and the deep layers get cheaper too.

Long Xing, Qidong Huang, Xiaoyi Dong, et al.: PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid
Visual Redundancy Reduction. CVPR 2025, arXiv 2410.17247.

Departures: several images of a sample are ranked as one pool (the authors' code drops in the first image alone), and
batches may be padded on either side (theirs on the right).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveal.compress.anatomy import Anatomy
from foveal.compress.base import LayerInput, keep_count
from foveal.compress.prefill import Keep
from foveal.compress.runtime import PrefillReducer
from foveal.compress.scores import instruction_attention as instruction_attention


def stage_counts(n_image: int, ratios: Sequence[float]) -> list[int]:
    """Image tokens left in each later stage: ⌊n_image·ratio⌋, always of the original number.

    Raises ValueError for a negative ``n_image`` or a ratio outside [0, 1].
    """
    return [keep_count(n_image, ratio) for ratio in ratios]


def select_image_tokens(scores: Float[Tensor, " l"], image_index: Int[Tensor, " n"], keep: int) -> Int[Tensor, " keep"]:
    """The ``keep`` entries of ``image_index`` with the largest ``scores``, ascending.

    Raises ValueError when ``keep`` is negative or above n.
    """
    if not 0 <= keep <= len(image_index):
        raise ValueError(f"keep={keep}: there are {len(image_index)} image tokens to keep from")
    best = scores[image_index].topk(keep).indices
    return image_index[best].sort().values


def answer_query_positions(labels: Int[Tensor, " l"]) -> Int[Tensor, " q"]:
    """The position right before every answer span (labels other than −100); a span at position 0 has none."""
    answered = labels != -100
    return (answered[1:] & ~answered[:-1]).nonzero()[:, 0]


class PyramidDrop(PrefillReducer):
    """Drop image tokens at the input of some decoder layers, in training as well as at inference.

    Args:
        layers: 0-based decoder layers at whose input tokens are dropped, rising. The defaults are the paper's for 32
            layers: four stages of eight.
        ratios: share of the sample's original image tokens that stay from each of these layers on, not rising.
        positions: "compact" renumbers the remaining tokens at every drop, as released; "original" keeps the numbers,
            the only way with the three-axis positions of Qwen2-VL.

    Raises ValueError for lists of different length, layers that do not rise from at least 1, ratios that rise or lie
    outside [0, 1], and other ``positions``; on `attach` for a layer that the model does not have.
    """

    def __init__(
        self,
        layers: Sequence[int] = (8, 16, 24),
        ratios: Sequence[float] = (0.5, 0.25, 0.125),
        positions: str = "compact",
    ) -> None:
        super().__init__()
        if len(layers) != len(ratios):
            raise ValueError(f"layers={tuple(layers)} and ratios={tuple(ratios)} must be of one length")
        if any(layer < 1 for layer in layers) or any(first >= second for first, second in pairwise(layers)):
            raise ValueError(f"layers={tuple(layers)} must rise strictly, from 1 or later")
        if any(not 0 <= ratio <= 1 for ratio in ratios) or any(first < second for first, second in pairwise(ratios)):
            raise ValueError(f"ratios={tuple(ratios)} must lie in [0, 1] and must not rise: a dropped token is gone")
        if positions not in ("compact", "original"):
            raise ValueError(f'positions={positions!r} must be "compact" or "original"')
        self.layers, self.ratios, self.positions = tuple(layers), tuple(ratios), positions

    def check(self, anatomy: Anatomy) -> None:
        """Raise ValueError for layers beyond the model's depth."""
        depth = len(anatomy.layers)
        if self.layers and self.layers[-1] >= depth:
            quarters = tuple(depth * quarter // 4 for quarter in (1, 2, 3))
            raise ValueError(f"layers={self.layers}: the model has layers 0 to {depth - 1}; take e.g. {quarters}")

    def select(self, step: LayerInput) -> Keep | None:
        """The image tokens that the instruction attends to most, at the layers where a stage begins."""
        if step.layer not in self.layers:
            return None
        ratio = self.ratios[self.layers.index(step.layer)]
        return [self._best(step, sample, keep_count(n, ratio)) for sample, n in enumerate(step.n_image)]

    def _best(self, step: LayerInput, sample: int, keep: int) -> Int[Tensor, " keep"] | None:
        places, is_image = step.sample(sample)
        labels = step.tokens.labels
        if int(is_image.sum()) <= keep:
            return None
        if labels is None:
            rows = torch.tensor([len(places) - 1], device=places.device)
        else:
            rows = answer_query_positions(labels[sample, places])
        if not len(rows):
            return None
        scores = step.attention_from(sample, rows)
        return places[select_image_tokens(scores, is_image.nonzero()[:, 0], keep)]
