"""What a reducer of visual tokens has to beat at the same number: chance, even distances, averaging, one early drop."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from foveal.compress.anatomy import Anatomy
from foveal.compress.base import LayerInput, keep_count
from foveal.compress.prefill import Keep
from foveal.compress.runtime import PrefillReducer


class RandomDrop(PrefillReducer):
    """Keep image tokens that chance chooses: ``ratios[i]`` of a sample's original ones from ``layers[i]`` on.

    Args:
        layers: decoder layers at whose input tokens are dropped, rising; 0 drops before the decoder.
        ratios: shares within [0, 1], not rising.
        seed: of the choices, which differ from prefill to prefill and are the same in every run.
        positions: as `PrefillReducer` has it.
    """

    def __init__(
        self, layers: Sequence[int], ratios: Sequence[float], seed: int = 0, positions: str = "compact"
    ) -> None:
        super().__init__()
        if len(layers) != len(ratios) or not layers:
            raise ValueError(f"layers={tuple(layers)} and ratios={tuple(ratios)} must be of one length, at least 1")
        if layers[0] < 0 or any(first >= second for first, second in pairwise(layers)):
            raise ValueError(f"layers={tuple(layers)} must rise strictly, from 0 or later")
        if any(not 0 <= ratio <= 1 for ratio in ratios) or any(first < second for first, second in pairwise(ratios)):
            raise ValueError(f"ratios={tuple(ratios)} must lie in [0, 1] and must not rise: a dropped token is gone")
        self.layers, self.ratios, self.positions = tuple(layers), tuple(ratios), positions
        self.generator = torch.Generator().manual_seed(seed)

    def check(self, anatomy: Anatomy) -> None:
        """Raise ValueError for layers beyond the model's depth."""
        check_layer(self.layers[-1], anatomy)

    def select(self, step: LayerInput) -> Keep | None:
        if step.layer not in self.layers:
            return None
        ratio = self.ratios[self.layers.index(step.layer)]
        return [self._some(step, sample, keep_count(n, ratio)) for sample, n in enumerate(step.n_image)]

    def _some(self, step: LayerInput, sample: int, keep: int) -> Int[Tensor, " keep"] | None:
        places, is_image = step.sample(sample)
        images = places[is_image]
        if len(images) <= keep:
            return None
        chosen = torch.randperm(len(images), generator=self.generator)[:keep].sort().values
        return images[chosen.to(images.device)]


class UniformDrop(PrefillReducer):
    """Before the decoder, keep a share of each sample's image tokens at even distances in raster order.

    Args:
        ratio: share within (0, 1] of the image tokens; at least one stays.
    """

    def __init__(self, ratio: float) -> None:
        super().__init__()
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio={ratio}: the share of tokens to keep must lie in (0, 1]")
        self.ratio = ratio

    def select(self, step: LayerInput) -> Keep | None:
        if step.layer != 0 or not any(step.n_image):
            return None
        return [self._even(step, sample, n) for sample, n in enumerate(step.n_image)]

    def _even(self, step: LayerInput, sample: int, n: int) -> Int[Tensor, " keep"] | None:
        keep = max(1, keep_count(n, self.ratio))
        if n <= keep:
            return None
        places, is_image = step.sample(sample)
        middles = (torch.arange(keep, device=places.device) + 0.5) * n / keep
        return places[is_image][middles.long()]


class FastV(PrefillReducer):
    """One drop: from ``layer`` on the image tokens stay to which the last token of the prompt attended most before it.

    The attention is that of the layer before, mean over heads, softmax over all columns.

    Liang Chen, Haozhe Zhao, Tianyu Liu, et al.: An Image is Worth 1/2 Tokens After Layer 2. ECCV 2024, arXiv
    2403.06764.

    Args:
        layer: at whose input tokens are dropped, at least 1; 2 in the paper.
        ratio: share of the image tokens that stay, within [0, 1]; 0.5 in the paper.
    """

    looks_back = True
    positions = "original"

    def __init__(self, layer: int = 2, ratio: float = 0.5) -> None:
        super().__init__()
        if layer < 1:
            raise ValueError(f"layer={layer}: must be at least 1, since the attention of the layer before decides")
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio={ratio}: the share of tokens to keep must lie in [0, 1]")
        self.layer, self.ratio = layer, ratio

    def check(self, anatomy: Anatomy) -> None:
        """Raise ValueError for a layer beyond the model's depth."""
        check_layer(self.layer, anatomy)

    def select(self, step: LayerInput) -> Keep | None:
        if step.layer != self.layer:
            return None
        return [self._best(step, sample, keep_count(n, self.ratio)) for sample, n in enumerate(step.n_image)]

    def _best(self, step: LayerInput, sample: int, keep: int) -> Int[Tensor, " keep"] | None:
        places, is_image = step.sample(sample)
        images = places[is_image]
        if len(images) <= keep:
            return None
        assert step.previous is not None
        last = torch.tensor([len(places) - 1], device=places.device)
        attention = step.previous.attention_from(sample, last)
        return images[attention[is_image].topk(keep).indices.sort().values]


class AveragePool(PrefillReducer):
    """Before the decoder, the square grid of each image's tokens becomes one of ``side`` × ``side`` averages.

    For models that give each image a square grid of tokens, as LLaVA-1.5 does.
    """

    reads_features = True
    merges = True
    positions = "compact_first"

    def __init__(self, side: int) -> None:
        super().__init__()
        if side < 1:
            raise ValueError(f"side={side}: the grid of averages must have at least one cell")
        self.side = side

    def check(self, anatomy: Anatomy) -> None:
        """Raise ValueError where the features of one image are no unit."""
        if anatomy.features != "image":
            anatomy.refuse("AveragePool", "its features are not those of single images")

    def select(self, step: LayerInput) -> Keep | None:
        if step.layer != 0 or not any(step.n_image):
            return None
        keep: list[list[Tensor]] = [[] for _ in step.n_image]
        hidden = step.hidden.clone()
        for sample, places in step.images():
            middles, means = self._pooled(step.hidden[sample, places])
            hidden[sample, places[middles]] = means
            keep[sample].append(places[middles])
        step.hidden = hidden
        return [torch.cat(places) if places else None for places in keep]

    def _pooled(self, tokens: Tensor) -> tuple[Int[Tensor, " m"], Tensor]:
        """Which token stands in the middle of each cell, and the mean of each cell."""
        n = len(tokens)
        side = round(n**0.5)
        if side * side != n:
            raise ValueError(f"an image has {n} tokens, which is no square grid; AveragePool is for LLaVA-1.5's kind")
        if self.side > side:
            raise ValueError(f"side={self.side}: an image has only {side} × {side} tokens; give at most {side}")
        grid = tokens.view(1, side, side, -1).permute(0, 3, 1, 2)
        means = F.adaptive_avg_pool2d(grid, self.side)[0].flatten(1).mT
        middle = ((torch.arange(self.side) + 0.5) * side / self.side).long().to(tokens.device)
        return (middle[:, None] * side + middle).flatten(), means


def check_layer(layer: int, anatomy: Anatomy) -> None:
    """Raise ValueError for a decoder layer that the model does not have."""
    depth = len(anatomy.layers)
    if layer >= depth:
        raise ValueError(f"layer {layer}: the model has layers 0 to {depth - 1}")
