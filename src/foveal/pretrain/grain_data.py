"""The data of GRAIN: what a language model that sees says about a picture, and where a detector finds it.

    subject       = captioner(picture, SUBJECT)                       "What is the main subject …?"
    descriptions  = captioner(picture, FEATURES of the subject)       at most 10 short phrases, bullets stripped
    new caption   = captioner(picture, CAPTION)                       taken instead of the original one half of the time
    regions       = detector(picture, descriptions)                   score > 0.3, the 5 best

`annotate` does that with any `Captioner` and `Detector`; `grain_batch` makes a batch of what they said. Adapters for
models of Hugging Face and a stated noise model for sources that know the truth are in `foveal.pretrain.grain_sources`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from foveal.data.record import Region, Sample
from foveal.nn.boxes import centres
from foveal.pretrain.base_captioner import Captioner

SUBJECT = "What is the main subject of this picture? Answer with its name only."
FEATURES = "Which visual features of the {} in this picture tell it from others? Write one short phrase on each line."
CAPTION = "Describe this picture in one sentence."

BULLETS = re.compile(r"\A[\s.,!?*-]+")
NEW_CAPTION = "generated_caption"
"""Key of ``Sample.meta`` under which `annotate` leaves the new caption."""

Tokenize = Callable[[list[str]], tuple[Int[Tensor, "n l"], Int[Tensor, "n l"]]]
"""n texts -> ids and mask, padded to one length that is the same for every call."""


@dataclass(frozen=True)
class Detections:
    """n boxes in one picture: x0, y0, x1, y1 in pixels, their scores, and which of the texts asked for each shows."""

    boxes: Float[Tensor, "n 4"]
    scores: Float[Tensor, " n"]
    labels: Int[Tensor, " n"]


class Detector(Protocol):
    """An open-vocabulary detector."""

    def detect(self, image: UInt8[np.ndarray, "h w 3"], texts: Sequence[str]) -> Detections:
        """Where it sees what the texts name."""


def annotate(
    sample: Sample,
    captioner: Captioner,
    detector: Detector,
    *,
    k: int = 5,
    threshold: float = 0.3,
    max_descriptions: int = 10,
) -> Sample:
    """The sample with ``regions`` from the two models (box in pixels, description as caption) in place of its own.

    ``meta["generated_caption"]`` is the new caption; the original ones stay. A model that says nothing leaves a sample
    without regions, which still trains captions.

    Raises ValueError for detections that name a text that was not asked for, and see `select_regions`.
    """
    image = sample.image
    subject = " ".join(captioner.answer(image, SUBJECT).split()) or "main subject"
    said = clean_descriptions(captioner.answer(image, FEATURES.format(subject)).splitlines(), max_descriptions)
    caption = " ".join(captioner.answer(image, CAPTION).split())
    regions: list[Region] = []
    if said:
        found = detector.detect(image, said)
        if len(found.labels) and not 0 <= int(found.labels.min()) <= int(found.labels.max()) < len(said):
            raise ValueError(f"labels of the detector name a text beyond the {len(said)} that it was asked for")
        height, width = image.shape[:2]
        _, mask, index = select_regions(found.boxes, found.scores, (width, height), k, threshold)
        for place in index[mask].tolist():
            x0, y0, x1, y1 = found.boxes[place].tolist()
            regions.append(Region((x0, y0, x1, y1), caption=said[int(found.labels[place])]))
    return sample.with_(regions=tuple(regions), meta={**sample.meta, NEW_CAPTION: caption or None})


def select_regions(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    image_size: tuple[int, int],
    k: int = 5,
    threshold: float = 0.3,
) -> tuple[Float[Tensor, "k 4"], Bool[Tensor, " k"], Int[Tensor, " k"]]:
    """The k best boxes above the threshold, as training targets.

    Args:
        boxes: x0, y0, x1, y1 in pixels; what reaches out of the picture is cut off.
        scores: higher is better; equal ones keep their order.
        image_size: width and height in pixels.
        threshold: a score has to be greater.

    Returns:
        Boxes as cx, cy, w, h in shares of the picture, where there is one, and its index among ``boxes``; the three
        are padded with zeros.

    Raises ValueError for shapes that do not fit, non-finite numbers, an empty picture and k below 1.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise ValueError(f"boxes {tuple(boxes.shape)}, scores {tuple(scores.shape)}: must be (N, 4) and (N,)")
    if not (bool(boxes.isfinite().all()) and bool(scores.isfinite().all())):
        raise ValueError("boxes or scores hold NaN or infinity: drop such detections")
    if not boxes.is_floating_point():  # shares of the picture are no whole numbers
        boxes = boxes.float()
    width, height = image_size
    if k < 1 or width < 1 or height < 1:
        raise ValueError(f"k={k}, image_size={image_size}: all must be at least 1")
    order = scores.sort(descending=True, stable=True).indices
    best = order[scores[order] > threshold][:k]
    size = boxes.new_tensor([width, height, width, height])
    targets = boxes.new_zeros(k, 4)
    targets[: len(best)] = centres((boxes[best] / size).clamp(0, 1)).to(boxes)
    index = torch.zeros(k, dtype=torch.int64, device=boxes.device)
    index[: len(best)] = best
    return targets, torch.arange(k, device=boxes.device) < len(best), index


def clean_descriptions(lines: Sequence[str], max_items: int = 10) -> list[str]:
    """The first phrases of what a language model wrote, without bullets and blanks in front and without empty lines."""
    if isinstance(lines, str):
        raise ValueError(f"lines={lines[:40]!r}: must be a list of lines; call splitlines()")
    if max_items < 0:
        raise ValueError(f"max_items={max_items}: must not be negative")
    stripped = (BULLETS.sub("", line).rstrip() for line in lines)
    return [line for line in stripped if line][:max_items]


def pick_caption(original: str, generated: str | None, generator: torch.Generator) -> str:
    """One of the two with probability ½ each; the original where no other was written."""
    if generated is None or not generated.strip():
        return original
    return original if float(torch.rand((), generator=generator)) < 0.5 else generated


def descriptor_suffix(d: str) -> str:
    """A descriptor as what follows a class name: "a bird" + " which has a yellow beak". ValueError when it is empty."""
    words = d.split()
    if not words:
        raise ValueError(f"d={d!r}: must be a descriptor such as 'yellow beak'")
    first = words[0].lower()
    text = " ".join(words)
    if first in ("a", "an", "used"):
        return f" which is {text}"
    if first in ("has", "often", "typically", "may", "can"):
        return f" which {text}"
    return f" which has {text}"


def grain_batch(
    samples: Sequence[Sample], tokenize: Tokenize, generator: torch.Generator, k: int = 5
) -> dict[str, Tensor]:
    """Everything but the pixels that `GrainObjective` takes, from annotated samples.

    Args:
        samples: each with a caption; of its regions the first k that have a caption are taken.
        generator: chooses between original and new captions.

    Raises ValueError for no samples or one without a caption.
    """
    if not samples:
        raise ValueError("samples is empty: give at least one")
    captions = [pick_caption(sample.caption, sample.meta.get(NEW_CAPTION), generator) for sample in samples]
    caption_ids, caption_mask = tokenize(captions)
    boxes, valid = torch.zeros(len(samples), k, 4), torch.zeros(len(samples), k, dtype=torch.bool)
    texts: list[str] = []
    for row, sample in enumerate(samples):
        height, width = sample.image.shape[:2]
        said = [region for region in sample.regions if region.caption][:k]
        texts += [region.caption or "" for region in said]
        if said:
            shares = torch.tensor([region.box for region in said]) / torch.tensor([width, height, width, height])
            boxes[row, : len(said)] = centres(shares.clamp(0, 1))
        valid[row, : len(said)] = True
    desc_ids = caption_ids.new_zeros(len(samples), k, caption_ids.shape[1])
    desc_mask = caption_mask.new_zeros(len(samples), k, caption_mask.shape[1])
    if texts:
        desc_ids[valid], desc_mask[valid] = tokenize(texts)
    return {
        "caption_ids": caption_ids,
        "caption_mask": caption_mask,
        "desc_ids": desc_ids,
        "desc_mask": desc_mask,
        "boxes": boxes,
        "valid": valid,
    }
