"""foveal: 87 published vision-language methods as parts for Hugging Face models, each with a measured claim.

Rooms load on first use: ``foveal.connect.SittaMapper``, ``foveal.zoo.load("smollm2")``.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_STAGES = (
    "curate", "pretrain", "connect", "adapt", "align", "compress", "decode", "perceive", "generate", "evaluate",
)  # fmt: skip
_ROOMS = ("nn", "data", "zoo", "train", "llm", *_STAGES, "lab", "recipes", "catalog", "demo", "cli")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"foveal.{name}")
    raise AttributeError(f"module 'foveal' has no attribute {name!r}; rooms: {', '.join(_ROOMS)}")


def __dir__() -> list[str]:
    return ["__version__", *_ROOMS]
