"""Fine-tuning of a model that reads words and regions on questions."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from foveal.lab import Run
from foveal.pretrain.uniter import UNITERForPretraining
from foveal.pretrain.uniter_model import INPUTS
from foveal.recipes import _regions_words as words
from foveal.recipes._regions import Regions
from foveal.train import FitConfig, fit

LABELLED = 2000


class Answerer(nn.Module):
    """The pooled vector -> one of the answers."""

    def __init__(self, model: UNITERForPretraining) -> None:
        super().__init__()
        self.uniter = model.uniter
        self.head = nn.Linear(model.uniter.config.hidden_size, len(words.ANSWERS))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head(self.uniter(*(batch[name] for name in INPUTS))[1])


def vqa(run: Run, model: UNITERForPretraining, data: Regions, test: Regions, steps: int) -> float:
    """Fine-tunes the model on one question about each of the first scenes; accuracy on later scenes in percent."""
    answerer = run.build(Answerer, model)

    def loss(answerer: Answerer, parts: Sequence[Tensor]) -> Tensor:
        return F.cross_entropy(answerer(data.batch(*parts[:2])), parts[2])

    ids, answers = words.asked(data.things[:LABELLED], run.rng("questions"))
    asked = TensorDataset(ids, torch.arange(len(ids)), answers)
    fit(answerer, asked, steps=run.steps(steps), loss=loss, config=FitConfig(lr=3e-3, optimizer="muon"), on=run)
    ids, answers = words.asked(test.things, run.rng("later questions"))
    with torch.no_grad():
        said = answerer(test.batch(ids, torch.arange(len(ids)))).argmax(1)
    return 100 * (said == answers).float().mean().item()
