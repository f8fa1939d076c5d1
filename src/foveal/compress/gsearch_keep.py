"""The plug-in of `gsearch`: each decoder layer processes its own share of the image tokens."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from foveal.compress.anatomy import Anatomy
from foveal.compress.base import LayerInput, keep_count
from foveal.compress.prefill import Keep
from foveal.compress.runtime import PrefillReducer


class LayerwiseKeep(PrefillReducer):
    """Layer l processes the ⌊n·r_l⌋ of a sample's n image tokens that the instruction attended to most in layer l − 1.

    The instruction is the text after the sample's last image token; a prompt without any asks with its last token.
    With labels, the tokens to be learned do not ask: they are the answer.

    Args:
        rates: r_l for every decoder layer, not rising; the first two are 1, as the ranking of layer 0 is unlike all
            others. `foveal.compress.g_search` and `foveal.compress.search_p_sigmoid` find them.
        positions: "original" keeps the position numbers of the tokens that stay, "compact" renumbers them at every
            drop, which the three-axis positions of Qwen2-VL do not allow.

    Raises ValueError for rates that rise, lie outside [0, 1] or do not begin with 1, 1, and other ``positions``; on
    `attach` when the model has another number of layers.
    """

    looks_back = True

    def __init__(self, rates: Sequence[float], positions: str = "original") -> None:
        super().__init__()
        rates = tuple(float(rate) for rate in rates)
        if any(not 0 <= rate <= 1 for rate in rates) or any(first < second for first, second in pairwise(rates)):
            raise ValueError(f"rates={rates} must lie in [0, 1] and must not rise: a dropped token is gone")
        if not rates or any(rate != 1 for rate in rates[:2]):
            raise ValueError(f"rates={rates}: layers 0 and 1 must keep all, begin with 1, 1")
        if positions not in ("compact", "original"):
            raise ValueError(f'positions={positions!r} must be "compact" or "original"')
        self.rates, self.positions = rates, positions
        self._last_image: list[int] = []

    def check(self, anatomy: Anatomy) -> None:
        """Raise ValueError when the rates are for a model of another depth."""
        depth = len(anatomy.layers)
        if len(self.rates) != depth:
            raise ValueError(
                f"rates has {len(self.rates)} entries, the model has {depth} decoder layers; give one rate for each"
            )

    def select(self, step: LayerInput) -> Keep | None:
        """The best image tokens by the attention of the layer before, at the layers whose rate is lower than its."""
        if step.layer == 0:  # the first of every prefill: nothing is dropped yet
            columns = step.tokens.columns.masked_fill(~step.tokens.is_image, -1)
            self._last_image = columns.amax(1).tolist()
            return None
        if self.rates[step.layer] == self.rates[step.layer - 1]:
            return None
        return [self._best(step, sample, n) for sample, n in enumerate(step.n_image)]

    def _best(self, step: LayerInput, sample: int, n_image: int) -> Int[Tensor, " keep"] | None:
        keep = keep_count(n_image, self.rates[step.layer])
        places, is_image = step.sample(sample)
        if int(is_image.sum()) <= keep:
            return None
        assert step.previous is not None
        received = step.previous.attention_from(sample, self._instruction(step, sample, places, is_image))
        images = places[is_image]
        return images[received[is_image].topk(keep).indices.sort().values]

    def _instruction(
        self, step: LayerInput, sample: int, places: Int[Tensor, " n"], is_image: Bool[Tensor, " n"]
    ) -> Int[Tensor, " q"]:
        """Which of the sample's valid tokens ask."""
        may_ask = torch.ones_like(is_image)
        if step.tokens.labels is not None:
            may_ask = step.tokens.labels[sample, places] == -100
        after = step.tokens.columns[sample, places] > self._last_image[sample]
        rows = (may_ask & after & ~is_image).nonzero()[:, 0]
        if len(rows):
            return rows
        last = may_ask.nonzero()[-1:, 0]
        return last if len(last) else torch.tensor([len(places) - 1], device=places.device)
