"""CLIP: does choosing the right caption in the batch teach an image tower more, per step, than predicting its words?

(a) World scenes of one or two things at 48 px with their short captions; zero-shot classification of 24 nouns on
single things. *bag_of_words* has the same image tower and a head with as many parameters as CLIP's text tower, which
predicts the caption's words. *clip_half* has half the steps, *shuffled* learns from captions of other images.
(b) The same trained CLIP with bare class names, one prompt, and an ensemble of eight.

All arms of a part share data, seeds, steps and learning rate (1e-3, the best of 5e-4, 1e-3 and 2e-3 for both losses on
seed 100, which is not reported).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.data.word_ids import WordIds
from foveal.lab import Claim, Recipe, Run, figures
from foveal.nn.text import TextTransformer
from foveal.nn.vit import VisionTransformer
from foveal.pretrain.clip import CLIPObjective, build_zero_shot_classifier, zero_shot_logits
from foveal.train import FitConfig, count_parameters, fit

SPRITES = ("dog", "cat", "fish", "apple", "banana", "car", "bicycle", "hammer", "guitar", "shoe", "tree", "chair")
NOUNS = (*world.SHAPES, *SPRITES)
SCENES = world.WorldConfig(size=48, things=(1, 2), nouns=NOUNS, min_visible=0.6)
STEPS, LENGTH, WIDTH = 300, 32, 96
PROMPTS = {"bare": ("{}",), "one": ("a picture of a {}",), "all": tuple(t.format("a {}") for t in world.TEMPLATES)}


class Towers(nn.Module):
    """An image tower, and a text tower with CLIP's loss or a head of that size that predicts the caption's words."""

    def __init__(self, words: WordIds, contrastive: bool) -> None:
        super().__init__()
        self.words = words
        self.image = VisionTransformer(48, 12, WIDTH, 4, 4, output_dim=WIDTH)
        self.text: nn.Module = TextTransformer(LENGTH, len(words), WIDTH, 2, 4, output_dim=WIDTH)
        self.objective = CLIPObjective() if contrastive else None
        if not contrastive:
            hidden = count_parameters(self.text) // (WIDTH + len(words))
            self.text = nn.Sequential(nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, len(words)))

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        if self.objective is not None:
            return self.objective(self.image(pixels), self.text(ids)).loss
        said = torch.zeros(len(ids), len(self.words)).scatter_(1, ids, 1.0)[:, 2:-1]  # without padding and end
        return F.binary_cross_entropy_with_logits(self.text(self.image(pixels))[:, 2:-1], said)

    def clamp(self) -> None:
        if self.objective is not None:
            self.objective.logit_scale.clamp_()

    @torch.no_grad()
    def class_scores(self, pixels: Tensor, prompts: tuple[str, ...]) -> Tensor:
        if self.objective is None:  # log-probability of the class's name, which is one word
            return F.logsigmoid(self.text(self.image(pixels)))[:, self.words.encode(NOUNS)[:, 0]]
        encode = lambda texts: self.text(torch.from_numpy(self.words.encode(texts, LENGTH)))  # noqa: E731
        return zero_shot_logits(self.image(pixels), build_zero_shot_classifier(encode, NOUNS, prompts))


def trained(run: Run, contrastive: bool, steps: int, shuffled: bool, lr: float = 1e-3) -> Towers:
    pairs = world.pairs(run.seed, run.size(6000), SCENES)
    words = WordIds.of([*pairs.captions, *NOUNS])
    ids = torch.from_numpy(words.encode(pairs.captions, LENGTH))
    ids = ids[torch.randperm(len(ids), generator=run.generator("shuffle"))] if shuffled else ids
    model = run.build(Towers, words, contrastive)
    config = FitConfig(lr=lr, batch_size=128, after_step=Towers.clamp)
    fit(model, TensorDataset(to_tensor(pairs.images), ids), steps=run.steps(steps), config=config, on=run)
    return model


def scenes(run: Run, contrastive: bool = True, steps: int = STEPS, shuffled: bool = False, prompts: str = "all"):
    """Zero-shot accuracy in percent over 24 nouns on scenes of one thing."""
    model = run.shared(trained, contrastive, steps, shuffled)
    run.cost(model)
    test = world.classify(10_000 + run.seed, run.size(1000), NOUNS, SCENES)
    found = model.class_scores(to_tensor(test.images), PROMPTS[prompts]).argmax(1)
    if run.arm == "clip":
        run.figure("zero_shot.png", figures.picture_grid(test.images[:12], [NOUNS[i] for i in found[:12]], columns=6))
    return {"top1": 100 * (found == torch.from_numpy(test.labels)).float().mean().item()}


RECIPE = Recipe(
    paper="clip",
    arms={
        "bag_of_words": partial(scenes, contrastive=False),
        "clip": scenes,
        "clip_half": partial(scenes, steps=STEPS // 2),
        "shuffled": partial(scenes, shuffled=True),
        "bare_names": partial(scenes, prompts="bare"),
        "one_prompt": partial(scenes, prompts="one"),
    },
    claims=[
        Claim("clip", beats="bag_of_words", on="top1", published="76.2 % zero-shot ImageNet top-1 for ViT-L/14@336"),
        Claim("clip_half", beats="bag_of_words", on="top1", published="about 4 times less compute"),
        Claim("clip", beats="bare_names", on="top1", published="almost 5 points from prompts and their ensemble"),
    ],
    controls=("shuffled",),
    real="foveal run clip",
)
