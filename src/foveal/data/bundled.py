"""What the sources inside installed packages share: finding a package's files, and samples that load when asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, overload

from foveal.data.record import Sample


@cache
def package_folder(package: str, distribution: str) -> Path:
    """Folder of an installed package, found without importing it.

    Raises:
        FileNotFoundError: naming the ``distribution`` to install.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package {package} is missing; run: pip install {distribution}")
    return Path(spec.submodule_search_locations[0])


@dataclass(frozen=True)
class LazySamples(Sequence[Sample]):
    """A sequence that remembers what to load and loads it on access, so that it is small, sliceable and picklable."""

    items: tuple[Any, ...]
    load: Callable[[Any], Sample]
    """A function of one item; defined at the top of a module, since workers receive it pickled."""

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> LazySamples: ...

    def __getitem__(self, index: int | slice) -> Sample | LazySamples:
        if isinstance(index, slice):
            return LazySamples(self.items[index], self.load)
        return self.load(self.items[index])
