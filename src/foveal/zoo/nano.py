"""The slots of foveal's own reference models: tiny checkpoints of Hugging Face classes, shipped as safetensors.

A slot is a folder ``foveal/zoo/weights/<name>`` in the layout of its class's ``save_pretrained``; whatever lies there
is what ``load`` returns.
"""

from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"
CLASSES = {
    "nano-clip": ("transformers", "CLIPModel"),
    "nano-llava": ("transformers", "LlavaForConditionalGeneration"),
    "nano-sd": ("diffusers", "StableDiffusionPipeline"),
}


def load(name: str, **options: Any) -> Any:
    """The nano model of its standard class, in evaluation mode.

    Raises ValueError for an unknown name and FileNotFoundError when this version ships no such checkpoint.
    """
    if name not in CLASSES:
        raise ValueError(f"name={name!r} is not a nano model; choose one of {', '.join(CLASSES)}")
    folder = WEIGHTS / name
    if not folder.is_dir():
        raise FileNotFoundError(f"this version of foveal ships no {name} checkpoint (looked in {folder})")
    library, class_name = CLASSES[name]
    model_class = getattr(__import__(library), class_name)
    return model_class.from_pretrained(folder, **options)
