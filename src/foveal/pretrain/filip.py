"""FILIP: every patch looks for its best word, every word for its best patch, and the mean of the maxima is the score.

CLIP compares one vector per image with one per text and loses which patch belongs to which word. Here both sides stay
tokens; they are still encoded apart, so an index of either can be computed in advance, and the arg-max is a map of
words over the picture for nothing.

    S_ikjr = v̂_ik · t̂_jr                              token k of image i, token r of text j, normalised one by one
    a_ij = mean_k max_r S_ikjr,   b_ij = mean_r max_k S_ikjr          over real tokens; two different matrices
    loss = ½ · mean_i CE(s · a_i·, i) + ½ · mean_j CE(s · b_·j, j)

S would have B² · N · L entries: `foveal.pretrain.filip_interaction` never holds more than a tile of it. In a
distributed run only text tokens and scores travel, and each process scores its own images with all texts.

Lewei Yao, Runhui Huang, Lu Hou, et al.: FILIP: Fine-grained Interactive Language-Image Pre-Training. ICLR 2022,
arXiv 2111.07783.

Departures: padded words are left out of maxima and means, as the paper has it; the authors' company has published
MindSpore code that sets their scores to zero, where they win against negative ones, and that smooths the targets by
0.1. The paper does not say whether both sides of a score are thinned out by token selection; here they are. In a
distributed run every process selects among its own samples, so that the loss then depends on their number.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.nn.cosine import unit_rows
from foveal.pretrain.base import (
    ContrastiveOutput,
    LogitScale,
    alike,
    finite_loss,
    full_precision,
    gather_features,
    positive_scale,
)
from foveal.pretrain.filip_interaction import (
    check_finite,
    check_real,
    check_tokens,
    check_width,
    late_interaction,
    real_tokens,
)
from foveal.pretrain.filip_selection import check_ratio
from foveal.pretrain.filip_selection import select_tokens as select_tokens

Direction = Literal["image_to_text", "text_to_image"]

# Similarity and loss --------------------------------------------------------------------------------------------------


def token_similarity(
    image_tokens: Float[Tensor, "bi n d"],
    text_tokens: Float[Tensor, "bt l d"],
    *,
    image_mask: Bool[Tensor, "bi n"] | None = None,
    text_mask: Bool[Tensor, "bt l"] | None = None,
    chunk_size: int | None = None,
) -> tuple[Float[Tensor, "bi bt"], Float[Tensor, "bi bt"]]:
    """How well images and texts fit, from both sides: (image_to_text, text_to_image), both images by texts, in [-1, 1].

    Tokens are normalised here and scored in float32 or better. The gradient can be taken once.

    Args:
        image_mask, text_mask: True for real tokens; None when all are. What stands elsewhere, NaN included, is ignored.
        chunk_size: texts that are scored at once, Bi · N · chunk_size · L scores; None chooses it. No result depends
            on it, but for this: where tokens repeat, another of the copies may get their gradient.

    Raises ValueError for shapes that do not fit, masks that are not bool, a sample without a real token, and real
    tokens that are not finite.
    """
    check_tokens("image_tokens", image_tokens, "image_mask", image_mask)
    check_tokens("text_tokens", text_tokens, "text_mask", text_mask)
    check_width(image_tokens, text_tokens)
    check_real("image_mask", image_mask)
    check_real("text_mask", text_mask)
    check_finite("image_tokens", real_tokens(image_tokens, image_mask))
    check_finite("text_tokens", real_tokens(text_tokens, text_mask))
    return late_interaction(image_tokens, text_tokens, image_mask, text_mask, chunk_size)


def filip_loss(
    image_tokens: Float[Tensor, "b n d"],
    text_tokens: Float[Tensor, "b l d"],
    scale: float | Tensor,
    *,
    image_mask: Bool[Tensor, "b n"] | None = None,
    text_mask: Bool[Tensor, "b l"] | None = None,
    label_smoothing: float = 0.0,
    chunk_size: int | None = None,
) -> ContrastiveOutput:
    """The symmetric loss of B pairs, see `token_similarity`.

    ``logits_per_image`` is scale · image_to_text, a row for each image; ``logits_per_text`` is scale · text_to_image
    transposed, a row for each text.

    Args:
        scale: positive multiplier of the scores, a float or a 0-d tensor (which gets a gradient).
        label_smoothing: share of each target that is spread over the whole batch, in [0, 1).

    Raises ValueError also for sides of different lengths, and a scale that is not positive.
    """
    if len(image_tokens) != len(text_tokens):
        raise ValueError(f"{len(image_tokens)} image_tokens and {len(text_tokens)} text_tokens must pair up")
    _check_smoothing(label_smoothing)
    masks = {"image_mask": image_mask, "text_mask": text_mask}
    image_to_text, text_to_image = token_similarity(image_tokens, text_tokens, **masks, chunk_size=chunk_size)
    own = torch.arange(len(image_to_text), device=image_to_text.device)
    return _contrast(image_to_text, text_to_image, scale, own, label_smoothing)


def _contrast(
    image_to_text: Float[Tensor, "b g"],
    text_to_image: Float[Tensor, "g b"],
    scale: float | Tensor,
    own: Int[Tensor, " b"],
    label_smoothing: float,
) -> ContrastiveOutput:
    """The loss of the scores of own images with all texts and of all images with own texts."""
    scale = positive_scale(scale, like=image_to_text)
    with full_precision(image_to_text):
        per_image, per_text = scale * image_to_text, scale * text_to_image.T
        first = F.cross_entropy(per_image, own, label_smoothing=label_smoothing)
        second = F.cross_entropy(per_text, own, label_smoothing=label_smoothing)
    return ContrastiveOutput(finite_loss((first + second) / 2), first, second, per_image, per_text)


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: must be in [0, 1)")


# After training -------------------------------------------------------------------------------------------------------


def prompt_ensemble_similarity(
    image_tokens: Float[Tensor, "b n d"],
    prompt_tokens: Float[Tensor, "k c l d"],
    prompt_mask: Bool[Tensor, "k c l"],
    *,
    image_mask: Bool[Tensor, "b n"] | None = None,
    direction: Direction = "image_to_text",
) -> Float[Tensor, "b k"]:
    """Zero-shot scores of K classes: the mean over the C prompts of each of its similarity to the image.

    Token sets of different lengths cannot be averaged as CLIP averages its prompts, their scores can.

    Raises ValueError for an unknown direction, and whatever `token_similarity` refuses.
    """
    if direction not in ("image_to_text", "text_to_image"):
        raise ValueError(f"direction={direction!r} is unknown: choose image_to_text or text_to_image")
    if prompt_tokens.ndim != 4 or prompt_mask.shape != prompt_tokens.shape[:3]:
        shapes = f"prompt_tokens {tuple(prompt_tokens.shape)} and prompt_mask {tuple(prompt_mask.shape)}"
        raise ValueError(f"{shapes} must be (K, C, L, D) and (K, C, L)")
    texts, real = prompt_tokens.flatten(0, 1), prompt_mask.flatten(0, 1)
    check_tokens("prompt_tokens", texts, "prompt_mask", real)
    check_finite("prompt_tokens", real_tokens(texts, real))
    scores = token_similarity(image_tokens, texts, image_mask=image_mask, text_mask=real)
    chosen = scores[0] if direction == "image_to_text" else scores[1]
    return chosen.unflatten(1, tuple(prompt_tokens.shape[:2])).mean(2)


@torch.no_grad()
def word_patch_alignment(
    image_tokens: Float[Tensor, "n d"], text_tokens: Float[Tensor, "l d"], text_mask: Bool[Tensor, " l"] | None = None
) -> Int[Tensor, " n"]:
    """For every token of one image the index of the real text token that it fits best.

    Raises ValueError for whatever `token_similarity` refuses.
    """
    texts, real = text_tokens[None], None if text_mask is None else text_mask[None]
    check_tokens("image_tokens", image_tokens[None], "image_mask", None)
    check_tokens("text_tokens", texts, "text_mask", real)
    check_width(image_tokens, text_tokens)
    check_real("text_mask", real)
    image, words = alike(image_tokens, real_tokens(texts, real)[0])
    check_finite("image_tokens", image)
    check_finite("text_tokens", words)
    with full_precision(image):
        scores = unit_rows(image) @ unit_rows(words).T
    return (scores if text_mask is None else scores.masked_fill(~text_mask, -torch.inf)).argmax(1)


def label_patch_map(
    alignment: Int[Tensor, " n"],
    label_positions: Sequence[int] | Int[Tensor, " p"],
    grid: tuple[int, int],
    *,
    has_cls: bool = True,
) -> Bool[Tensor, "h w"]:
    """Which patches fit a label best: those aligned with one of its word pieces.

    Args:
        alignment: from `word_patch_alignment`.
        label_positions: indices of the label's word pieces in the text; the start token has index 0.
        grid: rows and columns of patches, which follow each other row by row.
        has_cls: the first image token is a class token and no patch.

    Raises ValueError when the grid has another number of patches.
    """
    patches = alignment[1:] if has_cls else alignment
    rows, columns = (int(side) for side in grid)
    if alignment.ndim != 1 or rows < 1 or columns < 1 or rows * columns != len(patches):
        found = f"alignment {tuple(alignment.shape)} with has_cls={has_cls}"
        raise ValueError(f"grid=({rows}, {columns}) has {rows * columns} patches, which does not fit {found}")
    positions = torch.as_tensor(label_positions, dtype=torch.long, device=alignment.device)
    return torch.isin(patches, positions).view(rows, columns)


# Objective ------------------------------------------------------------------------------------------------------------


class FILIPObjective(nn.Module):
    """Token features of any two towers -> loss: projections to a joint width, token selection, learned scale.

    With `transformers.CLIPModel`: ``vision_model(pixels).last_hidden_state``, ``text_model(ids).last_hidden_state`` and
    ``attention_mask.bool()``. In a distributed run the texts of all processes of ``group`` are scored. After every
    optimiser step call ``objective.logit_scale.clamp_()``.

    Args:
        image_dim, text_dim: widths of the towers' tokens.
        keep_ratio: share of the tokens that `select_tokens` leaves to both sides; None leaves all.
    """

    def __init__(
        self,
        image_dim: int,
        text_dim: int,
        embed_dim: int = 256,
        *,
        init_scale: float = 1 / 0.07,
        max_scale: float = 100.0,
        keep_ratio: float | None = None,
        label_smoothing: float = 0.0,
        group: Any = None,
    ) -> None:
        super().__init__()
        if keep_ratio is not None:
            check_ratio(keep_ratio)
        _check_smoothing(label_smoothing)
        self.image_projection = nn.Linear(image_dim, embed_dim, bias=False)
        self.text_projection = nn.Linear(text_dim, embed_dim, bias=False)
        self.logit_scale = LogitScale(init_scale, max_scale)
        self.keep_ratio, self.label_smoothing, self.group = keep_ratio, label_smoothing, group

    def forward(
        self,
        image_tokens: Float[Tensor, "b n dv"],
        text_tokens: Float[Tensor, "b l dt"],
        text_mask: Bool[Tensor, "b l"] | None = None,
        image_mask: Bool[Tensor, "b n"] | None = None,
    ) -> ContrastiveOutput:
        """See `filip_loss`. Every process must call this with the same number of samples; texts may differ in length.

        To leave out the class token, give an ``image_mask`` that is False there, or drop it beforehand.
        """
        if len(image_tokens) != len(text_tokens):
            raise ValueError(f"{len(image_tokens)} image_tokens and {len(text_tokens)} text_tokens must pair up")
        image = self._projected("image", image_tokens, image_mask, self.image_projection)
        text = self._projected("text", text_tokens, text_mask, self.text_projection)
        _refuse_together(image, text, image_mask, text_mask, self.group)
        if self.keep_ratio is not None:
            thin = {"keep_ratio": self.keep_ratio}
            kept = select_tokens(image, text, **thin, mask=image_mask, reference_mask=text_mask)
            text, text_mask, _ = select_tokens(text, image, **thin, mask=text_mask, reference_mask=image_mask)
            image, image_mask, _ = kept
        all_text, all_mask, rank = _all_texts(text, text_mask, self.group)
        image_to_text, text_to_image = token_similarity(image, all_text, image_mask=image_mask, text_mask=all_mask)
        own = rank * len(image) + torch.arange(len(image), device=image.device)
        all_scores = gather_features(text_to_image, self.group)[:, own]
        return _contrast(image_to_text, all_scores, self.logit_scale(), own, self.label_smoothing)

    def _projected(self, name: str, tokens: Tensor, mask: Tensor | None, projection: nn.Linear) -> Tensor:
        """Tokens of the joint width, zero where they are padding."""
        check_tokens(f"{name}_tokens", tokens, f"{name}_mask", mask)
        if tokens.shape[2] != projection.in_features:
            raise ValueError(f"{name}_tokens {tuple(tokens.shape)} must be {name}_dim={projection.in_features} wide")
        with full_precision(tokens):
            return projection(real_tokens(tokens, mask).to(projection.weight.dtype))


def _refuse_together(
    image: Float[Tensor, "b n d"],
    text: Float[Tensor, "b l d"],
    image_mask: Bool[Tensor, "b n"] | None,
    text_mask: Bool[Tensor, "b l"] | None,
    group: Any,
) -> None:
    """ValueError for a sample of all padding, and for tokens that are not finite.

    On every process alike: none may be left waiting for the others.
    """
    ones = image.new_ones(len(image))
    real = [ones if mask is None else mask.any(1).to(ones) for mask in (image_mask, text_mask)]
    largest = [tokens.detach().abs().amax((1, 2)).to(ones) for tokens in (image, text)]
    all_image, all_text, *extremes = gather_features(torch.stack([*real, *largest], 1), group).T
    check_real("image_mask", all_image.bool()[:, None])
    check_real("text_mask", all_text.bool()[:, None])
    for name, found in zip(("image_tokens", "text_tokens"), extremes, strict=True):
        check_finite(name, found)


def _all_texts(
    tokens: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None, group: Any
) -> tuple[Float[Tensor, "g l2 d"], Bool[Tensor, "g l2"] | None, int]:
    """Tokens and mask of the texts of all processes, padded to the longest, and the rank of this one."""
    if not (dist.is_available() and dist.is_initialized()):
        return tokens, mask, 0
    longest = torch.tensor(tokens.shape[1], device=tokens.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX, group=group)
    more = int(longest) - tokens.shape[1]
    mask = torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else mask
    everything = gather_features(F.pad(tokens, (0, 0, 0, more)), group)
    real = gather_features(F.pad(mask, (0, more)).to(torch.uint8), group).bool()
    return everything, real, dist.get_rank(group)
