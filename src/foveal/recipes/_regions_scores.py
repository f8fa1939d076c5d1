"""What a pre-trained model knows without fine-tuning: which caption belongs to a scene, which region to a noun."""

import torch

from foveal.nn.ot import cosine_cost, ipot
from foveal.pretrain.uniter import UNITERForPretraining
from foveal.pretrain.uniter_model import INPUTS
from foveal.recipes import _regions_words as words
from foveal.recipes._regions import Regions


@torch.no_grad()
def rank(model: UNITERForPretraining, test: Regions, texts: list[list[str]]) -> float:
    """Percent of scenes whose caption, the first of its row, has the best matching score."""
    ids = words.encode([text for row in texts for text in row])
    rows = torch.arange(len(texts)).repeat_interleave(len(texts[0]))
    parts = zip(ids.split(500), rows.split(500), strict=True)
    scores = torch.cat([model.forward_itm(test.batch(*part))[0].log_softmax(1)[:, 1] for part in parts])
    return 100 * (scores.view(len(texts), -1).argmax(1) == 0).float().mean().item()


@torch.no_grad()
def word_region(model: UNITERForPretraining, test: Regions) -> float:
    """Percent of nouns whose region receives the largest part of their mass."""
    ids = words.encode([words.caption(things) for things in test.things])
    batch = test.batch(ids, torch.arange(len(ids)))
    hidden, _ = model.uniter(*(batch[name] for name in INPUTS))
    cost = cosine_cost(hidden[:, : words.LENGTH], hidden[:, words.LENGTH :])
    plan = ipot(cost, batch["text_mask"], batch["region_mask"])
    return 100 * (plan[:, words.NOUN_PLACES].argmax(2) == torch.arange(3)).float().mean().item()
