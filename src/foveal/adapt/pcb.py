"""PCB: active learning for prompts, with the model's own guesses keeping the requested labels balanced.

Round 0 labels K random pictures (K: number of classes). Each later round takes candidates by a base method (entropy,
coreset or BADGE, as many as a share γ of the whole set; or the whole pool), guesses their classes with the learner so
far, and then

    k = the class with the fewest labels,   i = a random candidate guessed to be k (or any, if there is none)

again and again until K are chosen. Their true labels are bought, and a new learner starts from scratch.

Jihwan Bang, Sumyeong Ahn, Jae-Gil Lee: Active Prompt Learning in Vision Language Models. CVPR 2024, arXiv 2311.11178.

Departures: when no candidate is guessed to be k, the released code goes on asking for k, so that the rest of the round
is random; ``missing="advance"`` counts it as served. Its BADGE embeddings are misplaced in the last, smaller batch;
here they are not.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveal.adapt.base_coop import CoOpLearner as CoOpLearner
from foveal.adapt.base_coop import CoOpPrompt as CoOpPrompt
from foveal.adapt.base_coop import average_embedding as average_embedding
from foveal.adapt.base_coop import average_similarity as average_similarity
from foveal.adapt.pcb_acquisition import METHODS as METHODS
from foveal.adapt.pcb_acquisition import badge_embeddings as badge_embeddings
from foveal.adapt.pcb_acquisition import candidate_pool as candidate_pool
from foveal.adapt.pcb_acquisition import entropy_scores as entropy_scores
from foveal.adapt.pcb_acquisition import kcenter_greedy as kcenter_greedy
from foveal.adapt.pcb_acquisition import kmeanspp_select as kmeanspp_select

MISSING = ("official", "advance")


class Learner(Protocol):
    """What learns in a round: `CoOpLearner`, those of `foveal.adapt.baselines`, or any estimator with features."""

    def fit(self, x: Any, y: Any) -> Any: ...
    def predict_proba(self, x: Any) -> Float[Tensor, "b k"]: ...
    def features(self, x: Any) -> Float[Tensor, "b d"]: ...


@dataclass
class ActiveResult:
    """What happened, one entry for each round.

    Attributes:
        selected: indices into the pool that were labelled in this round, in the order of choice.
        labels: their labels.
        models: the learner of each round, fitted on all labels so far.
    """

    selected: list[Int[Tensor, " n"]] = field(default_factory=list)
    labels: list[Int[Tensor, " n"]] = field(default_factory=list)
    models: list[Any] = field(default_factory=list)


def pseudo_class_balance(
    pseudo_labels: Int[Tensor, " p"],
    label_counts: Int[Tensor, " k"],
    n_query: int,
    *,
    priority: Int[Tensor, " p"] | None = None,
    generator: torch.Generator | None = None,
    missing: str = "official",
) -> Int[Tensor, " n_query"]:
    """Choose among candidates so that the labelled set levels out, if the guesses are right.

    Args:
        pseudo_labels: the guessed class of each candidate.
        label_counts: TRUE labels so far of each class. They are known; guessing them as well would only add errors.
        n_query: how many to choose.
        priority: a permutation of 0 … P − 1; of the eligible candidates the one with the smallest value is taken. None
            draws one from ``generator``.
        missing: when no free candidate is guessed to be the rarest class, any free one is taken; "official" leaves the
            counts as they are, "advance" counts the class as served, so that the next class has its turn.

    Returns:
        Positions among the candidates in the order of choice, each at most once.

    Raises:
        ValueError: more to choose than candidates, a guess that is no class, a ``priority`` that is no permutation,
            unknown ``missing``.
    """
    pool = len(pseudo_labels)
    if missing not in MISSING:
        raise ValueError(f"missing={missing!r}: choose one of {', '.join(MISSING)}")
    if not 0 <= n_query <= pool:
        raise ValueError(f"n_query={n_query}: must be within 0 and the {pool} candidates")
    if pool and not 0 <= int(pseudo_labels.min()) <= int(pseudo_labels.max()) < len(label_counts):
        raise ValueError(f"pseudo_labels reach from {int(pseudo_labels.min())} to {int(pseudo_labels.max())}, "
                         f"but label_counts knows {len(label_counts)} classes")  # fmt: skip
    if priority is None:
        priority = torch.randperm(pool, generator=generator)
    elif priority.shape != (pool,) or not torch.equal(priority.sort().values, torch.arange(pool).to(priority)):
        raise ValueError(f"priority {tuple(priority.shape)} must be a permutation of 0 … {pool - 1}")

    counts = label_counts.tolist()
    order = priority.argsort().tolist()
    guesses = pseudo_labels.tolist()
    waiting: list[list[int]] = [[] for _ in counts]
    for position in reversed(order):  # so that the next one stands last
        waiting[guesses[position]].append(position)
    anyone = iter(order)
    chosen: list[int] = []
    taken: set[int] = set()
    while len(chosen) < n_query:
        rarest = counts.index(min(counts))
        while waiting[rarest] and waiting[rarest][-1] in taken:
            waiting[rarest].pop()
        if waiting[rarest]:
            position = waiting[rarest].pop()
            counts[rarest] += 1
        else:
            position = next(position for position in anyone if position not in taken)
            counts[rarest] += missing == "advance"
        taken.add(position)
        chosen.append(position)
    return torch.tensor(chosen, dtype=torch.int64)


def active_prompt_learning(
    make_learner: Callable[[], Learner],
    x: Any,
    oracle: Callable[[Int[Tensor, " n"]], Any],
    *,
    num_classes: int,
    method: str = "badge",
    rounds: int = 8,
    n_query: int | None = None,
    gamma: float = 0.1,
    generator: torch.Generator | None = None,
    balance: bool = True,
    missing: str = "official",
) -> ActiveResult:
    """Buy labels in rounds and learn from all of them anew after each.

    Args:
        make_learner: a fresh learner; called once a round, after the labels of the round are there.
        x: the pool, a tensor or array whose rows the learner takes (for `CoOpLearner`: image features).
        oracle: indices into ``x`` -> their true classes, 0 … num_classes − 1. No index is asked twice.
        method: whose candidates: one of `METHODS`.
        rounds: fewer happen when the pool is used up before; the last one then takes what is left.
        n_query: labels in a round; ``num_classes`` by default.
        gamma: candidates as a share of the whole of ``x`` (at least ``n_query``, at most all that are left).
        generator: of everything that is random here; learners have their own.
        balance: False takes the first ``n_query`` candidates, which is the base method alone.
        missing: see `pseudo_class_balance`.

    Raises:
        ValueError: options out of range, and labels of the oracle that do not fit.
    """
    n_query = num_classes if n_query is None else n_query
    _check(x, num_classes, method, rounds, n_query, gamma, missing)
    result, free = ActiveResult(), torch.ones(len(x), dtype=torch.bool)
    for _ in range(rounds):
        pool = free.nonzero().flatten()
        if len(pool) == 0:
            break
        wanted = min(n_query, len(pool))
        if not result.models:
            chosen = torch.randperm(len(pool), generator=generator)[:wanted]
        else:
            n_cand = max(wanted, int(min(gamma, 1) * len(x)))
            candidates, guesses = _candidates(result, x, pool, method, n_cand, generator)
            if balance:
                counts = torch.bincount(torch.cat(result.labels), minlength=num_classes)
                picked = pseudo_class_balance(guesses, counts, wanted, generator=generator, missing=missing)
                chosen = candidates[picked]
            elif method == "random":
                chosen = candidates[torch.randperm(len(candidates), generator=generator)[:wanted]]
            else:
                chosen = candidates[:wanted]
        indices = pool[chosen]
        result.selected.append(indices)
        result.labels.append(_bought(oracle, indices, num_classes))
        free[indices] = False
        learner = make_learner()
        learner.fit(_rows(x, torch.cat(result.selected)), torch.cat(result.labels))
        result.models.append(learner)
    return result


def _candidates(
    result: ActiveResult, x: Any, pool: Tensor, method: str, n_cand: int, generator: torch.Generator | None
) -> tuple[Int[Tensor, " c"], Int[Tensor, " c"]]:
    """Positions in the pool, and the classes that the latest learner takes them for."""
    model, rows = result.models[-1], _rows(x, pool)
    probs = torch.as_tensor(model.predict_proba(rows))
    features = labeled = None
    if method in ("coreset", "badge"):
        features = torch.as_tensor(model.features(rows))
    if method == "coreset":
        labeled = torch.as_tensor(model.features(_rows(x, torch.cat(result.selected))))
    found = candidate_pool(
        method, n_cand, probs=probs, features=features, labeled_features=labeled, generator=generator
    )
    return found, probs.argmax(1)[found]


def _rows(x: Any, indices: Int[Tensor, " n"]) -> Any:
    return x[indices] if isinstance(x, Tensor) else x[indices.numpy()]


def _bought(oracle: Callable[[Tensor], Any], indices: Int[Tensor, " n"], num_classes: int) -> Int[Tensor, " n"]:
    labels = torch.as_tensor(oracle(indices))
    if labels.shape != indices.shape or labels.is_floating_point():
        raise ValueError(f"oracle gave {labels.dtype} {tuple(labels.shape)}: must be {len(indices)} whole numbers")
    if not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"oracle gave {labels.tolist()}: classes are 0 to {num_classes - 1}")
    return labels.long()


def _check(x: Any, num_classes: int, method: str, rounds: int, n_query: int, gamma: float, missing: str) -> None:
    if not isinstance(x, Tensor | np.ndarray) or len(x) == 0:
        raise ValueError(f"x is {type(x).__name__}: must be a tensor or array with at least one row")
    for name, value, least in (("num_classes", num_classes, 2), ("rounds", rounds, 1), ("n_query", n_query, 1)):
        if value < least:
            raise ValueError(f"{name}={value}: must be at least {least}")
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose one of {', '.join(METHODS)}")
    if missing not in MISSING:
        raise ValueError(f"missing={missing!r}: choose one of {', '.join(MISSING)}")
    if not gamma >= 0:
        raise ValueError(f"gamma={gamma}: must be a share of the whole set, at least 0")
