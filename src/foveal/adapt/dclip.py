"""Description: classify by what a class looks like, in words that can be read and corrected.

    s(c, x) = 1/|D(c)| · Σ_{d ∈ D(c)} cos(f_T("c, which has d"), f_I(x))

A language model names the visual features D(c) of each class once; an image gets the class whose features it resembles
most on average. Nothing is trained. Menon and Vondrick, Visual Classification via Description from Large Language
Models, ICLR 2023, arXiv 2210.07183.

Each sentence is normalised and the mean is not: a class whose features disagree keeps its shorter mean. The sentence
rule is that of the released descriptor files, with which the paper's numbers came about: "which is antlers" included.
Departure: a class without features is its bare name (the release would say "name, which has ").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from foveal.adapt.base import check_class_index, mean_by_class
from foveal.adapt.dclip_text import check_texts, read_descriptors, spoken
from foveal.adapt.dclip_text import descriptor_messages as descriptor_messages
from foveal.adapt.dclip_text import descriptor_prompts as descriptor_prompts
from foveal.adapt.dclip_text import generate_descriptors as generate_descriptors
from foveal.adapt.dclip_text import make_descriptor_sentence as make_descriptor_sentence
from foveal.adapt.dclip_text import parse_descriptors as parse_descriptors
from foveal.data.files import write_atomically
from foveal.nn.cosine import unit_rows

Reduce = Literal["mean", "max"]
REDUCES = ("mean", "max")


def descriptor_similarities(
    image_features: Float[Tensor, "b d"], descriptor_features: Float[Tensor, "m d"]
) -> Float[Tensor, "b m"]:
    """Cosines, whatever the scale of the features; ValueError when they do not fit or are not finite."""
    for name, features in (("image_features", image_features), ("descriptor_features", descriptor_features)):
        if features.ndim != 2 or features.shape[1] != image_features.shape[-1]:
            raise ValueError(
                f"{name} {tuple(features.shape)}: image_features and descriptor_features must be (B, D) and (M, D), "
                f"with one D (here {image_features.shape[-1]} and {descriptor_features.shape[-1]})"
            )
        if not bool(features.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity: check the encoder's output")
    images, texts = unit_rows(image_features), unit_rows(descriptor_features)
    dtype = torch.promote_types(images.dtype, texts.dtype)
    return images.to(dtype) @ texts.to(dtype).mT


def description_scores(
    image_features: Float[Tensor, "b d"],
    descriptor_features: Float[Tensor, "m d"],
    class_index: Int64[Tensor, " m"] | Sequence[int],
    num_classes: int,
    *,
    reduce: Reduce = "mean",
) -> Float[Tensor, "b k"]:
    """The mean (or greatest) similarity of an image to the descriptors of each class.

    Args:
        class_index: the class of each descriptor, in any order.

    Raises:
        ValueError: features that do not fit, an index outside the classes, a class without a descriptor.
    """
    if reduce not in REDUCES:
        raise ValueError(f"reduce={reduce!r}: choose one of {', '.join(REDUCES)}")
    similarities = descriptor_similarities(image_features, descriptor_features)
    index = torch.as_tensor(class_index, device=similarities.device)
    if reduce == "mean":
        return mean_by_class(similarities, index, num_classes)
    check_class_index(index, similarities.shape[1], num_classes)
    lowest = similarities.new_full((len(similarities), num_classes), -torch.inf)
    return lowest.scatter_reduce(1, index.expand_as(similarities), similarities, "amax")


@dataclass(frozen=True)
class Explanation:
    """Why an image got its class.

    Attributes:
        class_name: as the caller calls it.
        score: of this class.
        items: each of its descriptors as it was given, with its cosine, the greatest first.
        baseline_class: what the bare names alone would have said, and ``baseline_score`` the cosine of that name.
    """

    class_name: str
    score: float
    items: list[tuple[str, float]]
    baseline_class: str
    baseline_score: float


class DescriptionClassifier:
    """Zero-shot classes that are lists of descriptors, to be read, edited, added and taken away.

    Args:
        encode_image: images -> (B, D), in any scale; images are whatever it takes.
        encode_text: texts -> (n, D), in any scale.
        descriptors: class -> its descriptors; copied. A class with none is its bare name.
        reduce: "mean", or "max" for the most similar descriptor alone (weaker in the paper).
        prefix, between, suffix, include_class_name: of the texts, see `descriptor_prompts`.

    Raises:
        ValueError: no class, a text in the place of a list, or unknown ``reduce``.
    """

    def __init__(
        self,
        encode_image: Callable[[Any], Float[Tensor, "b d"]],
        encode_text: Callable[[list[str]], Float[Tensor, "n d"]],
        descriptors: Mapping[str, Sequence[str]],
        *,
        reduce: Reduce = "mean",
        prefix: str = "",
        between: str = ", ",
        suffix: str = "",
        include_class_name: bool = True,
    ) -> None:
        if reduce not in REDUCES:
            raise ValueError(f"reduce={reduce!r}: choose one of {', '.join(REDUCES)}")
        if not descriptors:
            raise ValueError(f"descriptors={descriptors!r}: give at least one class")
        self.encode_image, self.encode_text, self.reduce = encode_image, encode_text, reduce
        self.prefix, self.between, self.suffix = prefix, between, suffix
        self.include_class_name = include_class_name
        self.prompts: dict[str, list[str]] = {name: self._texts(name, ds) for name, ds in descriptors.items()}
        self._descriptors = {name: list(ds) for name, ds in descriptors.items()}
        rows = self._encode([text for texts in self.prompts.values() for text in texts])
        parts = rows.split([len(texts) for texts in self.prompts.values()])
        self._features = dict(zip(self.prompts, parts, strict=True))
        self._names: dict[str, Float[Tensor, "1 d"]] = {}  # of bare names; made when first asked for

    @property
    def class_names(self) -> list[str]:
        """In the order in which they were given and added: column k of `scores` is class k."""
        return list(self._descriptors)

    @property
    def descriptors(self) -> dict[str, list[str]]:
        """A copy of what each class is described by."""
        return {name: list(ds) for name, ds in self._descriptors.items()}

    def scores(self, images: Any) -> Float[Tensor, "b k"]:
        """Mean cosines in [-1, 1]; no softmax, no temperature."""
        return self._scored(self._images(images))

    def predict(self, images: Any) -> Int64[Tensor, " b"]:
        """Indices into `class_names`; of equal scores the first class wins."""
        return self.scores(images).argmax(1)

    def explain(self, image: Any, class_name: str | None = None) -> Explanation:
        """The descriptors of the predicted class, or of ``class_name``, by how much the image resembles them.

        Args:
            image: one element of what ``encode_image`` takes; a batch axis is added.

        Raises:
            KeyError: unknown class.
        """
        features = self._images(image[None] if isinstance(image, Tensor | np.ndarray) else [image])
        scores = self._scored(features)[0]
        if class_name is None:
            class_name = self.class_names[int(scores.argmax())]
        self._check_known(class_name)
        cosines = descriptor_similarities(features, self._features[class_name])[0].tolist()
        said = self._descriptors[class_name] or [spoken(class_name)]
        items = sorted(zip(said, cosines, strict=True), key=lambda item: -item[1])
        names = descriptor_similarities(features, torch.cat(self._bare_names()))[0]
        best = int(names.argmax())
        score = float(scores[self.class_names.index(class_name)])
        return Explanation(class_name, score, items, self.class_names[best], float(names[best]))

    def edit(self, class_name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
        """Take descriptors away, then append those that are not there yet; encodes this class alone.

        Raises:
            KeyError: unknown class.
            ValueError: a descriptor to remove that is not there. Nothing is changed then.
        """
        self._check_known(class_name)
        check_texts("add", add)
        check_texts("remove", remove)
        left = list(self._descriptors[class_name])
        for descriptor in remove:
            if descriptor not in left:
                raise ValueError(f"remove={descriptor!r} is no descriptor of {class_name!r}; it has {left!r}")
            left.remove(descriptor)
        for descriptor in add:
            if descriptor not in left:
                left.append(descriptor)
        self._set(class_name, left)

    def add_class(self, name: str, descriptors: Sequence[str]) -> None:
        """One more class, as the last; ValueError when there is one of this name."""
        if name in self._descriptors:
            raise ValueError(f"name={name!r} is a class already: edit it, or remove it first")
        self._set(name, descriptors)

    def remove_class(self, name: str) -> None:
        """KeyError for an unknown class, ValueError for the only one."""
        self._check_known(name)
        if len(self._descriptors) == 1:
            raise ValueError(f"name={name!r} is the only class: add another one first")
        for table in (self._descriptors, self.prompts, self._features, self._names):
            table.pop(name, None)

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write class -> descriptors, the format of the files that the paper released."""
        write_atomically(Path(path), (json.dumps(self._descriptors, indent=4, ensure_ascii=False) + "\n").encode())

    @classmethod
    def from_json(
        cls,
        path: str | PathLike[str],
        encode_image: Callable[[Any], Float[Tensor, "b d"]],
        encode_text: Callable[[list[str]], Float[Tensor, "n d"]],
        **options: Any,
    ) -> DescriptionClassifier:
        """Of a file as `to_json` writes it; ``options`` are those of the class. ValueError for another file."""
        return cls(encode_image, encode_text, read_descriptors(path), **options)

    def _texts(self, class_name: str, descriptors: Sequence[str]) -> list[str]:
        options: dict[str, Any] = {"prefix": self.prefix, "between": self.between, "suffix": self.suffix}
        return descriptor_prompts(class_name, descriptors, include_class_name=self.include_class_name, **options)

    def _set(self, class_name: str, descriptors: Sequence[str]) -> None:
        """Everything about one class, or nothing when it cannot be encoded."""
        texts = self._texts(class_name, descriptors)
        features = self._encode(texts)
        self._descriptors[class_name] = list(descriptors)
        self.prompts[class_name], self._features[class_name] = texts, features

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> Float[Tensor, "n d"]:
        features = self.encode_text(texts)
        if features.ndim != 2 or len(features) != len(texts):
            raise ValueError(f"encode_text gave {tuple(features.shape)} for {len(texts)} texts: must be (n, D)")
        return features

    @torch.no_grad()
    def _images(self, images: Any) -> Float[Tensor, "b d"]:
        return self.encode_image(images)

    def _scored(self, image_features: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        counts = torch.tensor([len(rows) for rows in self._features.values()])
        index = torch.arange(len(counts)).repeat_interleave(counts).to(image_features.device)
        features = torch.cat(list(self._features.values()))
        return description_scores(image_features, features, index, len(counts), reduce=self.reduce)

    def _bare_names(self) -> list[Float[Tensor, "1 d"]]:
        missing = [name for name in self._descriptors if name not in self._names]
        if missing:
            rows = self._encode([f"{self.prefix}{spoken(name)}{self.suffix}" for name in missing])
            self._names.update(zip(missing, rows.split(1), strict=True))
        return [self._names[name] for name in self._descriptors]

    def _check_known(self, class_name: str) -> None:
        if class_name not in self._descriptors:
            raise KeyError(f"class_name={class_name!r} is not a class; there are {', '.join(self._descriptors)}")
