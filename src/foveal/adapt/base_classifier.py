"""Estimators in scikit-learn's manner on cached features of a frozen encoder: what those with few labels share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from torch import Tensor

from foveal.nn.cosine import unit_rows

WARM_UP = 1e-5  # CoOp's learning rate in its first epoch


class FeatureClassifier(ClassifierMixin, BaseEstimator):
    """``fit``, ``predict``, ``predict_proba``, ``score`` and ``features`` for K classes that are known beforehand.

    Labels are 0 … K − 1; a class may be missing from the labels of `fit`. Tensors are answered with tensors,
    everything else with arrays. A subclass fits in ``_fit``, scores in ``_logits`` and names K in ``_num_classes``.
    """

    @abstractmethod
    def _fit(self, rows: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None: ...

    @abstractmethod
    def _logits(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]: ...

    @abstractmethod
    def _num_classes(self) -> int: ...

    def fit(self, X: Any, y: Any) -> FeatureClassifier:
        """Learn from features (n, d), not normalised, and their classes.

        Raises ValueError for shapes that do not fit, non-finite features and labels that are no class.
        """
        rows, classes = self._rows(X), self._num_classes()
        labels = torch.as_tensor(np.asarray(y))
        if labels.shape != (len(rows),) or labels.is_floating_point():
            raise ValueError(
                f"y {labels.dtype} {tuple(labels.shape)} must be {len(rows)} whole numbers, one for each row"
            )
        if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(
                f"y reaches from {int(labels.min())} to {int(labels.max())}: classes are 0 to {classes - 1}"
            )
        self._fit(rows, labels.long())
        self.classes_, self.n_features_in_ = np.arange(classes), rows.shape[1]
        return self

    def predict_proba(self, X: Any) -> Any:
        """Probabilities (n, K)."""
        return _like(X, self.decision_function(X).softmax(1))

    def predict(self, X: Any) -> Any:
        """The most probable class of each row."""
        return _like(X, self.decision_function(X).argmax(1))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy in [0, 1]."""
        return float(super().score(np.asarray(X), np.asarray(y), sample_weight))

    def features(self, X: Any) -> Any:
        """Unit rows (n, d), in which pictures are compared."""
        return _like(X, unit_rows(self._rows(X)))

    @torch.no_grad()
    def decision_function(self, X: Any) -> Float[Tensor, "n k"]:
        """The logits."""
        if not hasattr(self, "classes_"):
            raise NotFittedError(f"this {type(self).__name__} has not been fitted: call fit(X, y) first")
        rows = self._rows(X)
        if rows.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {rows.shape[1]} features, but {type(self).__name__} was fitted on {self.n_features_in_}"
            )
        return self._logits(rows)

    def _rows(self, X: Any) -> Float[Tensor, "n d"]:
        rows = torch.as_tensor(X).float()
        if rows.ndim != 2 or 0 in rows.shape:
            raise ValueError(f"X {tuple(rows.shape)} must be (pictures, features), none of them 0")
        if not bool(rows.isfinite().all()):
            raise ValueError("X holds NaN or infinity: check the image encoder's output")
        return rows

    def __sklearn_clone__(self) -> FeatureClassifier:
        """A new one, not fitted, on the same frozen parts: scikit-learn would copy a whole encoder."""
        return type(self)(**self.get_params(deep=False))


def train_as_coop(
    loss: Callable[[Int[Tensor, " b"]], Tensor],
    parameters: Sequence[Tensor],
    n: int,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    """`train_epochs` as CoOp and CLIP-Adapter are released: SGD, one epoch at 1e-5, then a cosine."""
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr={lr}: must be positive")

    def rate(now: float) -> float:
        epoch = math.floor(now)
        return WARM_UP / lr if epoch == 0 else 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))

    sgd = torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=5e-4)
    train_epochs(loss, sgd, n, epochs=epochs, batch_size=batch_size, rate=rate, generator=generator)


def _like(X: Any, rows: Tensor) -> Any:
    return rows if isinstance(X, Tensor) else rows.numpy()


def train_epochs(
    loss: Callable[[Int[Tensor, " b"]], Tensor],
    optimizer: torch.optim.Optimizer,
    n: int,
    *,
    epochs: int,
    batch_size: int,
    rate: Callable[[float], float],
    generator: torch.Generator,
) -> None:
    """Steps on shuffled batches of indices 0 … n − 1; only the optimiser's parameters get gradients.

    Args:
        rate: epochs so far (with a fraction inside an epoch) -> factor of the learning rate.

    Raises:
        ValueError: the loss is not finite; ``epochs`` or ``batch_size`` below 1.
    """
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs={epochs}, batch_size={batch_size}: must be at least 1")
    parameters: Sequence[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    rates = [group["lr"] for group in optimizer.param_groups]
    batches = math.ceil(n / batch_size)
    for epoch in range(epochs):
        order = torch.randperm(n, generator=generator)
        for step, batch in enumerate(order.split(batch_size)):
            for group, lr in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = lr * rate(epoch + step / batches)
            value = loss(batch)
            if not bool(value.isfinite()):
                raise ValueError(f"the loss is {value.item()} in epoch {epoch}: lower lr={rates[0]}")
            optimizer.zero_grad()
            value.backward(inputs=parameters)
            optimizer.step()
