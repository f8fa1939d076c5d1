"""Seconds, memory, floating-point operations and parameters: what a fair comparison has to report."""

import sys
import threading
import time
from types import TracebackType

import psutil
import torch
from torch import nn

from foveal.train.flops import FlopCounter


def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    """Numbers in the model's parameters, shared ones once; only those with ``requires_grad`` when ``trainable``."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


class Meter:
    """Measures the block it wraps: ``with Meter() as meter: ...`` and then read its attributes.

    Attributes:
        seconds: wall time.
        peak_memory_bytes: by how much the process grew at most (resident memory, sampled 50 times a second and
            corrected by the system's own high-water mark), or CUDA's allocator where ``device`` is a CUDA device.
        flops: floating-point operations of matrix products, convolutions and attention, forward and backward, as
            `foveal.train.flops` counts them; 0 unless asked for with ``flops=True``, since counting is slow.
    """

    def __init__(self, flops: bool = False, device: torch.device | str = "cpu") -> None:
        self.seconds = 0.0
        self.peak_memory_bytes = 0
        self.flops = 0
        self._counter = FlopCounter() if flops else None
        self._device = torch.device(device)
        self._memory = _CudaMemory(self._device) if self._device.type == "cuda" else _HostMemory()

    def __enter__(self) -> "Meter":
        self._memory.start()
        if self._counter is not None:
            self._counter.__enter__()
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds = time.perf_counter() - self._started
        if self._counter is not None:
            self._counter.__exit__(kind, error, trace)
            self.flops = self._counter.total
        self.peak_memory_bytes = self._memory.growth()


class _HostMemory:
    """Peak growth of this process's resident memory."""

    def start(self) -> None:
        self._process = psutil.Process()
        self._before = self._peak = self._process.memory_info().rss
        self._high_water = high_water_mark()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._done.wait(0.02):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def growth(self) -> int:
        self._done.set()
        self._thread.join()
        peak = max(self._peak, self._process.memory_info().rss)
        mark = high_water_mark()
        if mark > self._high_water:  # a new record was set inside the block: the system's figure is exact
            peak = max(peak, mark)
        return peak - self._before


class _CudaMemory:
    """Peak growth of what torch has allocated on one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def growth(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) - self._before


def high_water_mark() -> int:
    """Largest resident memory of this process so far, in bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # POSIX only

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
