"""foveal's own reference models: tiny checkpoints of standard Hugging Face classes, shipped as safetensors.

Each has a folder ``foveal/zoo/weights/<name>`` in the layout of its class's ``save_pretrained``, and a file here that
says how it was trained: ``foveal train nano-clip`` makes the folder anew.
"""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.zoo.quiet import quiet_loading

WEIGHTS = Path(__file__).parents[1] / "weights"
CLASSES = {
    "nano-clip": ("transformers", "CLIPModel", "CLIPProcessor"),
    "nano-llava": ("transformers", "LlavaForConditionalGeneration", "LlavaProcessor"),
    "nano-sd": ("diffusers", "StableDiffusionPipeline", None),
}


@dataclass(frozen=True)
class Nano:
    """A model in evaluation mode and its processor (images and texts to model inputs)."""

    model: Any
    processor: Any


def folder(name: str) -> Path:
    """Where the shipped checkpoint lies, for any ``from_pretrained``.

    Raises ValueError for an unknown name and FileNotFoundError when this version ships no such checkpoint.
    """
    if name not in CLASSES:
        raise ValueError(f"name={name!r} is not a nano model; choose one of {', '.join(CLASSES)}")
    place = WEIGHTS / name
    if not place.is_dir():
        raise FileNotFoundError(
            f"this version of foveal ships no {name} checkpoint (looked in {place}); make one: foveal train {name}"
        )
    return place


def load(name: str, path: Path | None = None) -> Any:
    """The model of ``path``, or else the shipped one: a `Nano`; for nano-sd a ``StableDiffusionPipeline``.

    Raises as `folder`.
    """
    place = path or folder(name)
    library, model_class, processor_class = CLASSES[name]
    with quiet_loading():
        module = importlib.import_module(library)
        model = getattr(module, model_class).from_pretrained(place, dtype=_float32())
        if processor_class is None:
            model.set_progress_bar_config(disable=not sys.stderr.isatty())
            return model
        return Nano(model.eval(), getattr(module, processor_class).from_pretrained(place))


def _float32() -> Any:
    import torch  # weights are shipped in half the precision; CPUs compute in this one

    return torch.float32
