"""What a bridge that learned from noisy pairs knows: which were noise, which text is whose, what is in a picture."""

import torch

from foveal.pretrain.nevlp import (
    ConceptQFormer,
    NevlpObjective,
    NoiseEstimator,
    itc_per_sample,
    query_text_similarity,
)
from foveal.recipes._noisy_pairs import LENGTH, START, WORDS, Pairs


@torch.no_grad()
def estimate(objective: NevlpObjective, data: Pairs, estimator: NoiseEstimator, batch: int) -> None:
    """ε of every pair from its plain loss among a batch of others."""
    for rows in torch.arange(len(data.ids)).split(batch):
        similar = query_text_similarity(
            *objective.bridge.contrast(data.features[rows], data.ids[rows], data.ids[rows] > 0)
        )
        estimator.record(rows, itc_per_sample(similar, 1 / objective.logit_scale()))
    estimator.refresh()


@torch.no_grad()
def retrieval(bridge: ConceptQFormer, test: Pairs) -> float:
    """R@1, the mean of both directions."""
    similar = query_text_similarity(*bridge.contrast(test.features, test.ids, test.ids > 0))
    same = (test.ids[:, None] == test.ids[None]).all(2)  # equal captions are equally right
    hits = [same.gather(1, s.argmax(1, keepdim=True)).float().mean() for s in (similar, similar.mT)]
    return 50 * float(hits[0] + hits[1])


@torch.no_grad()
def recall(bridge: ConceptQFormer, test: Pairs, concepts: bool) -> float:
    """Percent of the objects that greedy captions name."""
    names = test.names if concepts else test.names[:, :0]
    ids = torch.full((len(names), 1), START)
    for _ in range(LENGTH - 1):
        words = bridge.words(test.features, ids, torch.ones_like(ids, dtype=torch.bool), names, names > 0)
        ids = torch.cat([ids, words[:, -1, :START].argmax(1, keepdim=True)], 1)
    said = [set(WORDS.decode(row[1:].tolist()).split()) for row in ids]
    hits = [len(true & words) / len(true) for true, words in zip(test.nouns, said, strict=True)]
    return 100 * sum(hits) / len(hits)
