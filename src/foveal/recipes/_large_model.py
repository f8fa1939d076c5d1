"""A LLaVA of Hugging Face's classes that reads tiles of 32 px, and how lessons become its inputs and its loss."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from foveal.recipes._large import IMAGE, PATCH, START, TILE
from foveal.recipes._large_lessons import SIDE, TURN

WIDTH, LAYERS = 64, 3
"""Of the language model; the vision tower is as wide."""


def build() -> LlavaForConditionalGeneration:
    """The untrained model."""
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 2}
    text: dict[str, Any] = {"num_hidden_layers": LAYERS, "vocab_size": IMAGE + 1, "initializer_range": 0.1}
    text |= {"bos_token_id": START, "eos_token_id": START, "pad_token_id": 0}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, num_hidden_layers=3, image_size=TILE, patch_size=PATCH),
        text_config=LlamaConfig(**sizes, **text),
        image_token_index=IMAGE,
        image_seq_length=(TILE // PATCH) ** 2,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def sequence(model: LlavaForConditionalGeneration, lesson: dict[str, Tensor]) -> Float[Tensor, "b l d"]:
    """Embeddings of beginning, thumbnail, local tokens (if there are any) and text, in `LargeImageLlava`'s order."""
    embed, project = model.get_input_embeddings(), model.model.multi_modal_projector
    parts = [embed(torch.full((len(lesson["text"]), 1), START)), project(lesson["thumbnail"])]
    if "tiles" in lesson:
        pooled = project(lesson["tiles"]).unflatten(2, (SIDE, 2, SIDE, 2)).mean((3, 5)).flatten(1, 3)
        parts.append(pooled.take_along_dim(lesson["order"][..., None], 1))
    return torch.cat([*parts, embed(lesson["text"])], 1)


def asking(lesson: dict[str, Tensor]) -> Int[Tensor, " t"]:
    """Places of the last tokens of the questions, each before its answer."""
    length, text = lesson["positions"].shape[1], lesson["text"].shape[1]
    return length - text + TURN * torch.arange(1, text // TURN + 1) - 2


def answer_loss(model: LlavaForConditionalGeneration, lesson: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cross-entropy of the answers, and the share of right ones."""
    rows, positions = asking(lesson), lesson["positions"]
    states = model.model.language_model(
        inputs_embeds=sequence(model, lesson), position_ids=positions, use_cache=False
    ).last_hidden_state
    logits = model.lm_head(states[:, rows]).flatten(0, 1)
    truth = lesson["text"][:, rows + 1 - positions.shape[1]].flatten()
    return {"loss": F.cross_entropy(logits, truth), "right": (logits.argmax(1) == truth).float().mean()}


def patch_features(tower: nn.Module, tiles: Float[Tensor, "b 3 t t"]) -> Float[Tensor, "b p d"]:
    """The last layer's patches, without the class token."""
    return tower(tiles, output_hidden_states=True).hidden_states[-1][:, 1:]


def both(logits: Float[Tensor, "*n c"], truth: Int[Tensor, "*n"], nothing: int) -> Float[Tensor, ""]:
    """Cross-entropy where there is something plus that where there is nothing, however rare either is."""
    parts = [part for part in (truth == nothing, truth != nothing) if part.any()]
    return torch.stack([F.cross_entropy(logits[part], truth[part]) for part in parts]).sum()
