"""Counting floating-point operations without slowing a training to a quarter, as torch's own counter does.

`torch.utils.flop_counter.FlopCounterMode` keeps a count for each module and asks every operation each time whether it
is made of others. Here there is one count, and the answer is remembered. The formulas are torch's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


class FlopCounter:
    """``with FlopCounter() as counter: ...`` and then read ``counter.total``.

    Matrix products, convolutions and attention count, forward and backward, also inside another counter's block.
    """

    total = 0

    def __enter__(self) -> "FlopCounter":
        self._watch = _watches[-1] if _watches else _Watch()
        if not _watches:
            self._watch.__enter__()
        _watches.append(self._watch)
        self._before = self._watch.total
        return self

    def __exit__(self, *error: Any) -> None:
        self.total += self._watch.total - self._before
        _watches.pop()
        if not _watches:
            self._watch.__exit__(*error)


class _Watch(TorchDispatchMode):
    """Sees every operation; one serves all counters that are open."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _ATOMS:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            _ATOMS.add(func)
        result = func(*args, **kwargs)
        if formula := FORMULAS.get(func._overloadpacket):
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def _attention(query: Any, key: Any, value: Any, *rest: Any, out_val: Any = None, **named: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *rest: Any, out_val: Any = None, **named: Any
) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    # the attention kernels of CPUs, which torch leaves out
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
# operations that are made of no others; of the device of a fake tensor torch cannot even say whether it is one
_ATOMS: set[Any] = {torch.ops.prim.device.default}
_watches: list[_Watch] = []  # the same one for every open counter
