"""What every learner is asked, whatever it was trained with; each answers by its own means where it has some."""

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.lab import Run
from foveal.recipes import _listed as data
from foveal.recipes._clip_learners import TEMPLATES, Learner
from foveal.recipes._pretrain_matrix_data import COLOURS, NOUNS, SCENES, described, laid_out, ready
from foveal.recipes._pretrain_matrix_places import heat, region_scores
from foveal.recipes._sentence_towers import short

TESTS, SHOWS = 300, 0.25
"""Pictures of each test; share of a patch that a thing must cover for the patch to show it."""


@torch.no_grad()
def scores(run: Run, learner: Learner) -> dict[str, float]:
    """All columns but that of noise, in percent."""
    test = run.shared(laid_out, 10_000, TESTS)
    found = {"retrieval": retrieval(run, learner), "zero-shot": zero_shot(run, learner)}
    phrases = [f"{c} {noun}" for things in test.things for c, noun, _ in things]
    best = heat(learner, test.pixels, phrases).argmax(2, keepdim=True)
    found["localisation"] = 100 * (test.share.gather(2, best) >= SHOWS).float().mean().item()
    names = [f"{c} {noun}" for noun in NOUNS for c in COLOURS]
    by_name = region_scores(learner, test.pixels, test.boxes, names).unflatten(1, (len(NOUNS), -1)).mean(2)
    truth = torch.tensor([NOUNS.index(noun) for things in test.things for _, noun, _ in things])
    found["regions"] = 100 * (by_name.argmax(1) == truth).float().mean().item()
    long = [described(things, ground) for things, ground in zip(test.things, test.grounds, strict=True)]
    found["long captions"] = recall(learner.similarity(test.pixels, long), long)
    return found | {"hard negatives": compositional(learner, test), "probe": probe(run, learner)}


@torch.no_grad()
def retrieval(run: Run, learner: Learner) -> float:
    """R@1 with captions of later scenes."""
    test = run.shared(laid_out, 10_000, TESTS)
    texts = [short(things) for things in test.things]
    return recall(learner.similarity(test.pixels, texts), texts)


def recall(similar: Float[Tensor, "n n"], texts: list[str]) -> float:
    """How often the own partner, or one with the same words, comes first; the mean of both directions, in percent."""
    same = torch.tensor([[one == other for other in texts] for one in texts])
    hits = [same.gather(1, side.argmax(1, keepdim=True)).float().mean() for side in (similar, similar.mT)]
    return 50 * float(hits[0] + hits[1])


def zero_shot(run: Run, learner: Learner) -> float:
    """Naming the one shape in a picture by an ensemble of prompts; half of the shapes never had a label."""
    pixels, labels = run.shared(singles, 20_000)
    prompts = [template.format(noun) for noun in NOUNS for template in TEMPLATES]
    said = learner.similarity(pixels, prompts).unflatten(1, (len(NOUNS), -1)).mean(2).argmax(1)
    return 100 * float((said.numpy() == labels).mean())


def compositional(learner: Learner, test: data.Listed) -> float:
    """How often the true caption beats the one in which two things have changed their colours."""
    differ = [i for i, (a, b, *_) in enumerate(test.things) if a[0] != b[0]]
    things = [test.things[i] for i in differ]
    wrong = [[(b[0], *a[1:]), (a[0], *b[1:]), *rest] for a, b, *rest in things]
    sides = [learner.similarity(test.pixels[differ], [short(one) for one in texts]) for texts in (things, wrong)]
    return 100 * (sides[0].diagonal() > sides[1].diagonal()).float().mean().item()


def probe(run: Run, learner: Learner) -> float:
    """A linear classifier of the shape on the mean patch token, which no objective leaves out."""
    sides = [run.shared(singles, first) for first in (30_000, 20_000)]
    means = [learner.patch_tokens(pixels).mean(1).numpy() for pixels, _ in sides]
    train, test = ((side - means[0].mean(0)) / (means[0].std(0) + 1e-6) for side in means)
    return 100 * float(LogisticRegression(max_iter=300).fit(train, sides[0][1]).score(test, sides[1][1]))


def singles(run: Run, first: int) -> tuple[Float[Tensor, "n 3 s s"], np.ndarray]:
    """Pictures of one shape each."""
    found = world.classify(first + run.seed, run.size(TESTS), NOUNS, SCENES)
    return ready(to_tensor(found.images)), found.labels
