"""``load(name)``: one way to every part, and the card that says where its weights come from."""

import importlib
from dataclasses import dataclass
from typing import Any

PARTS = ("smollm2", "efficientnet-lite0", "minilm", "nano-clip", "nano-llava", "nano-sd", "smol-vl")


@dataclass(frozen=True, slots=True)
class Card:
    """Where a part comes from and what its licence asks for."""

    name: str
    what: str
    parameters: int
    licence: str
    attribution: str


def load(name: str, **options: Any) -> Any:
    """The part called `name` (one of `PARTS`), ready for inference on the CPU; options go to the part's own ``load``.

    Raises ValueError for an unknown name, FileNotFoundError (with the remedy) when its weights are not installed.
    """
    if name not in PARTS:
        raise ValueError(f"name={name!r} is not a part of the zoo; choose one of {', '.join(PARTS)}")
    module = "nano" if name.startswith("nano-") else name.replace("-", "_")
    loader = importlib.import_module(f"foveal.zoo.{module}").load
    return loader(name, **options) if module == "nano" else loader(**options)
