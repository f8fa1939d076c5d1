"""What connectors share: frozen parts, the features of any vision tower, greedy decoding from a soft prompt."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Part = TypeVar("Part", bound=nn.Module)


def freeze(part: Part) -> Part:
    """Switch off gradients and dropout. A parent module must repeat ``part.eval()`` in its own ``train()``."""
    return part.requires_grad_(False).eval()


def vision_features(vision: nn.Module, images: Tensor, pooled: bool) -> Tensor:
    """Features of a frozen vision tower: (B, N, Dv), or (B, Dv) when ``pooled``.

    ``vision`` is a Hugging Face vision model or any module that returns a tensor. Feature maps (B, Dv, h, w) become
    tokens row by row. Class and register tokens of a model that tells its ``config.patch_size``, a number or (height,
    width), are dropped.
    """
    with torch.no_grad():
        output = vision(images)
    if isinstance(output, Tensor):
        features = output
    elif pooled and getattr(output, "pooler_output", None) is not None:
        features = output.pooler_output.flatten(1)
    else:
        features = output.last_hidden_state
        patch = getattr(getattr(vision, "config", None), "patch_size", None)
        if isinstance(patch, int):
            patch = patch, patch
        if features.ndim == 3 and patch is not None and len(patch) == 2:
            patches = (images.shape[-2] // patch[0]) * (images.shape[-1] // patch[1])
            features = features[:, features.shape[1] - patches :]
    if features.ndim == 4:
        features = features.flatten(2).transpose(1, 2)
    return features.mean(1) if pooled and features.ndim == 3 else features


def greedy_generate(language: Any, max_new_tokens: int, eos_ids: Sequence[int], **inputs: Any) -> Int[Tensor, "b t"]:
    """``language.generate`` by plain greedy decoding, whatever defaults the checkpoint brings along.

    What a call leaves open ``generate`` takes from the model's own config. For this call nothing is left there but the
    tokens that a text starts with; afterwards the config is as it was.
    """
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(eos_ids),
        pad_token_id=eos_ids[0],
    )
    own = language.generation_config
    starts = {name: getattr(own, name) for name in ("bos_token_id", "decoder_start_token_id")}
    kept, own.__dict__ = own.__dict__, vars(GenerationConfig(**starts))  # in place: wrappers hand on the same object
    try:
        return language.generate(**inputs, generation_config=config)
    finally:
        own.__dict__ = kept


@torch.no_grad()
def greedy_decode(
    language: Any, prompt: Float[Tensor, "b n d"], max_new_tokens: int, eos_id: int
) -> Int[Tensor, "b t"]:
    """New token ids after a soft prompt, t ≤ ``max_new_tokens``; what follows a row's first ``eos_id`` is ``eos_id``.

    Hugging Face models decode with their key–value cache. Any other module with the call
    ``language(inputs_embeds=, attention_mask=)`` is run again on the whole sequence for every token.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    mask = torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)
    if hasattr(language, "generate"):
        return greedy_generate(language, max_new_tokens, [eos_id], inputs_embeds=prompt, attention_mask=mask)
    embed = language.get_input_embeddings()
    tokens: list[Tensor] = []
    done = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    while len(tokens) < max_new_tokens and not bool(done.all()):
        best = language(inputs_embeds=prompt, attention_mask=mask).logits[:, -1].argmax(-1)
        tokens.append(torch.where(done, eos_id, best))
        done |= tokens[-1] == eos_id
        prompt = torch.cat([prompt, embed(tokens[-1])[:, None]], 1)
        mask = torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)
    return torch.stack(tokens, 1)
