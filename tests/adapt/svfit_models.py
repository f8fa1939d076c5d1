"""Tiny random models of the real classes on which SVFit must work, with what they are fed."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
)

from foveal import zoo

IDS = torch.arange(2, 12).reshape(2, 5)
TARGETS = ("q_proj", "v_proj", "query", "value", "c_attn", "to_q", "to_v")
"""Names of query and value in all of them: transformers' ViT has had two in version 5."""
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@dataclass(frozen=True)
class Tiny:
    model: nn.Module
    inputs: dict[str, Any]
    layers: int
    """Query and value projections."""

    def __call__(self) -> Tensor:
        """The first output."""
        return next(iter(self.model(**self.inputs, return_dict=False)))


def vit() -> Tiny:
    config = ViTConfig(**SMALL, image_size=16, patch_size=8)
    return Tiny(ViTModel(config), {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)}, 4)


def roberta() -> Tiny:
    return Tiny(RobertaModel(RobertaConfig(**SMALL, vocab_size=20)), {"input_ids": IDS}, 4)


def llama() -> Tiny:
    config = LlamaConfig(**SMALL, num_key_value_heads=1, vocab_size=20, attention_bias=False)
    return Tiny(LlamaForCausalLM(config), {"input_ids": IDS}, 4)


def gpt2() -> Tiny:
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=8)
    return Tiny(GPT2LMHeadModel(config), {"input_ids": IDS}, 2)


def clip() -> Tiny:
    nano = zoo.load("nano-clip")
    size = nano.model.config.vision_config.image_size
    pixels = torch.linspace(-1, 1, 3 * size**2).reshape(1, 3, size, size)
    blocks = nano.model.config.vision_config.num_hidden_layers + nano.model.config.text_config.num_hidden_layers
    return Tiny(nano.model, {"input_ids": IDS[:1], "pixel_values": pixels}, 2 * blocks)


def unet() -> Tiny:
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        cross_attention_dim=6,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    inputs = {"sample": torch.linspace(-1, 1, 128).reshape(1, 2, 8, 8), "timestep": 3}
    inputs["encoder_hidden_states"] = torch.linspace(-1, 1, 18).reshape(1, 3, 6)
    return Tiny(model, inputs, 16)


MODELS = {make.__name__: make for make in (vit, roberta, llama, gpt2, clip, unet)}


def tiny(name: str) -> Tiny:
    """In evaluation mode; random weights are the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = MODELS[name]()
    made.model.eval()
    return made
