"""Any model behind one of three small adapters: a dual encoder, a vision–language model, a text-to-image pipeline.

`open_model` takes a nano model's name, a folder in the layout of ``save_pretrained``, or a Hugging Face hub id. The
class that the folder's own configuration names decides which adapter it gets. Weights are read from safetensors only,
and code that comes with a checkpoint is never run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveal.evaluate.base import Kind
from foveal.evaluate.models.files import find_folder, weights_digest, weights_size
from foveal.evaluate.models.recorded import RecordedAnswers
from foveal.evaluate.models.text_to_image import GUIDANCE, STEPS, TextToImage
from foveal.evaluate.models.vision_language import Request, VisionLanguage
from foveal.zoo.dual_encoder import DualEncoder
from foveal.zoo.quiet import quiet_loading

__all__ = [
    "DTYPES",
    "DualEncoder",
    "Opened",
    "RecordedAnswers",
    "Request",
    "TextToImage",
    "VisionLanguage",
    "open_model",
]

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Opened:
    """A model ready for evaluation, with what a report must say about it."""

    name: str
    kind: Kind
    model: Any
    """`DualEncoder`, `VisionLanguage` or `TextToImage`."""
    class_name: str
    """Of the Hugging Face model."""
    folder: Path
    parameters: int
    weight_bytes: int
    sha256: str
    """Of the weight files with their names inside the folder."""
    dtype: str
    device: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else outputs depend on, such as the number of denoising steps."""


def open_model(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 32,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> Opened:
    """The model behind a nano name, a local folder or (only then over the network) a hub id.

    Args:
        name: such as ``nano-clip``, ``./my-clip`` or ``openai/clip-vit-base-patch32``; or a ``.json`` or ``.jsonl``
            file of answers that some model gave elsewhere, see `RecordedAnswers`.
        device: of torch; "auto" is a CUDA GPU if there is one, else the CPU.
        dtype: of `DTYPES`; "auto" is that of the checkpoint on a GPU and float32 on a CPU.
        batch_size: most pictures or texts at once.
        steps: denoising steps, guidance: scale of classifier-free guidance; of text-to-image pipelines only.

    Raises:
        ValueError: not found, no safetensors weights, a class that is no image–text model, or unknown options.
    """
    import torch

    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    place = torch_device(device)
    if Path(name).suffix in (".json", ".jsonl"):
        return _recorded(Path(name))
    number: Any = dtype
    if dtype != "auto":
        number = getattr(torch, dtype)
    elif place.type == "cpu":
        number = torch.float32
    folder = find_folder(name)
    kind = kind_of(folder)
    with quiet_loading():
        if kind == "text-to-image":
            adapter, parts = _text_to_image(folder, place, number, batch_size, steps, guidance)
        else:
            adapter, parts = _LOADERS[kind](folder, place, number, batch_size)
    return Opened(
        name=name,
        kind=kind,
        model=adapter,
        class_name=type(parts[0]).__name__ if len(parts) == 1 else type(adapter.pipeline).__name__,
        folder=folder,
        parameters=sum(p.numel() for part in parts for p in part.parameters()),
        weight_bytes=weights_size(folder),
        sha256=weights_digest(folder),
        dtype=str(parts[0].dtype).removeprefix("torch."),
        device=str(place),
        settings={"steps": steps, "guidance": guidance} if kind == "text-to-image" else {},
    )


def _recorded(path: Path) -> Opened:
    """Answers that are there already, in the place of a model."""
    answers = RecordedAnswers(path)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    kind: Kind = "vision-language"
    return Opened(str(path), kind, answers, "recorded answers", path, 0, len(content), digest, "none", "none")


def torch_device(name: str) -> Any:
    """``torch.device`` of a name; ValueError when it is none, or this machine has no such device."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device={name!r} cannot be used ({str(error).splitlines()[0]}); try --device cpu") from error
    return device


def kind_of(folder: Path) -> Kind:
    """What the checkpoint in a folder is, by the class that its configuration names; ValueError when it is neither."""
    if (folder / "model_index.json").is_file():
        return "text-to-image"
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder} holds no model that this transformers knows: {reason}") from error
    if type(config) in AutoModelForImageTextToText._model_mapping:
        return "vision-language"
    if type(config) in AutoModel._model_mapping:
        model_class = AutoModel._model_mapping[type(config)]
        if hasattr(model_class, "get_image_features") and hasattr(model_class, "get_text_features"):
            return "dual encoder"
    raise ValueError(
        f"{folder} holds a {config.model_type!r} model, which neither embeds images and texts nor answers questions "
        "about images; give a CLIP or SigLIP, an image-text-to-text model, or a diffusers pipeline"
    )


def _dual_encoder(folder: Path, device: Any, dtype: Any, batch_size: int) -> tuple[Any, list[Any]]:
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    model = model.eval().to(device)
    return DualEncoder(model, processor, batch_size), [model]


def _vision_language(folder: Path, device: Any, dtype: Any, batch_size: int) -> tuple[Any, list[Any]]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model: Any = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True
    )
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    model = model.eval().to(device)
    return VisionLanguage(model, processor, batch_size), [model]


def _text_to_image(
    folder: Path, device: Any, dtype: Any, batch_size: int, steps: int, guidance: float
) -> tuple[Any, list[Any]]:
    from diffusers import DiffusionPipeline
    from torch import nn

    pipeline = DiffusionPipeline.from_pretrained(
        folder, torch_dtype=None if dtype == "auto" else dtype, use_safetensors=True, local_files_only=True
    ).to(device)
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return TextToImage(pipeline, batch_size, steps, guidance), parts


_LOADERS = {"dual encoder": _dual_encoder, "vision-language": _vision_language}
