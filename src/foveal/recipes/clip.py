"""CLIP: does choosing the right caption in the batch teach an image tower more, per step, than predicting its words?

(a) World scenes of one or two things at 48 px with their short captions; zero-shot classification of 24 nouns on
single things. *bag_of_words* has the same image tower and a head with as many parameters as CLIP's text tower, which
predicts the caption's words. *clip_half* has half the steps, *shuffled* learns from captions of other images.
(b) The same trained CLIP with bare class names, one prompt, and an ensemble of eight.
(c) Real pixels: frozen EfficientNet-Lite0 and MiniLM features of Twemoji, joined by two linear projections, with
CLIP's loss or with the cosine to the own name alone; families of emoji held out.

All arms of a part share data, seeds, steps and learning rate (1e-3, the best of 5e-4, 1e-3 and 2e-3 for both losses on
seed 100, which is not reported).
"""

from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from foveal import zoo
from foveal.data import twemoji, world
from foveal.data.transforms import to_tensor
from foveal.data.word_ids import WordIds
from foveal.lab import Claim, Recipe, Run, figures
from foveal.nn.text import TextTransformer
from foveal.nn.vit import VisionTransformer
from foveal.pretrain.clip import CLIPObjective, build_zero_shot_classifier, zero_shot_logits
from foveal.train import FitConfig, count_parameters, fit

NOUNS = tuple(world.SHAPES) + tuple("dog cat fish apple banana car bicycle hammer guitar shoe tree chair".split())
SCENES = world.WorldConfig(size=48, things=(1, 2), nouns=NOUNS, min_visible=0.6)
STEPS, LENGTH, WIDTH = 300, 24, 96
PROMPTS = {"bare": ("{}",), "one": ("a picture of a {}",), "ensemble": tuple(t.format("a {}") for t in world.TEMPLATES)}


class Towers(nn.Module):
    """An image tower, and what reads the captions: a text tower with CLIP's loss, or a head that predicts the words."""

    def __init__(self, words: WordIds, contrastive: bool) -> None:
        super().__init__()
        self.words = words
        self.image = VisionTransformer(48, 12, WIDTH, 4, 4, output_dim=WIDTH)
        text = TextTransformer(LENGTH, len(words), WIDTH, 2, 4, output_dim=WIDTH)
        hidden = count_parameters(text) // (WIDTH + len(words))
        head = nn.Sequential(nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, len(words)))
        self.text, self.objective = (text, CLIPObjective()) if contrastive else (head, None)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        if self.objective is not None:
            return self.objective(self.image(pixels), self.text(ids)).loss
        said = torch.zeros(len(ids), len(self.words)).scatter_(1, ids, 1.0)[:, 2:-1]  # without padding and end
        return F.binary_cross_entropy_with_logits(self.text(self.image(pixels))[:, 2:-1], said)

    @torch.no_grad()
    def top1(self, pixels: Tensor, labels: Tensor, prompts: tuple[str, ...]) -> float:
        """Accuracy in percent; the bag of words scores a class by the log-probability of its name."""
        if self.objective is not None:
            encode = lambda texts: self.text(torch.from_numpy(self.words.encode(texts, LENGTH)))  # noqa: E731
            scores = zero_shot_logits(self.image(pixels), build_zero_shot_classifier(encode, NOUNS, prompts))
        else:
            scores = F.logsigmoid(self.text(self.image(pixels)))[:, self.words.encode(NOUNS)[:, 0]]
        return 100 * (scores.argmax(1) == labels).float().mean().item()


@cache  # the prompt arms look at one and the same trained model
def trained(run: Run, contrastive: bool, share: float, shuffled: bool) -> Towers:
    train = world.pairs(run.seed, run.size(6000), SCENES)
    words = WordIds.of([*train.captions, *NOUNS])
    ids = torch.from_numpy(words.encode(train.captions, LENGTH))
    ids = ids[torch.randperm(len(ids), generator=run.generator())] if shuffled else ids
    model = run.build(Towers, words, contrastive)
    clamp = (lambda m: m.objective.logit_scale.clamp_()) if contrastive else None
    config = FitConfig(lr=1e-3, batch_size=128, after_step=clamp)
    fit(model, TensorDataset(to_tensor(train.images), ids), steps=run.steps(int(share * STEPS)), config=config, on=run)
    return model


def scenes(run: Run, contrastive: bool = True, share: float = 1.0, shuffled: bool = False, prompts: str = "ensemble"):
    model = trained(run.alike(), contrastive, share, shuffled)
    run.cost(model)
    test = world.classify(10_000 + run.seed, run.size(1000), NOUNS, SCENES)
    return {"top1": model.top1(to_tensor(test.images), torch.from_numpy(test.labels), PROMPTS[prompts])}
