"""nano-clip told what classes look like, by whoever knows, and how many pictures it then gets right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from foveal import zoo
from foveal.adapt.dclip import DescriptionClassifier, generate_descriptors
from foveal.lab import Run
from foveal.llm import Prompt, ScriptedLM
from foveal.recipes._described_things import CLASSES, kinds, pictures
from foveal.zoo.dual_encoder import DualEncoder

PICTURES = 600
Descriptors = Mapping[str, Sequence[str]]


def encoder(run: Run) -> DualEncoder:
    """nano-clip, for `Run.shared`."""
    nano = zoo.load("nano-clip")
    return DualEncoder(nano.model, nano.processor, 64)


def examined(run: Run) -> tuple[UInt8[np.ndarray, "n h w 3"], Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """Pictures of all classes in equal numbers, their features, and the classes."""
    labels = np.arange(run.size(PICTURES)) % CLASSES
    images = pictures(run.shared(kinds), labels.tolist(), run.seed)
    return images, run.shared(encoder).image_features(list(images)), torch.from_numpy(labels)


def classifier(run: Run, descriptors: Descriptors, **options: Any) -> DescriptionClassifier:
    """Of pictures that are given by their features."""
    return DescriptionClassifier(lambda rows: rows, run.shared(encoder).text_features, descriptors, **options)


def table_reader(run: Run, attribute: str) -> ScriptedLM:
    """A language model that knows what every class looks like."""
    known = {getattr(kind, attribute): kind for kind in run.shared(kinds)}

    def answer(prompt: Prompt) -> str:
        asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        name = max((name for name in known if name in asked), key=len)
        return "\n".join(f"- {feature}" for feature in known[name].features)

    return ScriptedLM(answer)


def described(run: Run, attribute: str) -> dict[str, list[str]]:
    """The table's descriptors under the names of one kind."""
    names = [getattr(kind, attribute) for kind in run.shared(kinds)]
    return generate_descriptors(names, table_reader(run, attribute))


def top1(
    run: Run,
    describe: Callable[[Run, str], Descriptors],
    attributes: Sequence[str] = ("common", "invented"),
    **options: Any,
) -> dict[str, float]:
    """Percentage of the pictures whose class is found, under common names and under invented ones."""
    _, features, labels = run.shared(examined)
    run.cost(run.shared(encoder).model)
    found = {}
    for attribute in attributes:
        said = classifier(run, describe(run, attribute), **options).predict(features)
        found[f"{attribute} top-1"] = 100 * (said == labels).float().mean().item()
    return found
