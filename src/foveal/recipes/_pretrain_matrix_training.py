"""Training in the matrix: the same steps, batches and optimiser for all."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from foveal.lab import Run
from foveal.recipes._clip_learners import Batch, Learner
from foveal.recipes._pretrain_matrix_data import Pairs, tiny_clip, tokenize, training
from foveal.train import FitConfig, FitReport, fit

STEPS, BATCH = 220, 48


def loss(learner: Learner, batch: Batch) -> Mapping[str, Tensor]:
    return learner.loss(batch)


def trained(
    run: Run,
    make: type[Learner],
    noise: float,
    data: Callable[[Run, float], Pairs] = training,
    shuffled: bool = False,
) -> tuple[Learner, FitReport]:
    """``data``: for `Run.shared`; its pictures are in step with its samples, unless they are shuffled."""
    pixels, samples = run.shared(data, noise)
    order = torch.randperm(len(samples), generator=run.generator("shuffle")) if shuffled else torch.arange(len(samples))

    def collate(rows: list[int]) -> dict[str, object]:
        return {"pixels": pixels[order[rows]], "samples": [samples[row] for row in rows]}

    learner = run.build(lambda: make(tiny_clip(), tokenize, run.steps(STEPS)))
    config = FitConfig(lr=1e-2, optimizer="muon", batch_size=BATCH, collate=collate, after_step=make.after_step)
    report = fit(learner, range(len(samples)), steps=run.steps(STEPS), loss=loss, config=config, on=run)
    return learner, report
