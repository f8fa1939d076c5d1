"""What a reducer saved in one prefill: the FLOPs of the decoder layers and the bytes of their keys and values.

Lengths and bytes are read off the run itself. FLOPs are counted by torch's counter on each decoder layer, at the
lengths that it processed, with tensors that have shapes and no data: it takes a fraction of a second, when asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Int
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foveal.compress.anatomy import Anatomy
from foveal.compress.prefill import Prefill


@dataclass(frozen=True)
class Report:
    """One prefill of a whole batch, reduced and as it would have been."""

    image_tokens: list[float]
    """Image tokens that each layer processed, mean over the samples of the batch."""
    image_tokens_full: float
    layer_lengths: list[int]
    """Length of the padded sequence in each layer."""
    length_full: int
    flops: int
    """FLOPs of the decoder layers (a multiply–add is two); the reducer's own ranking is in `flops_selection`."""
    flops_full: int
    flops_selection: int
    kv_bytes: int | None
    """Bytes of the keys and values stored; None when the prefill kept no cache."""
    kv_bytes_full: int | None

    @property
    def flops_saved(self) -> float:
        """Share of the decoder's FLOPs that was saved, the ranking's own cost taken off."""
        return 1 - (self.flops + self.flops_selection) / self.flops_full

    @property
    def kv_saved(self) -> float | None:
        """Share of the cache that was saved."""
        return None if not self.kv_bytes_full or self.kv_bytes is None else 1 - self.kv_bytes / self.kv_bytes_full

    def __str__(self) -> str:
        lines = [f"image tokens   {self.image_tokens_full:g} per sample; by layer {_runs(self.image_tokens)}"]
        lines.append(
            f"decoder FLOPs  {self.flops + self.flops_selection:.3g} of {self.flops_full:.3g}: "
            f"{self.flops_saved:.1%} saved ({self.flops_selection / self.flops_full:.2%} went into the ranking)"
        )
        if self.kv_bytes is not None and self.kv_bytes_full is not None:
            lines.append(f"KV cache       {self.kv_bytes:,} of {self.kv_bytes_full:,} bytes: {self.kv_saved:.1%} saved")
        else:
            lines.append("KV cache       none was kept")
        return "\n".join(lines)


@dataclass(frozen=True)
class Run:
    """What is noted of a prefill as it happens; `report` does the counting."""

    anatomy: Anatomy
    batch: int
    dtype: torch.dtype
    device: torch.device
    image_tokens: Int[Tensor, "b layers"]
    n_image: list[int]
    lengths: list[int]
    length_full: int
    selection: int
    kv_bytes: list[int] | None

    @classmethod
    def of(cls, anatomy: Anatomy, prefill: Prefill, image_tokens: Int[Tensor, "b layers"]) -> Self:
        """Notes of a prefill that has just gone through the decoder."""
        lengths = [stage.tokens.valid.shape[1] for stage in prefill.processed]
        full = prefill.stages[0].tokens.valid.shape[1]
        weight = anatomy.language.layers[0].input_layernorm.weight
        stored = [] if prefill.cache is None else [_stored_bytes(layer) for layer in prefill.cache.layers]
        batch = len(prefill.n_image)
        return cls(
            anatomy,
            batch,
            weight.dtype,
            weight.device,
            image_tokens,
            prefill.n_image,
            lengths,
            full,
            prefill.selection_flops,
            stored if any(stored) else None,  # training in checkpoints hands around a cache that stays empty
        )

    def report(self) -> Report:
        """Count."""
        counted: dict[Any, int] = {}

        def flops(layer: Any, length: int) -> int:
            key = (tuple(p.shape for p in layer.parameters()), length)
            if key not in counted:
                counted[key] = layer_flops(self.anatomy, layer, (self.batch, length), self.dtype, self.device)
            return counted[key]

        layers = self.anatomy.layers
        stored = self.kv_bytes
        return Report(
            image_tokens=self.image_tokens.double().mean(0).tolist(),
            image_tokens_full=sum(self.n_image) / self.batch,
            layer_lengths=self.lengths,
            length_full=self.length_full,
            flops=sum(flops(layer, length) for layer, length in zip(layers, self.lengths, strict=True)),
            flops_full=sum(flops(layer, self.length_full) for layer in layers),
            flops_selection=self.selection,
            kv_bytes=None if stored is None else sum(stored),
            kv_bytes_full=None
            if stored is None
            else sum(size * self.length_full // length for size, length in zip(stored, self.lengths, strict=True)),
        )


@torch.no_grad()
def layer_flops(anatomy: Anatomy, layer: Any, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> int:
    """FLOPs of one decoder layer for ``shape`` (batch, length), attention counted over all pairs of tokens."""
    language, (batch, length) = anatomy.language, shape
    layer = getattr(layer, "_orig_mod", layer)
    with FakeTensorMode(allow_non_fake_inputs=True), _countable(language.config), sdpa_kernel(SDPBackend.MATH):
        hidden = torch.empty(batch, length, language.config.hidden_size, dtype=dtype, device=device)
        positions = torch.zeros((3,) * anatomy.multi_axis + (batch, length), dtype=torch.long, device=device)
        rope = language.rotary_emb(hidden, positions)
        with FlopCounterMode(display=False) as counter:
            layer.forward(hidden, attention_mask=None, position_embeddings=rope, position_ids=None)
    return counter.get_total_flops()


@contextmanager
def _countable(config: Any) -> Iterator[None]:
    """Flash kernels run on real data only: meanwhile let the layers take the kernel of torch."""
    kernel = config._attn_implementation
    if kernel in ("eager", "sdpa"):
        yield
        return
    config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = kernel


def _stored_bytes(layer: Any) -> int:
    return sum(part.nbytes for part in (layer.keys, layer.values) if isinstance(part, Tensor))


def _runs(values: list[float]) -> str:
    """64 ×8, 32 ×8 for runs of equal values."""
    runs: list[list[float]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return ", ".join(f"{value:g} ×{times:g}" for value, times in runs)
