"""Real frozen parts that see and speak, joined by SITTA without training anything and without a captioned image.

EfficientNet-Lite0's classifier has a weight row for each ImageNet class, SmolLM2 an embedding for each word of the
class names: one Procrustes rotation takes the rows to the words, and with them what the classifier sees in a picture.
So the eyes know what the 1,000 classes know. A picture of anything else (tulips, rocks, a painting, a person) is named
after the classes that look most like it, fluently and wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from foveal import zoo
from foveal.connect.sitta import SittaMapper, class_name_pairs, soft_prototype, whole_words
from foveal.connect.sitta_captioner import STOPWORDS, WORKED_EXAMPLES, SittaCaptioner
from foveal.data.text import singular
from foveal.zoo.efficientnet_lite0 import EfficientNetLite0
from foveal.zoo.quiet import quiet_loading
from foveal.zoo.smollm2 import SmolLM2

Image = UInt8[np.ndarray, "_ _ 3"]
Progress = Callable[[str, int, int], None]
"""Called with what happens next, how many steps are done and how many there are."""

TEMPERATURE = 2.0  # softens the classifier's belief: one class alone names little of a picture
POOL = 30  # words looked at; a rarer stem than that is a poor match
STEM = 5  # letters of the singular: one of "sign" and "signs", "garden" and "gardening" is kept
WORDS = 4
ORDERS = 6


class Eyes:
    """A picture's words, caption and classes.

    Attributes:
        vision, language: the frozen parts.
        embeddings (V, 576): SmolLM2's input embeddings.
        whole (V,): which of its tokens are whole lower-case words; only these are pairs and candidates.
        mapper: the fitted map from `feature` to word space.
        captioner: writes captions from the mapped words.
    """

    def __init__(self, vision: EfficientNetLite0, language: SmolLM2) -> None:
        self.vision, self.language = vision, language
        model: Any = language.model
        self.embeddings: Float[Tensor, "v dl"] = model.get_input_embeddings().weight.detach()
        self.whole: Bool[Tensor, " v"] = whole_words(language.tokenizer, len(self.embeddings))
        self.mapper = SittaMapper("procrustes")
        self.mapper.fit(vision.classifier_weight, self._class_tokens(), self.embeddings)
        self.captioner = self._captioner(WORDS)

    @classmethod
    def load(cls, progress: Progress | None = None) -> Eyes:
        """The eyes, ready in a few seconds (about 20 the first time, while SmolLM2 is unpacked to the cache).

        Raises FileNotFoundError with the remedy when a part's weights are not installed.
        """
        report = progress or (lambda what, done, total: None)
        report("EfficientNet-Lite0", 0, 3)
        vision = zoo.load("efficientnet-lite0")
        report("SmolLM2 (unpacked once)", 1, 3)
        language = zoo.load("smollm2")
        report("joining them by SITTA", 2, 3)
        eyes = cls(vision, language)
        report("ready", 3, 3)
        return eyes

    def feature(self, images: Sequence[Image]) -> Float[Tensor, "n 1280"]:
        """What `mapper` takes: each picture as a mixture of class rows. The pooled features themselves map worse."""
        weight, bias = self.vision.classifier_weight, self.vision.classifier_bias
        return soft_prototype(self.vision.features(images), weight, bias, temperature=TEMPERATURE)

    def words(self, image: Image, k: int = WORDS) -> list[str]:
        """The k words nearest to the picture, best first, no two with the same stem."""
        captioner = self.captioner if k == WORDS else self._captioner(k)
        return captioner.words(self.feature([image])[0])

    def caption(self, image: Image) -> str:
        """One short sentence; "" if the language model writes nothing."""
        return next((text for text, _ in self.captions(image)), "")

    def captions(self, image: Image) -> list[tuple[str, float]]:
        """All distinct candidates with their cosines to the picture in word space, best first."""
        with quiet_loading():  # transformers announces renamed options on every first call
            _, candidates, scores = self.captioner.caption(self.feature([image])[0])
        return sorted(zip(candidates, scores.tolist(), strict=True), key=lambda pair: -pair[1])

    def labels(self, image: Image, k: int = 3) -> list[tuple[str, float]]:
        """The k most probable ImageNet classes with their probabilities, best first."""
        probabilities = self.vision.logits(self.vision.features([image]))[0].softmax(0)
        best = probabilities.topk(k)
        return [(self.vision.class_names[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist())]

    def _class_tokens(self) -> list[list[int]]:
        """The words of each class name. Words of several tokens are left out: "stupa" would teach the word "stup"."""

        def tokenize(text: str) -> list[int]:
            ids = self.language.tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids if len(ids) == 1 else []

        return class_name_pairs(self.vision.class_names, tokenize, self.whole, STOPWORDS | {"having"})

    def _captioner(self, k: int) -> SittaCaptioner:
        tokenizer: Any = self.language.tokenizer
        return SittaCaptioner(
            self.mapper,
            self.language.model,
            tokenizer,
            k=k,
            n_orders=ORDERS,
            prompt=WORKED_EXAMPLES,
            decode=lambda token: singular(tokenizer.decode(token).strip())[:STEM],
            pool=max(POOL, 5 * k),
            allowed=self.whole,
        )
