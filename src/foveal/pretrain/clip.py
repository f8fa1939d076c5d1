"""CLIP: inside a batch of B pairs, each image picks its own text among B, and each text its own image.

After training, any set of labels is a classifier: embed its names (`build_zero_shot_classifier`). The image tower alone
is a strong frozen feature extractor (`LinearProbe`).

    v̂ = v/‖v‖,  t̂ = t/‖t‖                      features of the two towers, (B, D)
    S = s · v̂ t̂ᵀ                                s = exp(p), p learned, p₀ = ln(1/0.07)
    loss = ½ · mean_i CE(S_i·, i) + ½ · mean_i CE(S_·i, i)

Large batches: `CLIPObjective` scores the B rows of each device against those of all devices; `chunked_clip_loss` never
holds S; `cached_contrastive_step` never holds the towers' activations for more than a micro-batch (Gao et al., Scaling
Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021, arXiv 2101.06983).

Alec Radford, Jong Wook Kim, Chris Hallacy, et al.: Learning Transferable Visual Models From Natural Language
Supervision. ICML 2021, arXiv 2103.00020.

Departures: the scale is also kept above 1, as open_clip does (the paper has only the upper bound of 100).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from foveal.nn.linear_probe import LinearProbe as LinearProbe
from foveal.nn.linear_probe import probe_lambda_search as probe_lambda_search
from foveal.nn.zero_shot import build_zero_shot_classifier as build_zero_shot_classifier
from foveal.nn.zero_shot import ensemble_text_features as ensemble_text_features
from foveal.nn.zero_shot import zero_shot_logits as zero_shot_logits
from foveal.pretrain.base import ContrastiveOutput as ContrastiveOutput
from foveal.pretrain.base import LogitScale as LogitScale
from foveal.pretrain.base import (
    finite_loss,
    first_order_only,
    full_precision,
    gathered_pairs,
    pair_scores,
    positive_scale,
    unit_pairs,
)
from foveal.pretrain.base import gather_features as gather_features
from foveal.pretrain.clip_model import CLIP_MEAN as CLIP_MEAN
from foveal.pretrain.clip_model import CLIP_STD as CLIP_STD
from foveal.pretrain.clip_model import AttentionPool2d as AttentionPool2d
from foveal.pretrain.clip_model import CLIPModel as CLIPModel

# Loss -----------------------------------------------------------------------------------------------------------------


def clip_loss(
    image_features: Float[Tensor, "b d"],
    text_features: Float[Tensor, "b d"],
    scale: float | Tensor,
    *,
    all_image_features: Float[Tensor, "g d"] | None = None,
    all_text_features: Float[Tensor, "g d"] | None = None,
    rank: int = 0,
) -> ContrastiveOutput:
    """The symmetric loss; features are normalised here and scored in float32 or better.

    Args:
        scale: positive multiplier of the cosines, a float or a 0-d tensor (which gets a gradient).
        all_image_features, all_text_features: the features of all devices (see `gather_features`); the loss is then
            the mean over this device's B rows against all G columns.
        rank: place of this device's rows: they are rows rank·B … rank·B + B − 1 of the gathered ones.

    Raises ValueError for shapes that do not fit, a scale that is not positive, and non-finite features.
    """
    return _contrast(*unit_pairs(image_features, text_features, all_image_features, all_text_features), scale, rank)


def _contrast(
    image: Float[Tensor, "b d"],
    text: Float[Tensor, "b d"],
    all_image: Float[Tensor, "g d"],
    all_text: Float[Tensor, "g d"],
    scale: float | Tensor,
    rank: int,
) -> ContrastiveOutput:
    """The loss of unit rows, see `pair_scores`."""
    scale = positive_scale(scale, like=image)
    per_image, per_text, own = pair_scores(image, text, all_image, all_text, scale, rank)
    with full_precision(image):
        image_to_text, text_to_image = F.cross_entropy(per_image, own), F.cross_entropy(per_text, own)
    inputs = {"image_features": image, "text_features": text}
    inputs |= {"all_image_features": all_image, "all_text_features": all_text}
    loss = finite_loss((image_to_text + text_to_image) / 2, **inputs)
    return ContrastiveOutput(loss, image_to_text, text_to_image, per_image, per_text)


class CLIPObjective(nn.Module):
    """The loss with its learned scale. In a distributed run it gathers the features of all processes of ``group``.

    Works on the features of any two towers. After every optimiser step call ``objective.logit_scale.clamp_()``.
    """

    def __init__(self, init_scale: float = 1 / 0.07, max_scale: float = 100.0, group: Any = None) -> None:
        super().__init__()
        self.logit_scale = LogitScale(init_scale, max_scale)
        self.group = group

    def forward(self, image_features: Float[Tensor, "b d"], text_features: Float[Tensor, "b d"]) -> ContrastiveOutput:
        """See `clip_loss`. Every process must call this with the same number of rows."""
        image, text, all_image, all_text, rank = gathered_pairs(image_features, text_features, self.group)
        return _contrast(image, text, all_image, all_text, self.logit_scale(), rank)


# Large batches --------------------------------------------------------------------------------------------------------


def chunked_clip_loss(
    image_features: Float[Tensor, "b d"],
    text_features: Float[Tensor, "b d"],
    scale: float | Tensor,
    chunk_size: int,
) -> Float[Tensor, ""]:
    """``clip_loss(...).loss`` and its gradients, with ``chunk_size`` × B scores in memory instead of B × B.

    One product serves both directions, and a second one in the backward pass recomputes it: it is also faster than the
    dense loss where memory traffic dominates. With several devices, give gathered features: every device then scores
    the whole batch, which is more work than `CLIPObjective` but the same gradient after DDP's mean.
    """
    image, text, *_ = unit_pairs(image_features, text_features)
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: must be at least 1")
    loss = _ChunkedContrast.apply(image, text, positive_scale(scale, like=image), chunk_size)
    return finite_loss(loss, image_features=image, text_features=text)


class _ChunkedContrast(torch.autograd.Function):
    """Blocks of rows of S. Between the passes live only the features and log-sum-exps of rows and columns.

    With P and Q the row- and column-wise softmax of S, ∂loss/∂S = (P + Q − 2·1) / 2B.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, chunk_size: int) -> Tensor:
        over_texts, over_images = image.new_empty(len(image)), image.new_full((len(image),), float("-inf"))
        scores = image.new_empty(min(chunk_size, len(image)), len(text))
        with full_precision(image):
            # one buffer for all blocks: small results between large blocks that come and go would leave holes in the
            # heap that no later block fits into, which cost as much as B x B at B = 16,384
            for start in range(0, len(image), chunk_size):
                rows = image[start : start + chunk_size]
                block = torch.mm(scale * rows, text.T, out=scores[: len(rows)])
                torch.logsumexp(block, 1, out=over_texts[start : start + chunk_size])
                torch.logaddexp(over_images, block.logsumexp(0), out=over_images)
        matched = scale * (image * text).sum(1)
        ctx.save_for_backward(image, text, scale, over_texts, over_images)
        ctx.chunk_size = chunk_size
        return (over_texts + over_images - 2 * matched).sum() / (2 * len(image))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        first_order_only("chunked_clip_loss")
        image, text, scale, over_texts, over_images = ctx.saved_tensors
        grad_image, grad_text = torch.empty_like(image), torch.zeros_like(text)
        with full_precision(image):
            for start in range(0, len(image), ctx.chunk_size):
                rows = slice(start, start + ctx.chunk_size)
                scores = scale * image[rows] @ text.T
                grad = (scores - over_texts[rows, None]).exp_()
                grad += scores.sub_(over_images).exp_()
                grad.diagonal(start).sub_(2)
                torch.mm(grad, text, out=grad_image[rows])
                grad_text.addmm_(grad.T, image[rows])
        weight = grads[0] / (2 * len(image))
        grad_scale = weight * (image * grad_image).sum()  # before the features' gradients are multiplied by the scale
        return grad_image.mul_(weight * scale), grad_text.mul_(weight * scale), grad_scale, None


def cached_contrastive_step(
    encode_image: Callable[[Any], Float[Tensor, "n d"]],
    encode_text: Callable[[Any], Float[Tensor, "n d"]],
    images: Any,
    texts: Any,
    loss_fn: Callable[[Tensor, Tensor], Float[Tensor, ""]],
    micro_batch: int,
) -> Float[Tensor, ""]:
    """Forward and backward on a batch whose activations do not fit: adds to every ``.grad``, returns the detached loss.

    First all features are computed without a graph, then the loss and its gradient by the features, then each
    micro-batch is encoded again, with the same dropout masks, and receives its part of that gradient. Costs one more
    forward pass than a plain step. Batch norm sees the micro-batches, and each of them twice.

    Args:
        encode_image, encode_text: towers; each is called exactly twice on every micro-batch, or once when ``loss_fn``
            gives its features no gradient.
        images, texts: B inputs each; tensors or lists, anything that has a length and can be sliced.
        loss_fn: (B, D) features of both -> scalar, e.g. ``lambda v, t: objective(v, t).loss``.
        micro_batch: inputs that a tower sees at once.

    Raises ValueError for a non-finite loss, before any gradient has been added.
    """
    if micro_batch < 1:
        raise ValueError(f"micro_batch={micro_batch}: must be at least 1")
    if len(images) != len(texts) or len(images) == 0:
        raise ValueError(f"images ({len(images)}) and texts ({len(texts)}) must pair up, at least one pair")
    slices = [slice(start, start + micro_batch) for start in range(0, len(images), micro_batch)]
    passes = [
        (encode, inputs[part]) for encode, inputs in ((encode_image, images), (encode_text, texts)) for part in slices
    ]
    states, features = [], []
    with torch.no_grad():
        for encode, inputs in passes:
            states.append(_RandomState(inputs))
            features.append(encode(inputs))
    whole = [torch.cat(side).requires_grad_() for side in (features[: len(slices)], features[len(slices) :])]
    loss = loss_fn(*whole)
    if not bool(loss.isfinite()):
        raise ValueError(f"loss_fn returned {loss.item()}: the features or the loss are not finite")
    loss.backward()
    gradients: list[Tensor | None] = []
    for side in whole:
        gradients += [None] * len(slices) if side.grad is None else side.grad.split(micro_batch)
    for (encode, inputs), state, gradient in zip(passes, states, gradients, strict=True):
        if gradient is None:
            continue
        with state.replayed():
            again = encode(inputs)
        if again.requires_grad:  # not so for a locked tower
            again.backward(gradient)
    return loss.detach()


class _RandomState:
    """Where torch's generators stand, on the CPU and on the device of ``inputs``."""

    def __init__(self, inputs: Any) -> None:
        self.cpu = torch.get_rng_state()
        self.devices, self.states = get_device_states(inputs)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, random numbers repeat from there; outside, nothing has changed."""
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.cpu)
            set_device_states(self.devices, self.states)
            yield
