"""What every reducer of visual tokens promises. A new one adds one `Case`; `test_contract.py` runs them all."""

from collections.abc import Callable
from dataclasses import dataclass, field

from foveal.compress.pyramiddrop import PyramidDrop
from foveal.compress.runtime import PrefillReducer

from .tiny import KINDS, Kind


@dataclass(frozen=True)
class Case:
    """One reducer under test, on models of `tiny.LAYERS` layers."""

    name: str
    build: Callable[[Kind], PrefillReducer]
    """It drops something from every prompt with an image, of whatever kind."""
    keep_all: Callable[[Kind], PrefillReducer]
    """The same method, set to keep every token."""
    renumbers: Callable[[int], bool] = lambda layer: True
    """Do tokens get new positions when some are dropped at this layer (of models with one-axis positions)?"""
    merges: bool = False
    """Does a surviving token hold the mean of several?"""
    trains: bool = True
    """Is it made for training too?"""
    kinds: tuple[str, ...] = field(default=tuple(kind.name for kind in KINDS))
    """Models that it can work on; the others it must refuse."""


CASES = [
    Case(
        "pyramiddrop",
        lambda kind: PyramidDrop((1, 3, 4), (0.5, 0.3, 0.1), kind.positions),
        lambda kind: PyramidDrop((1, 3), (1.0, 1.0), kind.positions),
    ),
    Case(
        "pyramiddrop-original",
        lambda kind: PyramidDrop((2, 4), (0.5, 0.0), "original"),
        lambda kind: PyramidDrop((2, 4), (1.0, 1.0), "original"),
        renumbers=lambda layer: False,
    ),
]
