"""Any words as labels for a picture, without training: through the names of the classes that the classifier knows.

A label fits a picture when it means what the picture's likely classes mean: MiniLM says how near the label is to each
of the 1,000 class names, the classifier how likely each class is. Like the eyes, this knows what these classes know.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from foveal import zoo
from foveal.zoo.efficientnet_lite0 import EfficientNetLite0
from foveal.zoo.minilm import MiniLM

# Measured on the 35 bundled photos (chance 20 %): a photo's first noun against the first nouns of four others, 700
# draws. This score: 78 %. Temperature 1: 72 %; not standardised per label (some words are near to every class): 55 %;
# bare names instead of "a photo of a …": 76 %; cosine to SITTA's mapped picture: 65 %, standardised 71 %; softmax over
# the classes of each label: 77 %. Chosen on these same photos, so expect somewhat less elsewhere.
TEMPERATURE = 2.0
# For `matches` the question is another: which of the 35 photos fits one of their 124 nouns. Its softmax over classes
# finds a right photo first for 36 %, among five for 69 % (chance 12 and 26 %); the plain likeness 23 and 59 %.
CONTRAST = 0.05
SHARPNESS = 5.0  # of the probabilities: at 5 the 700 draws are likelier (0.90 nats) than at 3 (1.08) or 1 (1.38)


class ZeroShot:
    """Scores pictures against texts."""

    def __init__(self, vision: EfficientNetLite0, sentences: MiniLM) -> None:
        self.vision, self.sentences = vision, sentences
        self._classes = sentences.encode([photo_of(name) for name in vision.class_names])

    @classmethod
    def load(cls, vision: EfficientNetLite0 | None = None) -> ZeroShot:
        """With the zoo's parts; ``vision`` saves loading what is there already."""
        return cls(vision or zoo.load("efficientnet-lite0"), zoo.load("minilm"))

    def logits(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float[Tensor, "n 1000"]:
        """What `scores` needs to know of each picture."""
        return self.vision.logits(self.vision.features(images))

    @torch.inference_mode()
    def scores(self, logits: Float[Tensor, "n 1000"], texts: Sequence[str]) -> Float[Tensor, "n texts"]:
        """How well each text fits each picture: 0 like any text, about 1 very well. To compare texts for one picture.

        Raises ValueError for an empty text.
        """
        likeness = self._likeness(texts)
        standardised = (likeness - likeness.mean(0)) / likeness.std(0)
        return ((logits / TEMPERATURE).softmax(1) @ standardised).clone()

    @torch.inference_mode()
    def matches(self, logits: Float[Tensor, "n 1000"], texts: Sequence[str]) -> Float[Tensor, "n texts"]:
        """How well each picture fits each text: 1 when the classifier believes in every class alike, 0 to 1000.

        To compare pictures for one text. Raises ValueError for an empty text.
        """
        meant = len(self._classes) * (self._likeness(texts) / CONTRAST).softmax(0)
        return ((logits / TEMPERATURE).softmax(1) @ meant).clone()

    def classify(self, image: UInt8[np.ndarray, "_ _ 3"], labels: Sequence[str]) -> list[tuple[str, float]]:
        """The labels with probabilities that add up to 1, best first. ValueError for fewer than two or twins."""
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise ValueError(f"labels={list(labels)!r}: give at least two different ones")
        probabilities = (SHARPNESS * self.scores(self.logits([image]), labels)[0]).softmax(0)
        return sorted(zip(labels, probabilities.tolist(), strict=True), key=lambda pair: -pair[1])

    def _likeness(self, texts: Sequence[str]) -> Float[Tensor, "1000 texts"]:
        """Cosine between the meaning of each class name and of each text."""
        if not texts or not all(text.strip() for text in texts):
            raise ValueError(f"texts={list(texts)!r}: give at least one word for each")
        return self._classes @ self.sentences.encode([photo_of(text) for text in texts]).T


def photo_of(thing: str) -> str:
    """ "cat" and "a cat" as the same sentence."""
    return f"a photo of a {re.sub(r'^(an?|the) ', '', thing.strip(), flags=re.IGNORECASE)}"
