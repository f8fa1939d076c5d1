"""VESL, the labels of CLOC: describe the picture, take the phrases out of the description, let a detector place them.

    text     = describer(picture, RECAPTION)            a new caption that says what can be seen
    phrases  = chunks of text and alt text between function words, at most 5 words each
    boxes    = detector(picture, phrases)               Q boxes with a score for each of P phrases; the best one counts
    regions  = boxes scored above 0.1, best first; the picture is dropped when even the best stays below 0.3

`annotate_regions` does that with any `Captioner` and `BoxScorer`; `Owlv2Scorer` is the paper's detector. `NoisyRegions`
stands in for both where the truth is known, and errs at stated rates. See `foveal.pretrain.cloc`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from foveal.data.record import Region, Sample
from foveal.nn.boxes import corners
from foveal.pretrain.base_captioner import Captioner

RECAPTION = "Describe everything that can be seen in the picture: objects, their looks, and where they are."

_CUTS = (
    "a an the of in on at with and or to from by for near next under over above below behind beside between left right "
    "is are was were be this that these those it its there his her their as into onto while has have"
)
FUNCTION_WORDS = frozenset(_CUTS.split())
"""Where a description is cut into phrases."""

_PIECE = re.compile(r"[^\w '\-]|_")


class BoxScorer(Protocol):
    """An open-vocabulary detector."""

    def score(
        self, image: UInt8[np.ndarray, "h w 3"], phrases: Sequence[str]
    ) -> tuple[Float[Tensor, "q 4"], Float[Tensor, "q p"]]:
        """Boxes (x1, y1, x2, y2 in shares of the picture) and how well each shows each phrase, from 0 to 1."""


@dataclass(frozen=True)
class VeslRegions:
    """n labelled boxes, the surest first: which phrase each shows, its score, and its row among the Q boxes."""

    boxes: Float[Tensor, "n 4"]
    phrase: Int[Tensor, " n"]
    score: Float[Tensor, " n"]
    index: Int[Tensor, " n"]


def extract_phrases(captions: list[str], max_words: int = 5) -> list[str]:
    """Chunks of 1 to ``max_words`` words between punctuation and function words, lower-case, each of them once.

    The paper takes named entities, which needs a tagger; this needs none. Longer chunks are left out.
    """
    if isinstance(captions, str):
        raise ValueError(f"captions={captions[:40]!r}: must be a list of captions")
    if max_words < 1:
        raise ValueError(f"max_words={max_words}: must be at least 1")
    found: dict[str, None] = {}
    for caption in captions:
        for piece in _PIECE.split(caption.lower()):
            chunk: list[str] = []
            for word in [*piece.split(), "the"]:  # a function word ends the last chunk as well
                if word not in FUNCTION_WORDS:
                    chunk.append(word)
                    continue
                if 1 <= len(chunk) <= max_words:
                    found.setdefault(" ".join(chunk))
                chunk = []
    return list(found)


def vesl_select(
    boxes: Float[Tensor, "q 4"],
    scores: Float[Tensor, "q p"],
    threshold: float = 0.1,
    min_top: float = 0.3,
    max_regions: int = 20,
) -> VeslRegions:
    """The boxes that are worth training on; none when the best score in the picture is below ``min_top``.

    Args:
        threshold: the score of a box with its best phrase has to be greater.
        max_regions: at most so many, best first; equal scores keep their order.

    Raises ValueError for shapes that do not fit, non-finite numbers, and ``max_regions`` below 1.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.ndim != 2 or len(scores) != len(boxes):
        raise ValueError(f"boxes {tuple(boxes.shape)} and scores {tuple(scores.shape)} must be (Q, 4) and (Q, P)")
    if not (bool(boxes.isfinite().all()) and bool(scores.isfinite().all())):
        raise ValueError("boxes or scores hold NaN or infinity: drop such detections")
    if max_regions < 1:
        raise ValueError(f"max_regions={max_regions}: must be at least 1")
    if scores.numel() == 0 or bool(scores.max() < min_top):  # a tensor, so that min_top is rounded as scores are
        none = torch.zeros(0, dtype=torch.int64, device=boxes.device)
        return VeslRegions(boxes[:0], none, scores.new_zeros(0), none)
    best, phrase = scores.max(1)
    order = best.sort(descending=True, stable=True).indices
    index = order[best[order] > threshold][:max_regions]
    return VeslRegions(boxes[index], phrase[index], best[index], index)


def annotate_regions(
    sample: Sample,
    captioner: Captioner,
    scorer: BoxScorer,
    *,
    max_words: int = 5,
    threshold: float = 0.1,
    min_top: float = 0.3,
    max_regions: int = 20,
) -> Sample | None:
    """The sample with the new caption before its own, and pseudo-labelled regions in place of its own.

    Regions are in pixels, the surest first, their phrase as caption. None: nothing is seen surely enough, drop the
    picture. See `vesl_select` for the numbers.
    """
    image = sample.image
    said = " ".join(captioner.answer(image, RECAPTION).split())
    captions = tuple(text for text in (said, *sample.captions) if text)
    phrases = extract_phrases(list(captions), max_words)
    if not phrases:
        return None
    boxes, scores = scorer.score(image, phrases)
    if scores.ndim != 2 or scores.shape[1] != len(phrases):
        raise ValueError(f"the scorer returned scores {tuple(scores.shape)} for {len(phrases)} phrases")
    found = vesl_select(boxes, scores, threshold, min_top, max_regions)
    if not len(found.index):
        return None
    height, width = image.shape[:2]
    pixels = found.boxes.clamp(0, 1) * torch.tensor([width, height, width, height])
    regions = [
        Region((x1, y1, x2, y2), caption=phrases[place])
        for (x1, y1, x2, y2), place in zip(pixels.tolist(), found.phrase.tolist(), strict=True)
    ]
    return sample.with_(captions=captions, regions=tuple(regions))


class Owlv2Scorer:
    """`BoxScorer` on ``Owlv2ForObjectDetection`` or ``OwlViTForObjectDetection`` and its processor."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor

    @torch.no_grad()
    def score(
        self, image: UInt8[np.ndarray, "h w 3"], phrases: Sequence[str]
    ) -> tuple[Float[Tensor, "q 4"], Float[Tensor, "q p"]]:
        """One forward pass."""
        inputs = self.processor(text=[list(phrases)], images=image, return_tensors="pt", truncation=True)
        out = self.model(**inputs.to(self.model.device))
        boxes = corners(out.pred_boxes[0].float().cpu())
        if getattr(self.processor.image_processor, "do_pad", False):  # OWLv2 sees a square, padded right and below
            height, width = image.shape[:2]
            boxes = boxes * max(height, width) / torch.tensor([width, height, width, height])
        return boxes.clamp(0, 1), out.logits[0].float().sigmoid().cpu()


@dataclass(frozen=True)
class DetectorNoise:
    """How often the truth is spoilt; each error is drawn on its own.

    Raises ValueError for probabilities outside [0, 1] and negative amounts.
    """

    missed: float = 0.2
    """Probability that a region is neither described nor found."""
    jitter: float = 0.08
    """Standard deviation of each edge of a box, in widths or heights of the box."""
    confused: float = 0.15
    """Standard deviation of every score."""
    invented: float = 0.5
    """Mean number of boxes with nothing in them (Poisson)."""

    def __post_init__(self) -> None:
        if not 0 <= self.missed <= 1:
            raise ValueError(f"missed={self.missed}: must be a probability from 0 to 1")
        for name in ("jitter", "confused", "invented"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")


class NoisyRegions:
    """`Captioner` and `BoxScorer` of one sample whose regions are known: tells them, spoilt by `DetectorNoise`.

    A phrase fits a region by the share of their words that both have; the score is 0.9 times that, plus noise. Phrases
    that are in no region ("grass") score near 0 everywhere, and an invented box shows whatever noise makes of it.

    Args:
        sample: with regions that have a caption or a label.
        rng: draws all errors.
    """

    def __init__(self, sample: Sample, noise: DetectorNoise, rng: np.random.Generator) -> None:
        height, width = sample.image.shape[:2]
        side = np.array([width, height, width, height])
        self.noise, self.rng = noise, rng
        self.texts: list[str] = []
        boxes = []
        for region in sample.regions:
            text = region.caption or region.label
            if text is None or rng.random() < noise.missed:
                continue
            x1, y1, x2, y2 = region.box
            moved = np.array(region.box) + noise.jitter * np.tile([x2 - x1, y2 - y1], 2) * rng.standard_normal(4)
            boxes.append(moved / side)
            self.texts.append(text)
        boxes += [rng.random(4) for _ in range(int(rng.poisson(noise.invented)))]
        ordered = np.sort(np.array(boxes).reshape(-1, 2, 2), axis=1).clip(0, 1)
        self.boxes = torch.tensor(ordered.reshape(-1, 4), dtype=torch.float32)

    def answer(self, image: UInt8[np.ndarray, "h w 3"], question: str) -> str:
        """What was seen, thing by thing."""
        return ", ".join(self.texts)

    def score(
        self, image: UInt8[np.ndarray, "h w 3"], phrases: Sequence[str]
    ) -> tuple[Float[Tensor, "q 4"], Float[Tensor, "q p"]]:
        """All boxes, the invented ones last."""
        scores = np.zeros((len(self.boxes), len(phrases)))
        for row, text in enumerate(self.texts):
            words = set(text.split()) - FUNCTION_WORDS
            for column, phrase in enumerate(phrases):
                asked = set(phrase.split())
                scores[row, column] = 0.9 * len(words & asked) / max(len(words | asked), 1)
        scores += self.noise.confused * self.rng.standard_normal(scores.shape)
        return self.boxes, torch.tensor(scores.clip(0, 1), dtype=torch.float32)
