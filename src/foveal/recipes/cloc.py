"""CLOC: does prompting patch tokens with boxes teach an image encoder where things are, at no cost to whole images?

Scenes of three coloured shapes (`_listed`), labelled by VESL as far as it can be run here: the truth stands in for the
model that describes and for the detector, and errs as they do (a fifth of the things missing, box edges off by 8 % of
the sides, scores off by 0.15, half an invented box a picture; pictures whose best box is below 0.3 are dropped). The
image tower is nano-clip's and stays as it is; one layer on its patch tokens, the text tower and what the methods add
learn from nothing (`_listed_tokens`).

``clip`` takes the texts of regions as further captions and has no boxes; ``roi`` gives them to the mean of the patches
in the box; ``cloc`` to the Prompter, which also grounds them; ``no_grounding`` leaves the last part out; ``mean`` is
``cloc`` with the paper's pooling over all positions. ``wrong_boxes`` is ``cloc`` with boxes of another image. ``clip``
and ``roi`` have one more layer in the image tower, as large as the Prompter. Same texts, steps and learning rate.

``region_top1``: naming the shape in a true box (chance 12.5 %; in ``clip`` its vector is the mean of the patches in the
box); ``region_r@1``: box to its text; ``jitter_loss``: points of top-1 that boxes off by a tenth of their sides cost;
``r@1``: image to caption.

Seeds 0 to 2 were seen in an earlier version, whose image towers learned from nothing; this one was tried on seed 100.
Regions are learnt, but better by the mean over the box: so few steps do not teach the Prompter to look there as well.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveal.lab import Claim, Recipe, Run
from foveal.pretrain.cloc import ClocObjective
from foveal.recipes._listed_tokens import JOINT, WIDTH
from foveal.recipes._region_labels import labelled, scores
from foveal.recipes._region_towers import IGNORE_ABOVE, REGIONS, Eyes, Reader, RoiTowers
from foveal.train import FitConfig, fit

SCENES, TEST, STEPS = 1200, 300, 150


def cloc(pool: str = "prompt", grounding: float = 1.0) -> ClocObjective:
    options: Any = {"lambda_ground": grounding, "ignore_above": IGNORE_ABOVE, "pool": pool}
    return ClocObjective(Eyes(), Reader(), WIDTH, JOINT, REGIONS, **options)


def arm(run: Run, make: Any = cloc, wrong: bool = False) -> dict[str, float]:
    frozen, batch = run.shared(labelled, SCENES)
    order = torch.randperm(len(frozen), generator=run.generator("wrong")) if wrong else torch.arange(len(frozen))

    def loss(model: Any, rows: tuple[Tensor]) -> Tensor:
        parts = {name: part[rows[0]] for name, part in batch.items()}
        parts["boxes"] = batch["boxes"][order[rows[0]]]
        return model(frozen[rows[0]], **parts).loss

    model = run.build(make)
    run.cost(model)
    config = FitConfig(lr=2e-3, after_step=lambda model: model.clamp_())
    fit(model, [(row,) for row in range(len(frozen))], steps=run.steps(STEPS), loss=loss, config=config, on=run)
    found = scores(run, model, TEST)
    if wrong:  # who does not look at boxes loses nothing by theirs, and that is no merit
        del found["jitter_loss"]
    return found


RECIPE = Recipe(
    paper="cloc",
    arms={
        "clip": partial(arm, make=partial(RoiTowers, boxes=False)),
        "roi": partial(arm, make=partial(RoiTowers, boxes=True)),
        "cloc": arm,
        "no_grounding": partial(arm, make=partial(cloc, grounding=0.0)),
        "mean": partial(arm, make=partial(cloc, pool="mean")),
        "wrong_boxes": partial(arm, wrong=True),
    },
    claims=[
        Claim("cloc", beats="clip", on="region_top1", by=10.0, published="better than CLIP on region recognition"),
        Claim("cloc", beats="clip", on="region_r@1", published="better than CLIP on region retrieval"),
        Claim("cloc", beats="clip", on="r@1", by=-2.0, published="no loss on image-level tasks"),
        Claim("cloc", beats="roi", on="region_top1"),
        Claim("cloc", beats="roi", on="jitter_loss", lower=True),
        Claim("cloc", beats="no_grounding", on="region_top1"),
    ],
    controls=("wrong_boxes",),
    seeds=(3, 4, 5),
    real="foveal train clip-like --objective cloc --data shards.tar --model openai/clip-vit-base-patch16 -o tuned",
    example="""
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModel
from foveal.pretrain.cloc import ClocObjective
from foveal.pretrain.cloc_towers import PatchTower, TextTower

small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
vision = CLIPVisionModel(CLIPVisionConfig(**small, image_size=32, patch_size=8))  # or from_pretrained(...)
text = CLIPTextModelWithProjection(CLIPTextConfig(**small, vocab_size=50, projection_dim=16, eos_token_id=49))
objective = ClocObjective(PatchTower(vision), TextTower(text), dim=32, embed_dim=16)
ids, several = torch.full((4, 8), 49), torch.full((4, 5, 8), 49)  # a caption and five regions for each image
boxes, valid = torch.tensor([0.1, 0.2, 0.5, 0.9]).expand(4, 5, 4), torch.ones(4, 5, dtype=torch.bool)
rng = torch.Generator().manual_seed(0)
objective(torch.randn(4, 3, 32, 32), ids, ids > 0, several, several > 0, boxes, valid, rng).loss.backward()
""",
)
