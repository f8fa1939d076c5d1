"""Which objective to pre-train with: the same data, the same small towers and the same steps, and eight questions.

Pictures of two shapes at 48 px with captions of which the long ones do not fit the text tower, regions as a detector
with stated errors finds them, and labels for every sixth picture (`_pretrain_matrix_data`). Every objective trains the
same `CLIPModel` from the same weights, in batches of the same samples; what it needs beside the two towers is its own
and counted. The learners are those of ``foveal train clip-like``; beside them UNITER reads patches and words in one
BERT, and *tldr* is CLIP on the quarter that TL;DR leaves, its captions with generated ones appended. Each question is
answered by the objective's own means where it has some (`_pretrain_matrix_places`), else by the vectors of class token
and patches.

``more_texts`` is CLIP that reads, as caption, any sentence or region phrase of the picture, drawn at every step: what
DreamLIP, CLOC and GRAIN gain over it is not owed to the texts alone. ``shuffled`` learns from texts of other pictures.
``noise``: retrieval after a second training in which two of five pictures have all texts and regions of another.
DITO's towers have half of the steps; UNITER, which has to learn what a patch is from matching alone, learns little.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from foveal.lab import Claim, Recipe, Run
from foveal.recipes._clip_learners import Batch, Learner, caption_of, draws
from foveal.recipes._clip_learners_all import LEARNERS
from foveal.recipes._pretrain_matrix_cost import step_bytes
from foveal.recipes._pretrain_matrix_data import Pairs, training
from foveal.recipes._pretrain_matrix_scores import retrieval, scores
from foveal.recipes._pretrain_matrix_tldr import reduced
from foveal.recipes._pretrain_matrix_training import BATCH, trained
from foveal.recipes._pretrain_matrix_uniter import Uniter

NOISE = 0.4
COLUMNS = {
    "retrieval": "R@1 of captions and later pictures, mean of both directions",
    "zero-shot": "naming the shape in a picture of one, by prompts; half of the six shapes never had a label",
    "localisation": "the patch that fits a phrase best shows the thing",
    "regions": "naming the shape in a true box",
    "long captions": "R@1 of descriptions, of which the text tower reads the first 11 words",
    "hard negatives": "the true caption beats the one with two colours swapped (chance is 50)",
    "noise": "retrieval when 40 % of the training pictures have the texts of another",
    "probe": "linear classifier of the shape on frozen patch tokens",
}


class MoreTexts(Learner):
    """CLIP's loss with any text of the picture."""

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        rng, said = draws(), []
        for sample in batch["samples"]:
            sentences = [sentence for text in sample.captions for sentence in text.split(". ")] or [caption_of(sample)]
            texts = sentences + [region.caption or "" for region in sample.regions]
            said.append(texts[int(torch.randint(len(texts), (), generator=rng))])
        return {"loss": self.objective(self.image_features(batch["pixels"]), self.text_features(said)).loss}


def arm(
    run: Run, make: type[Learner], data: Callable[[Run, float], Pairs] = training, shuffled: bool = False
) -> dict[str, float]:
    learner, report = trained(run, make, 0.0, data, shuffled)
    run.cost(learner)
    found = scores(run, learner) | {"s/step": report.seconds / report.steps}
    if not shuffled:  # whose texts are all wrong already
        found["noise"] = retrieval(run, trained(run, make, NOISE, data)[0])
    pixels, samples = run.shared(training, 0.0)
    return found | {"MiB": step_bytes(learner, {"pixels": pixels[:BATCH], "samples": samples[:BATCH]}) / 2**20}


RECIPE = Recipe(
    paper="_pretrain_matrix",
    arms={
        **{name: partial(arm, make=make) for name, make in LEARNERS.items()},
        "uniter": partial(arm, make=Uniter),
        "tldr": partial(arm, make=Learner, data=reduced),
        "more_texts": partial(arm, make=MoreTexts),
        "shuffled": partial(arm, make=Learner, shuffled=True),
    },
    claims=[
        Claim("clip", beats="shuffled", on="retrieval"),
        Claim("align", beats="clip", on="noise", published="scale makes up for noise; smoothed targets"),
        Claim("filip", beats="clip", on="localisation", published="word-patch maps localise class names"),
        Claim("dreamlip", beats="clip", on="long captions", published="COCO R@1 35.7 against 14.8 (CC3M)"),
        Claim("prefix_conditioning", beats="clip", on="zero-shot", published="better average zero-shot accuracy"),
        Claim("cloc", beats="clip", on="regions", published="better than CLIP on region recognition"),
        Claim("grain", beats="clip", on="zero-shot", published="better than CLIP on 11 classification sets"),
        Claim("dito", beats="clip", on="regions", published="+6.5 mask AP of rare classes on LVIS"),
        Claim("nevlp", beats="clip", on="noise"),
        Claim("m3i", beats="clip", on="probe", published="better than single objectives, ViT-B"),
        Claim("uniter", beats="clip", on="hard negatives"),
        Claim("tldr", beats="clip", on="noise", published="CC3M at 24 % trains as well as all of it"),
    ],
    controls=("more_texts", "shuffled"),
    real="foveal train clip-like --objective filip --data shards.tar --model openai/clip-vit-base-patch16 -o tuned",
)
