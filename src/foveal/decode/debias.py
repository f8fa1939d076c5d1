"""Debias: take out of an answer what the model would have said without looking at the image.

The model's own prediction without the image shows its language prior. Two corrections need no training. Post-hoc
debias, for yes/no and multiple choice (see `debias_closed`): an affine map of the label probabilities p under which the
image-free p° would be uniform. Visual debias decoding (VDD), for open text: subtract the image-free logits.

    p° ← p°/Σp° + ε        q = W p + b,   W = diag(1/p°), b = 0    (or W = 1, b = −p°, left unnormalised)
    ℓ' = (1 + α) · ℓ − α · ℓ°          tokens with ℓ < max ℓ + log β get −∞

"Without the image" is the prompt with its image tokens deleted (``none``), or with one ``<unk>`` for each image
(``unk``), or both: sums of p° there, the mean of the logits ℓ° here. The paper also finds that temperature, top-p and
top-k alone move scores as much as methods do: `sweep_decoding` belongs to every comparison.

Yi-Fan Zhang, Weichen Yu, Qingsong Wen, et al.: Debiasing Multimodal Large Language Models. 2024, arXiv 2403.05262.

Departures: W = 1 is not normalised (the authors' code divides by Σq ≈ −Kε, which turns the order around); an image is a
run of image tokens, since a prompt of transformers holds one per patch.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveal.decode.base import (
    ContrastBranch,
    ContrastProcessor,
    check_alpha,
    check_beta,
    check_has_images,
    image_token,
    plausible_contrast,
)
from foveal.decode.debias_closed import PostHocDebias as PostHocDebias
from foveal.decode.debias_closed import answer_step as answer_step
from foveal.decode.debias_closed import calibration_affine as calibration_affine
from foveal.decode.debias_closed import label_probs as label_probs
from foveal.decode.debias_closed import post_hoc_debias as post_hoc_debias
from foveal.decode.debias_closed import surface_forms as surface_forms

_ImageFree = Literal["none", "unk", "both"]

# Open answers ---------------------------------------------------------------------------------------------------------


def debias_logits(
    logits: Float[Tensor, "b v"], logits_free: Float[Tensor, "b v"], alpha: float = 1.0, beta: float = 0.1
) -> Float[Tensor, "b v"]:
    """(1 + α) · ``logits`` − α · ``logits_free`` on the tokens that ``logits`` finds plausible, −∞ on the others."""
    check_alpha(alpha)
    return plausible_contrast(logits, logits_free, 1 + alpha, -alpha, beta)


def image_free_inputs(
    input_ids: Int[Tensor, "b t"],
    image_token_id: int,
    attention_mask: Int[Tensor, "b t"] | None = None,
    mode: Literal["none", "unk"] = "none",
    unk_token_id: int | None = None,
    pad_token_id: int = 0,
) -> tuple[Int[Tensor, "b s"], Int[Tensor, "b s"]]:
    """Prompts without their images, and the mask of the padding on their left.

    Args:
        mode: "none" deletes every image token; "unk" puts one ``unk_token_id`` in the place of each run of them.

    Raises ValueError for an unknown mode, "unk" without its id, and a prompt of which nothing is left.
    """
    if mode not in ("none", "unk"):
        raise ValueError(f"mode={mode!r}: must be 'none' or 'unk'")
    if mode == "unk" and unk_token_id is None:
        raise ValueError("unk_token_id=None: mode 'unk' needs the id of the token that stands for an image")
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if input_ids.ndim != 2 or input_ids.shape != mask.shape:
        raise ValueError(f"input_ids {tuple(input_ids.shape)} and attention_mask {tuple(mask.shape)} must be (B, T)")
    rows = []
    for row, ids in enumerate(ids[kept.bool()] for ids, kept in zip(input_ids, mask, strict=True)):
        image = ids == image_token_id
        first = image & ~torch.cat([image.new_zeros(1), image[:-1]])
        if mode == "unk":
            ids = ids.masked_fill(image, unk_token_id)
        rows.append(ids[~image | first] if mode == "unk" else ids[~image])
        if len(rows[-1]) == 0:
            raise ValueError(f"input_ids[{row}] holds nothing but image tokens: use mode='unk', or add a question")
    longest = max(map(len, rows))
    ids = input_ids.new_full((len(rows), longest), pad_token_id)
    kept = torch.zeros_like(ids)
    for row, left in enumerate(rows):
        ids[row, longest - len(left) :], kept[row, longest - len(left) :] = left, 1
    return ids, kept


class DebiasLogitsProcessor(ContrastProcessor):
    """Visual debias decoding for ``generate(..., logits_processor=[...])``, on any model whose prompt holds images.

    Args:
        model: the model that generates.
        input_ids, attention_mask: its B prompts, as given to ``generate``.
        mode: what stands for "without the image"; "both" takes the mean of the two branches' logits.
        alpha: at least 0; how far to move away from the image-free answer.
        beta: in (0, 1]; how probable a token must be, relative to the best, to be said at all.

    Raises ValueError for an unknown mode, prompts without an image, and settings out of range.
    """

    def __init__(
        self,
        model: Any,
        input_ids: Int[Tensor, "b t"],
        attention_mask: Int[Tensor, "b t"] | None = None,
        mode: _ImageFree = "both",
        alpha: float = 1.0,
        beta: float = 0.1,
        unk_token_id: int = 0,
        pad_token_id: int = 0,
    ) -> None:
        if mode not in ("none", "unk", "both"):
            raise ValueError(f"mode={mode!r}: must be 'none', 'unk' or 'both'")
        check_alpha(alpha)
        check_beta(beta)
        check_has_images(model, input_ids)
        token = image_token(model)
        video = getattr(model.config, "video_token_id", None)
        ids = input_ids if video is None else input_ids.masked_fill(input_ids == video, token)
        branches = []
        for one in ("none", "unk") if mode == "both" else (mode,):
            free, mask = image_free_inputs(ids, token, attention_mask, one, unk_token_id, pad_token_id)
            branches.append(ContrastBranch(model, {"input_ids": free, "attention_mask": mask}))
        super().__init__(branches, partial(_debias_by_mean, alpha=alpha, beta=beta))


def _debias_by_mean(scores: Tensor, *free: Tensor, alpha: float, beta: float) -> Tensor:
    return debias_logits(scores, torch.stack(free).mean(0), alpha, beta)


# Decoding settings ----------------------------------------------------------------------------------------------------

_Setting = dict[str, float | int | None]


def decoding_grid() -> list[_Setting]:
    """48 settings: temperature 1 without filters, then one knob at a time. None switches a filter off."""
    shares = [round(0.05 * i, 2) for i in range(1, 20)]
    knobs: list[tuple[str, list[Any]]] = [
        ("temperature", shares),
        ("top_p", shares),
        ("top_k", [1, 2, 5, 10, 20, 50, 100, 200, 500]),
    ]
    default: _Setting = {"temperature": 1.0, "top_p": None, "top_k": None}
    return [default, *({**default, name: value} for name, values in knobs for value in values)]


def generate_options(setting: _Setting) -> dict[str, Any]:
    """A setting as arguments of ``generate``: "off" is said aloud, for a model may come with filters of its own."""
    top_p, top_k = setting["top_p"], setting["top_k"]
    return {
        "do_sample": True,
        "temperature": setting["temperature"],
        "top_p": 1.0 if top_p is None else top_p,
        "top_k": 0 if top_k is None else top_k,
    }


def sweep_decoding(evaluate: Callable[[_Setting], float], grid: Sequence[_Setting] | None = None) -> dict[str, Any]:
    """Score every setting: ``table`` of (setting, score), ``best`` and ``default`` of them, ``spread`` of the scores.

    The default is the first setting of the grid, the best the first with the largest score, the spread max − min.

    Raises ValueError for an empty grid and a score that is no number.
    """
    grid = decoding_grid() if grid is None else list(grid)
    if not grid:
        raise ValueError("grid is empty: give at least the default setting")
    table = [(setting, float(evaluate(setting))) for setting in grid]
    if bad := [pair for pair in table if not math.isfinite(pair[1])]:
        raise ValueError(f"evaluate({bad[0][0]}) is {bad[0][1]}: must be a finite score")
    scores = [score for _, score in table]
    best = table[scores.index(max(scores))]
    return {"table": table, "best": best, "default": table[0], "spread": max(scores) - min(scores)}
