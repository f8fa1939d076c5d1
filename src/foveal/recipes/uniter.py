"""UNITER: what do its pre-training tasks teach one transformer that reads words and regions together?

Scenes of three coloured things at 48 px. A region is a jittered box with a random projection of its pixels as feature;
two of five are distractors; the detector's classes are one tenth wrong. All arms: the same 3-layer model and captions.
*none* is not pre-trained. *mlm_itm* has no region task, *joint* adds mrfr and mrc_kl but hides words and regions in the
same pass, *conditional* hides one side at a time, *wra* adds word–region alignment; all four take the same steps. The
controls: *shuffled* is *wra* on captions of other scenes, *longer* is *none* fine-tuned for all those steps as well.

``vqa``: accuracy after the same fine-tuning on questions about colours and existence. ``rank``: how often the matching
score finds the caption among nine that differ in colours or nouns. ``word_region``: how often a noun sends the largest
part of its mass to its own region, in the optimal transport between the last hidden states. ``mean``: of the three.
"""

from functools import partial

import torch

from foveal.lab import Claim, Recipe, Run
from foveal.nn.ot import cosine_cost, ipot
from foveal.pretrain.uniter import UNITERConfig, UNITERForPretraining
from foveal.pretrain.uniter_model import INPUTS
from foveal.recipes import _regions_words as words
from foveal.recipes._regions import WIDTH, Regions, scenes
from foveal.recipes._regions_training import pretrain, vqa

SIZES = UNITERConfig(
    words.VOCABULARY, 96, 3, 4, 192, words.LENGTH, dropout=0.0, img_dim=WIDTH, img_label_dim=1 + len(words.NOUNS)
)
STEPS, TUNING = 200, 70
WITHOUT_REGIONS, ALL = ("itm", "mlm"), ("itm", "mlm", "mrfr", "itm", "mlm", "mrc_kl")


def arm(run: Run, tasks=ALL, steps=STEPS, joint=False, wra_weight=0.0, shuffled=False, tuning=TUNING):
    data, test = run.shared(scenes, 0, 3000), run.shared(scenes, 10_000, 400)
    model = run.build(UNITERForPretraining, SIZES)
    run.cost(model, tokens=words.LENGTH + data.features.shape[1])
    if steps:
        pretrain(run, model, data, tasks, steps, joint, wra_weight, shuffled)
    scores = {"rank": rank(run, model, test), "word_region": word_region(model, test)}
    scores["vqa"] = vqa(run, model, data, test, tuning)
    return {**scores, "mean": sum(scores.values()) / 3}


@torch.no_grad()
def rank(run: Run, model: UNITERForPretraining, test: Regions) -> float:
    """Percent of scenes whose caption has the best matching score of ten."""
    rng = run.rng("wrong captions")
    texts = [(words.caption(things), *words.wrong_captions(things, rng, 9)) for things in test.things]
    ids = words.encode([text for row in texts for text in row])
    rows = torch.arange(len(texts)).repeat_interleave(10)
    parts = zip(ids.split(500), rows.split(500), strict=True)
    scores = torch.cat([model.forward_itm(test.batch(*part))[0].log_softmax(1)[:, 1] for part in parts])
    return 100 * (scores.view(-1, 10).argmax(1) == 0).float().mean().item()


@torch.no_grad()
def word_region(model: UNITERForPretraining, test: Regions) -> float:
    """Percent of nouns whose region receives the largest part of their mass."""
    ids = words.encode([words.caption(things) for things in test.things])
    batch = test.batch(ids, torch.arange(len(ids)))
    hidden, _ = model.uniter(*(batch[name] for name in INPUTS))
    cost = cosine_cost(hidden[:, : words.LENGTH], hidden[:, words.LENGTH :])
    plan = ipot(cost, batch["text_mask"], batch["region_mask"])
    nouns = torch.arange(3, 3 + 4 * 3, 4)  # [CLS] a red star and a blue heart and a green square
    return 100 * (plan[:, nouns].argmax(2) == torch.arange(3)).float().mean().item()


RECIPE = Recipe(
    paper="uniter",
    arms={
        "none": partial(arm, steps=0),
        "mlm_itm": partial(arm, tasks=WITHOUT_REGIONS),
        "joint": partial(arm, joint=True),
        "conditional": arm,
        "wra": partial(arm, wra_weight=0.1),
        "shuffled": partial(arm, wra_weight=0.1, shuffled=True),
        "longer": partial(arm, steps=0, tuning=STEPS + TUNING),
    },
    claims=[
        Claim("conditional", beats="joint", on="mean", published="meta-sum 399.97 against 396.51"),
        Claim("wra", beats="conditional", on="word_region", published="meta-sum 400.93 against 399.97"),
        Claim("wra", beats="none", on="vqa"),
    ],
    controls=("shuffled", "longer"),
    real="foveal run uniter",
    example="""
import torch
from foveal.pretrain.uniter import UNITERConfig, UNITERForPretraining, UNITERObjective, region_position_features

model = UNITERForPretraining(UNITERConfig(hidden_size=96, num_hidden_layers=2, img_dim=256))  # or a release's sizes
boxes = torch.tensor([[[10.0, 20, 200, 180], [5, 5, 60, 300]]])
batch = {
    "input_ids": torch.tensor([[101, 1037, 3899, 102]]), "text_mask": torch.ones(1, 4, dtype=torch.bool),
    "region_features": torch.randn(1, 2, 256), "region_mask": torch.ones(1, 2, dtype=torch.bool),
    "region_positions": region_position_features(boxes, torch.tensor([[320, 320]])), "targets": torch.tensor([1]),
}
UNITERObjective(model)("itm", batch).loss.backward()
""",
)
