"""Prefix conditioning: one learned token in front of a text says whether it is a caption or a label made a sentence.

Trained on the union of both, a text tower learns the data set as well as the content; the prefix P_c of source c gives
it a place for the former, and zero-shot classifiers are then built in caption mode, on labelled classes too.

    text   = pool(body([P_c ; E(tokens)]))                  c = 0 CAPTION, 1 LABEL; the image tower never sees c
    ℓ      = s · v̂ t̂ᵀ
    P(i)   = {i} ∪ {j : y_j = y_i ≥ 0}                      UniCL's positives; a caption has y = −1 and only itself
    loss   = ½ · mean_i mean_{j∈P(i)} −log softmax_j(ℓ_i·)  +  ½ · the same on ℓᵀ        (without labels: CLIP)

Batches come from one source each (`debiased_batches`): in a mixed one, the source alone tells half of the negatives.

Kuniaki Saito, Kihyuk Sohn, Xiang Zhang, et al.: Prefix Conditioning Unifies Language and Label Supervision. CVPR 2023,
arXiv 2206.01125. The objective is that of Jianwei Yang et al., UniCL, CVPR 2022, arXiv 2204.03610.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from foveal.pretrain.base import (
    ContrastiveOutput,
    LogitScale,
    finite_loss,
    full_precision,
    gather_features,
    gathered_pairs,
    pair_scores,
    positive_scale,
    unit_pairs,
)
from foveal.pretrain.prefix_conditioning_text import CAPTION as CAPTION
from foveal.pretrain.prefix_conditioning_text import LABEL as LABEL
from foveal.pretrain.prefix_conditioning_text import CLIPTextBody as CLIPTextBody
from foveal.pretrain.prefix_conditioning_text import PrefixTextEncoder as PrefixTextEncoder
from foveal.pretrain.prefix_conditioning_text import extend_mask as extend_mask
from foveal.pretrain.prefix_conditioning_text import prepend_prefix as prepend_prefix

OBJECTIVES = ("unicl", "clip")

# Loss -----------------------------------------------------------------------------------------------------------------


def unicl_targets(labels: Int[Tensor, " b"]) -> Bool[Tensor, "b b"]:
    """True where j is a positive of i: i itself, and what has the same label. −1 is a caption's, and nobody else's."""
    labels = _checked_labels(labels, labels.numel())
    return _positives(labels, labels, torch.arange(len(labels), device=labels.device))


def _positives(labels: Int[Tensor, " b"], all_labels: Int[Tensor, " g"], own: Int[Tensor, " b"]) -> Bool[Tensor, "b g"]:
    alike = (labels[:, None] == all_labels) & (labels[:, None] >= 0)
    return alike | (own[:, None] == torch.arange(len(all_labels), device=own.device))


def _checked_labels(labels: Tensor, rows: int) -> Int[Tensor, " b"]:
    if labels.shape != (rows,) or labels.is_floating_point() or labels.dtype == torch.bool:
        given = f"{tuple(labels.shape)} of {labels.dtype}"
        raise ValueError(f"labels {given} must be ({rows},) whole numbers, −1 for a caption")
    return labels


def unicl_loss(
    image_features: Float[Tensor, "b d"],
    text_features: Float[Tensor, "b d"],
    labels: Int[Tensor, " b"],
    scale: float | Tensor,
) -> ContrastiveOutput:
    """CLIP's loss with as many positives as there are samples of the same label; features are normalised here.

    Args:
        labels: classes from 0; −1 for a caption, whose only positive is its own partner.
        scale: positive multiplier of the cosines, a float or a 0-d tensor (which gets a gradient).

    Raises ValueError for shapes that do not fit, a scale that is not positive, and non-finite features.
    """
    rows = unit_pairs(image_features, text_features)
    labels = _checked_labels(labels, len(image_features))
    return _contrast(*rows, 0, scale, (labels, labels))


def _contrast(
    image: Float[Tensor, "b d"],
    text: Float[Tensor, "b d"],
    all_image: Float[Tensor, "g d"],
    all_text: Float[Tensor, "g d"],
    rank: int,
    scale: float | Tensor,
    labels: tuple[Int[Tensor, " b"], Int[Tensor, " g"]] | None = None,
) -> ContrastiveOutput:
    """The loss of unit rows. ``labels``: of the own rows and of all; without them each row has its own partner only."""
    scale = positive_scale(scale, like=image)
    per_image, per_text, own = pair_scores(image, text, all_image, all_text, scale, rank)
    targets = own
    if labels is not None:
        positives = _positives(*labels, own)
        targets = positives.to(image.dtype) / positives.sum(1, keepdim=True)
    with full_precision(image):
        image_to_text, text_to_image = F.cross_entropy(per_image, targets), F.cross_entropy(per_text, targets)
    inputs = {"image_features": image, "text_features": text}
    inputs |= {"all_image_features": all_image, "all_text_features": all_text}
    loss = finite_loss((image_to_text + text_to_image) / 2, **inputs)
    return ContrastiveOutput(loss, image_to_text, text_to_image, per_image, per_text)


class PrefixConditioningObjective(nn.Module):
    """The loss with its learned scale, over the features of all processes. Call ``logit_scale.clamp_()`` after a step.

    Args:
        objective: "unicl", or "clip", to which the samples of a class are negatives of each other.
    """

    def __init__(self, objective: str = "unicl", *, init_scale: float = 1 / 0.07, max_scale: float = 100.0) -> None:
        super().__init__()
        if objective not in OBJECTIVES:
            raise ValueError(f"objective={objective!r} is unknown: choose one of {', '.join(OBJECTIVES)}")
        self.objective = objective
        self.logit_scale = LogitScale(init_scale, max_scale)

    def forward(
        self,
        image_features: Float[Tensor, "b d"],
        text_features: Float[Tensor, "b d"],
        labels: Int[Tensor, " b"] | None = None,
    ) -> ContrastiveOutput:
        """See `unicl_loss`; without labels, CLIP's loss. Every process must call this alike, with as many rows."""
        rows = gathered_pairs(image_features, text_features)
        if labels is not None:
            labels = _checked_labels(labels, len(image_features))
        if labels is None or self.objective == "clip":
            return _contrast(*rows, self.logit_scale())
        return _contrast(*rows, self.logit_scale(), (labels, gather_features(labels)))


# Data -----------------------------------------------------------------------------------------------------------------


def debiased_batches(
    sizes: Sequence[int],
    batch_size: int,
    generator: torch.Generator,
    *,
    weights: Sequence[float] | None = None,
    num_batches: int | None = None,
    drop_last: bool = True,
) -> Iterator[tuple[int, Int[Tensor, " b"]]]:
    """(source, indices within it): every batch is of one source.

    Without ``weights`` one epoch: each source shuffled and cut, the batches of all shuffled together; ``drop_last``
    leaves out the smaller batch at the end of a source, and so a source that fills no batch. With ``weights`` and
    ``num_batches``: the source of each batch is drawn by the weights and goes on through its permutations, one after
    the other, in full batches.

    In a distributed run give all processes the same seed, and split the batch among them afterwards.

    Raises ValueError, at the first batch: weights without num_batches or the reverse, sizes and weights that do not
    fit, batch_size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    if not sizes or min(sizes) < 0:
        raise ValueError(f"sizes={tuple(sizes)}: give the number of samples of at least one source, none negative")
    if (weights is None) != (num_batches is None):
        raise ValueError(f"weights={weights} and num_batches={num_batches}: give both, or neither for one epoch")
    if weights is None or num_batches is None:
        yield from _epoch(sizes, batch_size, generator, drop_last)
        return
    chances = torch.tensor(weights, dtype=torch.float64)
    if len(weights) != len(sizes) or not bool(chances.isfinite().all()) or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(
            f"weights={tuple(weights)}: give one for each of {len(sizes)} sources, none negative, not all 0"
        )
    if empty := [c for c, (size, weight) in enumerate(zip(sizes, weights, strict=True)) if weight > 0 and not size]:
        raise ValueError(f"sizes[{empty[0]}]=0 but weights[{empty[0]}]={weights[empty[0]]}: give it weight 0")
    if num_batches < 0:
        raise ValueError(f"num_batches={num_batches}: must not be negative")
    rest = [torch.empty(0, dtype=torch.int64) for _ in sizes]
    for _ in range(num_batches):
        source = int(torch.multinomial(chances, 1, generator=generator))
        while len(rest[source]) < batch_size:
            rest[source] = torch.cat([rest[source], torch.randperm(sizes[source], generator=generator)])
        yield source, rest[source][:batch_size]
        rest[source] = rest[source][batch_size:]


def _epoch(
    sizes: Sequence[int], batch_size: int, generator: torch.Generator, drop_last: bool
) -> Iterator[tuple[int, Int[Tensor, " b"]]]:
    cut = [torch.randperm(size, generator=generator).split(batch_size) for size in sizes]
    batches = [(c, batch) for c, parts in enumerate(cut) for batch in parts]
    batches = [(c, batch) for c, batch in batches if len(batch) == batch_size or (len(batch) and not drop_last)]
    for place in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[place]


def labels_to_prompts(
    labels: Shaped[Tensor, " n"] | Sequence[int],
    class_names: Sequence[str],
    templates: Sequence[str | Callable[[str], str]],
    generator: torch.Generator,
) -> list[str]:
    """A sentence for each label, in a template drawn anew for each.

    Args:
        templates: strings with ``{}`` in the place of the name, or functions from name to sentence.
    """
    numbers: list[Any] = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    if bad := [label for label in numbers if not 0 <= label < len(class_names)]:
        raise ValueError(f"labels hold {bad[0]}: must be in [0, {len(class_names)}), the places of class_names")
    if isinstance(templates, str) or len(templates) == 0:
        raise ValueError(f"templates={templates!r}: must be a list with at least one entry")
    if bare := [template for template in templates if isinstance(template, str) and "{}" not in template]:
        raise ValueError(f"templates holds {bare[0]!r}, which has no '{{}}' for the class name")
    drawn = [templates[i] for i in torch.randint(len(templates), (len(numbers),), generator=generator).tolist()]
    names = [class_names[label] for label in numbers]
    return [
        template.replace("{}", name) if isinstance(template, str) else template(name)
        for template, name in zip(drawn, names, strict=True)
    ]
