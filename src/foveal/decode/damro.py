"""DAMRO: take out of an answer what a few attention-grabbing background patches would say alone.

The vision encoder's CLS token attends most to some patches of background that hold global information, and the language
model follows it there instead of to the objects it names. A second branch sees only those k outlier patches:

    a = softmax(q_CLS Kᵀ / √·) without its own column         in the block whose output the language model gets
    outliers = the k patches with the largest a, in that order
    ℓ' = (1 + α) · ℓ − α · ℓ_outliers                         tokens with ℓ < max ℓ + log β get −∞

The authors' code for LLaVA takes q and k at their full width with one softmax (``heads="merged"``), the paper's
formula reads as a mean over heads (``"mean"``). Queries and keys are caught where the encoder's block computes them
anyway; only the row of the CLS token is multiplied out, and every kernel stays the model's own.

Xuan Gong, Tianshi Ming, Xinpeng Wang, Zhihua Wei: DAMRO: Dive into the Attention Mechanism of LVLM to Reduce Object
Hallucination. EMNLP 2024, arXiv 2410.04514.

Departures: InternVL, which the paper does not treat, joins 2 × 2 patches to a token; their attention is added, and of
an image in tiles only the thumbnail counts, as the base tile does in LLaVA-NeXT.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveal.decode.base import (
    ContrastBranch,
    ContrastProcessor,
    bare,
    check_alpha,
    check_beta,
    check_has_images,
    check_pictures,
    image_features,
    image_token,
    plausible_contrast,
)

_Heads = Literal["merged", "mean"]
_Picture = tuple[int, Float[Tensor, "k d"]]
"""How many image tokens of the prompt it fills, and the few that stand for it in the branch."""


def cls_attention(
    query: Float[Tensor, "b m d"], key: Float[Tensor, "b m d"], num_heads: int | None = None
) -> Float[Tensor, "b n"]:
    """How much the CLS token, which is the first of M = N + 1, attends to each of the N patches.

    Args:
        query, key: outputs of the projections at full width, D.
        num_heads: heads whose attentions are averaged; None takes the whole width as one.

    Raises ValueError for shapes that differ and a width that the heads do not divide.
    """
    if query.ndim != 3 or query.shape != key.shape or query.shape[1] < 2:
        raise ValueError(f"query {tuple(query.shape)} and key {tuple(key.shape)} must be (B, N + 1, D) alike, N > 0")
    heads, width = 1 if num_heads is None else num_heads, query.shape[-1]
    if heads < 1 or width % heads:
        raise ValueError(f"num_heads={num_heads}: must divide the width {width}")
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query[:, :1], key))
    scores = (q @ k.transpose(-1, -2)) * (width // heads) ** -0.5
    p = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return _ranked(p[:, :, 0, 1:].mean(1))


def outlier_indices(cls_attn: Float[Tensor, "b n"], k: int) -> Int[Tensor, "b k"]:
    """The k patches that the CLS token attends to most, the foremost first. ValueError unless 1 ≤ k ≤ N."""
    if cls_attn.ndim != 2 or not 1 <= k <= cls_attn.shape[1]:
        raise ValueError(
            f"k={k}: must be between 1 and the number of image tokens, N of (B, N) = {tuple(cls_attn.shape)}"
        )
    return _ranked(cls_attn).topk(k, sorted=True).indices


def _ranked(cls_attn: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """What is given, or ValueError for NaN, which has no rank."""
    if bool(cls_attn.isnan().any()):
        raise ValueError("attention of the CLS token is NaN: run the vision tower in bfloat16 or float32")
    return cls_attn


def damro_logits(
    logits: Float[Tensor, "b v"], logits_outlier: Float[Tensor, "b v"], alpha: float = 2.0, beta: float = 0.1
) -> Float[Tensor, "b v"]:
    """(1 + α) · ``logits`` − α · ``logits_outlier`` on the tokens that ``logits`` finds plausible, −∞ on the others."""
    check_alpha(alpha)
    return plausible_contrast(logits, logits_outlier, 1 + alpha, -alpha, beta)


@torch.no_grad()
def outlier_branch_inputs(
    model: Any,
    input_ids: Int[Tensor, "b t"],
    pixel_values: Tensor,
    attention_mask: Int[Tensor, "b t"] | None = None,
    image_sizes: Int[Tensor, "n 2"] | None = None,
    top_k: int = 10,
    heads: _Heads = "merged",
) -> dict[str, Tensor]:
    """``inputs_embeds`` (B, L, D) and ``attention_mask`` (B, L) of the prompts with k outliers for each image.

    Rows are padded on the left, with zeros. LLaVA-NeXT gets the outliers of the base tile and one newline. Costs one
    pass of the vision encoder.

    Raises ValueError for a model whose image tokens are not patches that a CLS token looks at, an unknown ``heads``, a
    ``top_k`` beyond the tokens of an image, and prompts that do not fit the images.
    """
    model = bare(model)
    if heads not in ("merged", "mean"):
        raise ValueError(f"heads={heads!r}: must be 'merged' or 'mean'")
    check_has_images(model, input_ids)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if input_ids.ndim != 2 or input_ids.shape != mask.shape:
        raise ValueError(f"input_ids {tuple(input_ids.shape)} and attention_mask {tuple(mask.shape)} must be (B, T)")
    attention = _attention_of_selected_block(model)
    check_pictures(model, {"pixel_values": pixel_values, "image_sizes": image_sizes})
    with _queries_and_keys(attention) as caught:
        features = image_features(model, pixel_values=pixel_values, image_sizes=image_sizes)
    attended = cls_attention(caught["q"], caught["k"], attention.num_heads if heads == "mean" else None)
    prompts = [ids[kept.bool()].to(model.device) for ids, kept in zip(input_ids, mask, strict=True)]
    if model.config.model_type == "internvl":
        pictures = _thumbnails(model, features, attended, prompts, top_k)
    else:
        pictures = _base_tiles(model, features, attended, image_sizes, top_k)
    rows = _filled(model, prompts, pictures)
    longest = max(map(len, rows))
    embeds = rows[0].new_zeros(len(rows), longest, rows[0].shape[-1])
    kept = torch.zeros(len(rows), longest, dtype=torch.long, device=embeds.device)
    for number, row in enumerate(rows):
        embeds[number, longest - len(row) :], kept[number, longest - len(row) :] = row, 1
    return {"inputs_embeds": embeds, "attention_mask": kept}


class DamroLogitsProcessor(ContrastProcessor):
    """DAMRO for ``generate(..., logits_processor=[...])``, on LLaVA, LLaVA-NeXT and InternVL.

    Args:
        model: the model that generates.
        input_ids, pixel_values, attention_mask, image_sizes: its inputs, as given to ``generate``.
        top_k: outlier tokens per image.
        alpha: at least 0; how far to move away from what the outliers say.
        beta: in (0, 1]; how probable a token must be, relative to the best, to be said at all.
        heads: "merged" as the authors' code for LLaVA, "mean" as their paper.

    Raises ValueError as `outlier_branch_inputs` does, and for settings out of range.
    """

    def __init__(
        self,
        model: Any,
        input_ids: Int[Tensor, "b t"],
        pixel_values: Tensor,
        attention_mask: Int[Tensor, "b t"] | None = None,
        image_sizes: Int[Tensor, "n 2"] | None = None,
        top_k: int = 10,
        alpha: float = 2.0,
        beta: float = 0.1,
        heads: _Heads = "merged",
    ) -> None:
        check_alpha(alpha)
        check_beta(beta)
        inputs = outlier_branch_inputs(model, input_ids, pixel_values, attention_mask, image_sizes, top_k, heads)
        super().__init__([ContrastBranch(model, inputs)], partial(damro_logits, alpha=alpha, beta=beta))


# The vision encoder ---------------------------------------------------------------------------------------------------


def _attention_of_selected_block(model: Any) -> Any:
    """Self-attention of the encoder block whose output becomes the image tokens; ValueError where there is no CLS."""
    kind, name = model.config.model_type, type(model).__name__
    if kind not in ("llava", "llava_next", "internvl"):
        raise ValueError(
            f"model is a {name}: DAMRO needs image tokens that are patches which a CLS token attends to, as in LLaVA, "
            "LLaVA-NeXT and InternVL; here take DebiasLogitsProcessor or AglaLogitsProcessor"
        )
    tower = model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)  # its place before transformers 5.6
    encoder = getattr(tower, "encoder", None)
    blocks = getattr(encoder, "layers", getattr(encoder, "layer", None))
    has_cls = any(part.endswith(("class_embedding", "cls_token")) for part, _ in tower.named_parameters())
    if blocks is None or not has_cls:
        raise ValueError(
            f"model is a {name} with a {type(tower).__name__}, which has no CLS token: DAMRO looks for what that "
            "attends to; here take DebiasLogitsProcessor or AglaLogitsProcessor"
        )
    layer = model.config.vision_feature_layer
    if not isinstance(layer, int) or not (-len(blocks) <= layer < 0 or 0 < layer <= len(blocks)):
        raise ValueError(f"vision_feature_layer={layer}: DAMRO needs one block of the {len(blocks)}, such as -2")
    block = blocks[layer if layer < 0 else layer - 1]
    return block.self_attn if hasattr(block, "self_attn") else block.attention


@contextmanager
def _queries_and_keys(attention: Any) -> Iterator[dict[str, Float[Tensor, "tiles m d"]]]:
    """Filled by the pass inside: ``q`` and ``k``, behind their norm if there is one."""
    caught: dict[str, Tensor] = {}
    handles = []
    for letter in "qk":
        place = getattr(attention, f"{letter}_norm", None) or getattr(attention, f"{letter}_proj")
        keep = partial(lambda letter, module, args, output: caught.update({letter: output}), letter)
        handles.append(place.register_forward_hook(keep))
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


# Prompts --------------------------------------------------------------------------------------------------------------


def _base_tiles(
    model: Any, features: list[Tensor], attended: Float[Tensor, "tiles n"], sizes: Tensor | None, k: int
) -> list[_Picture]:
    """LLaVA: the outliers of each image. LLaVA-NeXT: those of its first tile, and a newline."""
    first = 1 if model.config.vision_feature_select_strategy == "full" else 0  # the CLS token's feature comes along
    newline = getattr(model.model, "image_newline", None)
    tiles = [1] * len(features) if newline is None else _tiles(model.config, sizes)
    bases = torch.tensor([0, *tiles[:-1]], device=attended.device).cumsum(0)
    pictures = []
    for feature, outliers in zip(features, outlier_indices(attended[bases], k), strict=True):
        tokens = feature[first + outliers.to(feature.device)]
        pictures.append((len(feature), tokens if newline is None else torch.cat([tokens, newline[None].to(tokens)])))
    return pictures


def _tiles(config: Any, sizes: Tensor | None) -> list[int]:
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    assert sizes is not None
    return [
        image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size) for size in sizes
    ]


def _thumbnails(
    model: Any, features: list[Tensor], attended: Float[Tensor, "tiles n"], prompts: list[Tensor], k: int
) -> list[_Picture]:
    """InternVL: the outliers of the last tile of each run of image tokens; a token has the attention of its patches."""
    side = round(attended.shape[1] ** 0.5)
    joined = model.model.pixel_shuffle(attended.view(-1, side, side, 1), model.config.downsample_ratio)
    outliers = outlier_indices(joined.sum(-1).flatten(1), k)
    pictures, tile = [], 0
    for ids in prompts:
        image = (ids == image_token(model)).int()
        starts = (image.diff(prepend=image.new_zeros(1)) == 1).nonzero()[:, 0].tolist()
        ends = (image.diff(append=image.new_zeros(1)) == -1).nonzero()[:, 0].tolist()
        for start, end in zip(starts, ends, strict=True):
            tile += (end + 1 - start) // len(features[0])
            if (end + 1 - start) % len(features[0]) or tile > len(features):
                raise _unlike(sum(map(len, features)), image_token(model))
            pictures.append((end + 1 - start, features[tile - 1][outliers[tile - 1]]))
    if tile < len(features):
        raise _unlike(sum(map(len, features)), image_token(model))
    return pictures


def _filled(model: Any, prompts: list[Int[Tensor, " t"]], pictures: list[_Picture]) -> list[Float[Tensor, "l d"]]:
    """Embeddings of each prompt, with the pictures' few tokens in the place of all that they fill."""
    token, waiting = image_token(model), iter(pictures)
    error = _unlike(sum(count for count, _ in pictures), token)
    rows = []
    for ids in prompts:
        parts, embedded, start = [], model.get_input_embeddings()(ids), 0
        image = ids == token
        while start < len(ids):
            if bool(image[start]):
                count, tokens = next(waiting, (len(ids) + 1, embedded))
                if len(image[start : start + count]) < count or not bool(image[start : start + count].all()):
                    raise error
                parts.append(tokens.to(embedded))
            else:
                coming = image[start:].nonzero()
                count = int(coming[0]) if len(coming) else len(ids) - start
                parts.append(embedded[start : start + count])
            start += count
        rows.append(torch.cat(parts))
    if next(waiting, None) is not None:
        raise error
    return rows


def _unlike(expected: int, token: int) -> ValueError:
    return ValueError(
        f"input_ids does not hold the {expected} image tokens (id {token}) of pixel_values: give both as the model's "
        "processor returns them"
    )
