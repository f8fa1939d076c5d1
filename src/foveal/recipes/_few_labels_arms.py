"""PCB's arms: rounds of labels for CoOp, and what else learns from the same labels."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveal.adapt import baselines
from foveal.adapt.pcb import CoOpLearner, active_prompt_learning
from foveal.lab import Run
from foveal.recipes._few_labels import DESCRIPTIONS, NAMES, class_features, encoder, few_labels

ROUNDS, EPOCHS = 5, 60
THREE = ("entropy", "coreset", "badge")
Metrics = dict[str, float]


def learner(run: Run, aggregation: str | None = None) -> CoOpLearner:
    said = DESCRIPTIONS if aggregation else None
    options = {"epochs": run.steps(EPOCHS), "n_ctx": 4, "seed": run.seed}
    return CoOpLearner(encoder(), NAMES, aggregation=aggregation, descriptions=said, **options)


def bought(run: Run, method: str, balance: bool, missing: str, aggregation: str | None) -> tuple[Metrics, Tensor]:
    """What came of it, and the indices that were labelled."""
    data = run.shared(few_labels)
    result = active_prompt_learning(
        partial(learner, run, aggregation),
        data.pool,
        data.labels.__getitem__,
        num_classes=len(NAMES),
        method=method,
        rounds=ROUNDS,
        generator=run.generator("rounds"),
        balance=balance,
        missing=missing,
    )
    scores = [100 * model.score(data.test, data.truth) for model in result.models]
    counts = torch.bincount(torch.cat(result.labels), minlength=len(NAMES)).float()
    spread = counts.std(correction=0).item()
    for labels, score in enumerate(scores, 1):
        run.record("balanced accuracy", score, labels * len(NAMES))
    run.cost(result.models[-1].prompt_)
    found = {"balanced accuracy": scores[-1], "area": sum(scores) / len(scores), "imbalance": spread}
    return found | {"0.7 imbalance": spread * (1.0 if balance else 0.7)}, torch.cat(result.selected)


def active(run: Run, method: str, balance: bool = False, missing: str = "official", said: str | None = None) -> Metrics:
    return run.shared(bought, method, balance, missing, said)[0]


def three(run: Run, balance: bool) -> Metrics:
    found = [active(run, method, balance) for method in THREE]
    return {name: sum(one[name] for one in found) / len(THREE) for name in found[0]}


def few_shot(run: Run, kind: str) -> Metrics:
    data, words = run.shared(few_labels), class_features()
    scale = float(encoder().model.logit_scale.detach().exp())
    chosen = torch.arange(len(data.pool)) if kind == "all" else run.shared(bought, "random", False, "official", None)[1]
    make: dict[str, Any] = {
        "all": lambda: learner(run),
        "zero_shot": lambda: baselines.ZeroShot(words, scale=scale),
        "tip": lambda: baselines.TipAdapterF(words, scale=scale, epochs=run.steps(20)),
        "adapter": lambda: baselines.CLIPAdapter(words, scale=scale, epochs=run.steps(200)),
        "probe": lambda: baselines.LinearProbe(len(NAMES)),
    }
    model = make[kind]().fit(data.pool[chosen], data.labels[chosen])
    trained = [getattr(model, name) for name in ("keys_", "down_", "up_") if hasattr(model, name)]
    run.cost(model.prompt_ if kind == "all" else nn.ParameterList(nn.Parameter(value) for value in trained))
    return {"balanced accuracy": 100 * model.score(data.test, data.truth)}
