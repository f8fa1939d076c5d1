"""AdaptCLIPZS: fine-tune CLIP on classes described by many sentences, then name classes it never saw by theirs.

Fine-grained pictures have class labels but no captions, and a language model knows many sentences about each class. It
is only known that a bag of pictures belongs to a bag of texts. Each visit of a picture draws ONE text of its class;
all texts of its class in the batch count as right. Describing the classes at test time alone helps little, training
with the descriptions does.

    L_ij = s · Î_iᵀ T̂_j / τ            s = CLIP's logit scale, τ learnt;  P_i = {j : k_j = k_i} for class ids k
    image_to_text = mean_i mean_{j ∈ P_i} −log softmax_j(L_i·)_j            text_to_image the same of Lᵀ
    loss = image_to_text + text_to_image
    test: p(c | I) = mean_{m ∈ texts of c} softmax_m(s · Îᵀ T̂_m)            over the texts of ALL classes, without τ

Oindrila Saha, Grant Van Horn, Subhransu Maji: Improved Zero-Shot Classification by Adapting VLMs with Text
Descriptions. CVPR 2024, arXiv 2401.02460.

Departures: batches are shuffled (the release's are not, ``shuffle=False``); captions are put together in one way for
all data sets, the sentence without its article after the template, where the release cuts one or two words or a fixed
number of characters; τ is kept above 0.01.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from foveal.adapt.adaptclipzs_benchmark import BENCHMARK as BENCHMARK
from foveal.adapt.adaptclipzs_benchmark import BenchmarkEntry as BenchmarkEntry
from foveal.adapt.adaptclipzs_captions import caption_lines as caption_lines
from foveal.adapt.adaptclipzs_captions import class_captions as class_captions
from foveal.adapt.adaptclipzs_captions import description_messages as description_messages
from foveal.adapt.adaptclipzs_captions import generate_captions as generate_captions
from foveal.adapt.adaptclipzs_captions import shorten_caption as shorten_caption
from foveal.adapt.adaptclipzs_loss import BagLoss as BagLoss
from foveal.adapt.adaptclipzs_loss import bag_contrastive_loss as bag_contrastive_loss
from foveal.adapt.adaptclipzs_loss import description_probabilities as description_probabilities
from foveal.adapt.adaptclipzs_tuner import BagFineTuner as BagFineTuner


class Halves(NamedTuple):
    """The classes of a data set: those that are trained on, and those that only the test knows."""

    base: list[str]
    novel: list[str]


def base_novel_split(class_names: Sequence[str]) -> Halves:
    """The first ⌈K/2⌉ classes in the order given (which is that of the data set's files), and the rest.

    Raises ValueError for duplicates and fewer than two names.
    """
    if isinstance(class_names, str) or len(class_names) < 2:
        raise ValueError(f"class_names={class_names!r}: give a list of at least 2 names")
    names = list(class_names)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"class_names holds {twice[0]!r} more than once: each class has one name of its own")
    half = math.ceil(len(names) / 2)
    return Halves(names[:half], names[half:])


def few_shot_indices(labels: Int64[Tensor, " n"] | Sequence[int], shots: int = 16) -> Int64[Tensor, " m"]:
    """Positions of the first ``shots`` samples of each class, in ascending order; all of a class that has fewer.

    Raises ValueError for no label at all, and for what is no list of whole numbers.
    """
    values = torch.as_tensor(labels)
    if not values.numel():
        raise ValueError(f"labels {tuple(values.shape)} hold none: give at least one")
    if values.ndim != 1 or values.is_floating_point() or values.is_complex():
        raise ValueError(f"labels {tuple(values.shape)} of {values.dtype} must be one whole number for each sample")
    if shots < 1:
        raise ValueError(f"shots={shots}: must be at least 1")
    seen: dict[int, int] = {}
    kept = []
    for position, label in enumerate(values.tolist()):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= shots:
            kept.append(position)
    return torch.tensor(kept, dtype=torch.int64)


def harmonic_mean(base: float, novel: float) -> float:
    """2·base·novel / (base + novel) of two accuracies in one unit; 0 when both are 0."""
    for name, value in (("base", base), ("novel", novel)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}: must be an accuracy of at least 0")
    return 2 * base * novel / (base + novel) if base + novel else 0.0
