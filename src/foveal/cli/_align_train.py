"""Low-rank adapters (LoRA) of a language model's linear layers, trained in stages that go on after a stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor, nn

from foveal.data.files import write_atomically
from foveal.train import FitConfig, fit

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Tuning:
    """How stages are trained.

    Raises:
        ValueError: naming the setting and what it may be.
    """

    epochs: float = 1.0
    batch_size: int = 4
    lr: float = 5e-6
    rank: int = 16
    max_length: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.batch_size < 1 or self.rank < 1 or self.max_length < 1:
            raise ValueError(
                f"epochs={self.epochs}, batch_size={self.batch_size}, rank={self.rank}, max_length={self.max_length}: "
                "must all be above 0"
            )

    def steps(self, rows: int) -> int:
        return max(1, round(self.epochs * rows / self.batch_size))

    def fit(
        self, model: nn.Module, data: Sequence[Any], collate: Any, loss: Callable[..., Any], out: Path
    ) -> list[float]:
        """The loss of every step."""
        size = min(self.batch_size, len(data))
        options: dict[str, Any] = {"lr": self.lr, "batch_size": size, "weight_decay": 0.0, "warmup": 0.03}
        config = FitConfig(**options, seed=self.seed, collate=collate, save_every=20, keep=1)
        return fit(model, data, steps=self.steps(len(data)), loss=loss, config=config, out=out).losses


def adapted(model: Any, tuning: Tuning) -> Any:
    """The model of peft with a new adapter in all linear layers of its language model; α is twice the rank.

    ValueError: no such layer.
    """
    decoder = model.get_decoder()
    names = {id(module): name for name, module in model.named_modules()}
    targets = [names[id(module)] for module in decoder.modules() if isinstance(module, nn.Linear)]
    if not targets:
        raise ValueError(f"{type(model).__name__} has no linear layer in its language model that LoRA could adapt")
    config = LoraConfig(r=tuning.rank, lora_alpha=2 * tuning.rank, target_modules=sorted(targets))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(tuning.seed)
        return get_peft_model(model, config)


def merged(policy: Any) -> tuple[Any, Tensors, LoraConfig]:
    """The plain model with the adapter in its weights, and the adapter alone."""
    tensors = {name: value.detach().cpu().clone() for name, value in get_peft_model_state_dict(policy).items()}
    config = policy.peft_config["default"]
    return policy.merge_and_unload(), tensors, config


def save_adapter(folder: Path, parts: Sequence[Tensors], config: LoraConfig, base: str) -> None:
    """One adapter that does what the parts do one after the other: low-rank updates add up, side by side."""
    tensors = {
        name: torch.cat([part[name] for part in parts], dim=0 if "lora_A" in name else 1).contiguous()
        for name in parts[0]
    }
    config.r, config.lora_alpha = len(parts) * config.r, len(parts) * config.lora_alpha
    config.base_model_name_or_path, config.inference_mode = base, True
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    write_atomically(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
