"""Learners that ask where a text comes from, and whether it is noise; see `foveal.recipes._clip_learners`."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from foveal.nn.cosine import unit_rows
from foveal.pretrain.base import full_precision, gather_features
from foveal.pretrain.nevlp import fit_noise_gmm, itc_per_sample, noise_adaptive_itc
from foveal.pretrain.prefix_conditioning import CAPTION, LABEL, PrefixConditioningObjective, PrefixTextEncoder
from foveal.recipes._clip_learners import Batch, Learner, caption_of

RECENT, WARM_UP = 1024, 1 / 3
"""Pairs that the mixture is fitted to; part of the steps before it is."""


class Prefix(Learner):
    """Captions and classes in a sentence get a prefix each, and negatives are of the own source alone.

    Cutting a batch by its sources does what batches of one source do, and needs no order of its own.
    """

    def build(self) -> None:
        self.objective, self.text = PrefixConditioningObjective(), PrefixTextEncoder.from_clip(self.model)
        self.share(self.objective.logit_scale)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        if dist.is_available() and dist.is_initialized():
            raise ValueError("prefix_conditioning cuts batches by source, which differ by process: start one process")
        samples, total = batch["samples"], batch["pixels"].new_zeros(())
        images = self.image_features(batch["pixels"])
        names = {name: i for i, name in enumerate(sorted({s.labels[0] for s in samples if s.labels}))}
        for source in (CAPTION, LABEL):
            rows = [i for i, sample in enumerate(samples) if (not sample.captions) == (source == LABEL)]
            if rows:
                texts = self.text(*self.tokenized([caption_of(samples[i]) for i in rows]), source)
                labels = [names[samples[i].labels[0]] if source == LABEL else -1 for i in rows]
                part = self.objective(images[rows], texts, torch.tensor(labels, device=images.device)).loss
                total = total + part * len(rows) / len(samples)
        return {"loss": total}


class Nevlp(Learner):
    """NEVLP's noise-adaptive contrast on CLIP's towers; its matching and generation need a Q-Former.

    The noise probability of a pair comes from the mixture that is fitted to the latest plain losses, its own included:
    so it needs no place for every pair of a data set, and works on a stream.
    """

    recent: Tensor

    def build(self) -> None:
        self.register_buffer("recent", torch.full((RECENT,), torch.nan))

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        texts = self.text_features([caption_of(sample) for sample in batch["samples"]])
        sides = (gather_features(side) for side in (self.image_features(batch["pixels"]), texts))
        image, text = map(unit_rows, sides)
        with full_precision(image):
            similar, temperature = image @ text.mT, 1 / self.model.logit_scale.exp()
        latest = torch.cat([self.recent, itc_per_sample(similar.detach(), temperature.detach()).to(self.recent)])
        noise = torch.zeros(len(similar), device=similar.device)
        if int(self.finished) >= WARM_UP * self.steps and not bool(latest.isnan().any()):
            noise = fit_noise_gmm(latest).noise_prob[-len(similar) :].to(noise)
        self.recent.copy_(latest[-RECENT:])
        return {"loss": noise_adaptive_itc(similar, noise, temperature).loss, "noise": noise.mean()}
