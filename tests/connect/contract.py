"""What every connector promises. A new connector adds one `Case` to `CASES`; `test_contract.py` runs them all."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveal.connect.limber import LimberConnector
from foveal.connect.sitta import SittaConnector, SittaMapper

DIM_VISION, DIM_LANGUAGE, VOCABULARY = 6, 8, 40


@dataclass(frozen=True)
class Case:
    """One connector under test."""

    name: str
    build: Callable[[int], nn.Module]
    """seed -> connector with DIM_VISION in and DIM_LANGUAGE out."""
    tokens: int | None = None
    """Image tokens per sample it takes; None: pooled features (B, Dv)."""
    prompt_len: int = 1
    """Prompt vectors per image that it gives."""
    trainable: bool = True
    """False for a connector without gradient (closed form, discrete choice of words)."""
    bad_inputs: tuple[tuple[int, ...], ...] = ((2, 3, DIM_VISION + 1), (DIM_VISION,))
    """Shapes it must refuse with a ValueError."""

    def features(self, batch: int, seed: int = 1) -> Tensor:
        shape = (batch, DIM_VISION) if self.tokens is None else (batch, self.tokens, DIM_VISION)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _limber(seed: int, **options) -> LimberConnector:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LimberConnector(DIM_VISION, DIM_LANGUAGE, **options)


def _sitta(seed: int) -> SittaConnector:
    rng = torch.Generator().manual_seed(seed)
    embedding = torch.randn(VOCABULARY, DIM_LANGUAGE, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(VOCABULARY, (20, 3), generator=rng).tolist()
    mapper = SittaMapper("procrustes").fit(torch.randn(20, DIM_VISION, generator=rng), tokens, embedding)
    return SittaConnector(mapper, embedding, k=4)


CASES = [
    Case("limber", _limber, tokens=5, prompt_len=5, bad_inputs=((2, 5, 7), (2, DIM_VISION))),
    Case("limber-layernorm", lambda seed: _limber(seed, layernorm=True), tokens=5, prompt_len=5),
    Case("limber-pooled", lambda seed: _limber(seed, seq_len=3), prompt_len=3, bad_inputs=((2, 7), (2, 5, DIM_VISION))),
    Case("sitta", _sitta, prompt_len=4, trainable=False),
    Case("sitta-tokens", _sitta, tokens=5, prompt_len=4, trainable=False),
]
