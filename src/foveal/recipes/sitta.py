"""SITTA: does a closed-form map find the words of classes it was never fitted on?

Real weights, nothing trained: the rows of EfficientNet-Lite0's classifier are mapped to the word embeddings of
SmolLM2-135M through the words of their class names, on four fifths of the classes; the rest must find their own words
among 21,000 (five folds, shuffled by the seed). One map per arm; ``random`` is a rotation drawn at random, and
``ridge_tuned`` gives ridge the penalty that was best on other shuffles, which the paper (α = 1) does not.

The paper's second source of pairs, captioned images, is measured on photos-like scenes of the procedural world with
EfficientNet-Lite0 features: with all pairs, and with 2 % of the images.
"""

from functools import cache, partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from foveal import zoo
from foveal.connect.sitta import (
    SittaMapper,
    caption_words,
    class_name_pairs,
    ndcg,
    soft_prototype,
    standardize,
    whole_words,
)
from foveal.connect.sitta_captioner import STOPWORDS
from foveal.data import world
from foveal.lab import Claim, Recipe, Run

FOLDS = 5


@cache
def parts() -> tuple[Any, Any, torch.Tensor, torch.Tensor]:
    """Vision model, tokenizer, word embeddings and which of them are whole words."""
    language, vision = zoo.load("smollm2"), zoo.load("efficientnet-lite0")
    embeddings = language.model.get_input_embeddings().weight.detach()
    return vision, language.tokenizer, embeddings, whole_words(language.tokenizer, len(embeddings))


def tokenize(text: str) -> list[int]:
    return parts()[1](text, add_special_tokens=False)["input_ids"]


def rank_words(mapper: SittaMapper, features: torch.Tensor, own_statistics: bool = False) -> np.ndarray:
    """All whole words, best first, for each feature: (n, 21185) token ids."""
    mean, std = standardize(features)[1:] if own_statistics else (None, None)
    words = parts()[3].nonzero()[:, 0]
    z = F.normalize(mapper.transform(features, mean, std), dim=1)
    return words[(z @ F.normalize(mapper.targets[words], dim=1).mT).argsort(1, descending=True)].numpy()


def held_out_classes(mapper: SittaMapper, random: bool, run: Run) -> dict[str, float]:
    """Mean nDCG, and how often one of the first 8 words belongs to the class name, over classes left out of the fit."""
    vision, _, embeddings, whole = parts()
    pairs = class_name_pairs(vision.class_names, tokenize, whole)
    weight, generator = vision.classifier_weight, run.generator()
    named = [index for index, ids in enumerate(pairs) if ids]
    classes = [named[i] for i in torch.randperm(len(named), generator=generator)[: run.size(len(named))]]
    gains, hits = [], []
    for fold in range(FOLDS):
        held = classes[fold::FOLDS]
        seen = sorted(set(classes) - set(held))
        mapper.fit(weight[seen], [pairs[c] for c in seen], embeddings)
        if random:
            mapper.W = torch.linalg.qr(torch.randn(mapper.W.shape, generator=generator))[0]
        ranked = rank_words(mapper, weight[held])
        gains += [ndcg(row, pairs[c]) for row, c in zip(ranked, held, strict=True)]
        hits += [bool(np.isin(row[:8], pairs[c]).any()) for row, c in zip(ranked, held, strict=True)]
    return {"ndcg": float(np.mean(gains)), "hit@8": 100 * float(np.mean(hits))}
