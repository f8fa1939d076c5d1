"""Where LLaVA-family models of transformers keep what VladVA needs: the only file of it that knows the classes.

A host is any module with ``get_image_features`` and a ``language_model`` (on itself or on its ``model``) and with
``get_input_embeddings`` and ``get_output_embeddings``: LLaVA, LLaVA-NeXT, LLaVA-OneVision, Qwen2-VL, Qwen2.5-VL.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.adapt.vladva_sequence import Assembled

GRID = "image_grid_thw"


class Visual(NamedTuple):
    """Visual tokens as the language model reads them, padded on the right; a frozen tower makes them once for all.

    ``grid``: patches in time, height and width of each image, for rotary positions of several axes (Qwen-VL).
    """

    tokens: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"]
    grid: Int[Tensor, "b 3"] | None = None


def core(lvlm: nn.Module) -> Any:
    """The part that holds vision tower, projector and language model; ValueError if there is none."""
    inner: Any = lvlm if hasattr(lvlm, "language_model") else getattr(lvlm, "model", lvlm)
    wanted = {"language_model": inner, "get_image_features": inner, "get_output_embeddings": lvlm}
    missing = [name for name, owner in wanted.items() if not hasattr(owner, name)]
    if missing:
        raise ValueError(
            f"lvlm={type(lvlm).__name__} has no {', '.join(missing)}: give a LlavaForConditionalGeneration or its like"
        )
    return inner


@torch.no_grad()
def visual_tokens(lvlm: nn.Module, pixel_values: Tensor, **image_inputs: Any) -> Visual:
    """What tower and projector make of one image in each row.

    Args:
        lvlm: the host.
        pixel_values: as its image processor gives them.
        image_inputs: what else the image processor gives, such as ``image_sizes`` or ``image_grid_thw``.
    """
    inner = core(lvlm)
    pixel_values = pixel_values.to(next(inner.parameters()).dtype)
    output = inner.get_image_features(pixel_values=pixel_values, **image_inputs, return_dict=True)
    rows: Sequence[Tensor] = list(output.pooler_output)
    if not rows or any(row.ndim != 2 for row in rows):
        raise ValueError(f"pixel_values {tuple(pixel_values.shape)} gave {type(lvlm).__name__} no list of images")
    mask = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.bool, device=rows[0].device)
    for number, row in enumerate(rows):
        mask[number, : len(row)] = True
    return Visual(nn.utils.rnn.pad_sequence(list(rows), batch_first=True), mask, image_inputs.get(GRID))


def last_hidden(
    lvlm: nn.Module, sequence: Assembled, image_segment: int | None = None, grid: Tensor | None = None
) -> Float[Tensor, "b l d"]:
    """States of the language model after its final norm.

    ``image_segment``: which segment holds the visual tokens, and ``grid`` their shape, where positions depend on it.
    """
    inner = core(lvlm)
    positions = sequence.position_ids
    if grid is not None and image_segment is not None and hasattr(inner, "get_rope_index"):
        image = sequence.segment == image_segment
        positions, _ = inner.get_rope_index(
            input_ids=torch.where(image, inner.config.image_token_id, 0),
            mm_token_type_ids=image.int(),
            image_grid_thw=grid,
            attention_mask=sequence.mask.long(),
        )
    return inner.language_model(
        inputs_embeds=sequence.embeds,
        attention_mask=sequence.mask.long(),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state
