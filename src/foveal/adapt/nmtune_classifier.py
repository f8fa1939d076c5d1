"""NMTune on features that are computed already, in scikit-learn's manner."""

from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from foveal.adapt.nmtune_terms import WEIGHTS, NMTuneMLP, check_rows, nmtune_loss

Rows = TypeVar("Rows", Tensor, np.ndarray)
METHODS = ("nmtune", "mlp", "lp")
STD = 0.3
"""Mean standard deviation of a dimension after rescaling."""


class NMTuneClassifier(ClassifierMixin, TransformerMixin, BaseEstimator):
    """A linear classifier on reshaped features; tensors give tensors, arrays give arrays.

    Args:
        num_classes: labels are whole numbers below it; None takes whatever labels there are as the classes.
        method: nmtune; mlp is the same network without regularisers, lp the classifier alone (a good ``lr`` is 1e-2).
        epochs, lr, weight_decay, batch_size: of AdamW with a cosine schedule.
        weights, k: see `foveal.adapt.nmtune.nmtune_loss`.
        ratio: hidden width over the number of dimensions.
        rescale: divide features by one number, so that the mean standard deviation of a dimension is 0.3.
        seed: of initial weights and the order of rows; the same seed gives the same classifier.

    After `fit`: ``classes_``, ``mlp_`` (None for lp), ``head_``, ``divisor_``, ``n_features_in_``.
    """

    classes_: np.ndarray
    mlp_: NMTuneMLP | None
    head_: nn.Linear

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        method: Literal["nmtune", "mlp", "lp"] = "nmtune",
        epochs: int = 30,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        batch_size: int = 64,
        weights: tuple[float, float, float] = WEIGHTS,
        k: int = 1,
        ratio: float = 4,
        rescale: bool = False,
        seed: int = 0,
    ) -> None:
        self.num_classes, self.method, self.epochs, self.lr = num_classes, method, epochs, lr
        self.weight_decay, self.batch_size, self.weights, self.k = weight_decay, batch_size, weights, k
        self.ratio, self.rescale, self.seed = ratio, rescale, seed

    def fit(
        self,
        features: Float[Tensor, "n d"] | Float[np.ndarray, "n d"],
        labels: Int[Tensor, " n"] | np.ndarray,
        features_second_view: Float[Tensor, "n d"] | Float[np.ndarray, "n d"] | None = None,
    ) -> "NMTuneClassifier":
        """Train; ``features_second_view`` holds the same pictures under another augmentation, row by row.

        Raises ValueError for bad settings, shapes that do not fit, non-finite features, fewer than 2 rows or classes,
        labels that are no classes, and training that diverges.
        """
        self._check_settings()
        unchecked = {"dtype": FLOATS, "ensure_all_finite": False}  # scikit-learn would call all of them X
        rows, targets = validate_data(self, _array(features), _array(labels), ensure_min_samples=2, **unchecked)
        first = torch.tensor(rows)
        check_rows(first, "features")
        classes = torch.from_numpy(self._classes(targets))
        views = [first]
        if features_second_view is not None:
            views.append(torch.tensor(validate_data(self, _array(features_second_view), reset=False, **unchecked)))
            views[1] = views[1].to(first.dtype)
            check_rows(views[1], "features_second_view")
            if views[1].shape != first.shape:
                shapes = f"{tuple(views[1].shape)} must have the shape of features {tuple(first.shape)}"
                raise ValueError(f"features_second_view {shapes}")
        if not 1 <= self.k <= min(first.shape[1], self.batch_size):
            raise ValueError(f"k={self.k}: must lie in [1, {min(first.shape[1], self.batch_size)}]")
        self.divisor_ = self._divisor(first)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            dim, outputs = first.shape[1], len(self.classes_)
            self.mlp_ = None if self.method == "lp" else NMTuneMLP(dim, ratio=self.ratio).to(first.dtype)
            self.head_ = nn.Linear(dim, outputs, dtype=first.dtype)
        self._train([view / self.divisor_ for view in views], classes)
        return self

    def _train(self, views: list[Float[Tensor, "n d"]], classes: Int[Tensor, " n"]) -> None:
        parts = nn.ModuleList(part for part in (self.mlp_, self.head_) if part is not None).train()
        optimizer = torch.optim.AdamW(parts.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        generator = torch.Generator().manual_seed(self.seed)
        steps = self.epochs * sum(len(part) > 1 for part in torch.arange(len(classes)).split(self.batch_size))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(self.epochs):
            for batch in torch.randperm(len(classes), generator=generator).split(self.batch_size):
                if len(batch) < 2:  # batch norm and covariance need two
                    continue
                loss = self._loss([view[batch] for view in views], classes[batch])
                if not bool(loss.isfinite()):
                    raise ValueError(f"the loss is {loss.item()}: lower lr={self.lr}, or set rescale=True")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        parts.eval().requires_grad_(False)

    def _loss(self, views: list[Float[Tensor, "n d"]], classes: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        features, labels = torch.cat(views), classes.repeat(len(views))
        reshaped = features if self.mlp_ is None else self.mlp_(features)
        logits = self.head_(reshaped)
        if self.method != "nmtune":
            return F.cross_entropy(logits, labels)
        own = (views[0], reshaped[-len(classes) :])  # the second view, where there is one
        k = min(self.k, len(features))  # the last batch may be small
        return nmtune_loss(logits, labels, features, reshaped, weights=self.weights, k=k, consistency_target=own).loss

    def transform(self, X: Rows) -> Rows:
        """z, the reshaped features; for lp the features (rescaled, if asked for)."""
        return _like(X, self._reshaped(X))

    def predict_proba(self, X: Rows) -> Rows:
        """Probabilities, (N, classes); column j belongs to ``classes_[j]``."""
        return _like(X, self._logits(X).softmax(1))

    def predict(self, X: Any) -> Any:
        """The most probable class of each row."""
        best = self._logits(X).argmax(1)
        found = self.classes_[best.numpy()]
        return _like(X, torch.from_numpy(found)) if np.issubdtype(found.dtype, np.integer) else found

    def _logits(self, X: Any) -> Float[Tensor, "n c"]:
        z = self._reshaped(X)
        return self.head_(z)

    def _reshaped(self, X: Any) -> Float[Tensor, "n d"]:
        check_is_fitted(self)
        rows = torch.tensor(validate_data(self, _array(X), reset=False, dtype=FLOATS))
        rows = rows.to(self.head_.weight.dtype) / self.divisor_
        return rows if self.mlp_ is None else self.mlp_(rows)

    def _classes(self, labels: np.ndarray) -> np.ndarray:
        """The place of every label in ``classes_``."""
        check_classification_targets(labels)
        if self.num_classes is None:
            self.classes_, found = np.unique(labels, return_inverse=True)
            if len(self.classes_) < 2:
                raise ValueError("labels hold one class: a classifier needs at least two")
            return found
        self.classes_ = np.arange(self.num_classes)
        if not np.isin(labels, self.classes_).all():
            wrong = labels[~np.isin(labels, self.classes_)][0]
            raise ValueError(
                f"labels hold {wrong}; with num_classes={self.num_classes} they are 0 … {self.num_classes - 1}"
            )
        return labels.astype(np.int64)

    def _divisor(self, features: Float[Tensor, "n d"]) -> float:
        if not self.rescale:
            return 1.0
        spread = float(features.std(0).mean())
        if spread == 0:
            raise ValueError("features are the same in every row: they cannot be rescaled, nor classified")
        return spread / STD

    def _check_settings(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}: must be one of {', '.join(METHODS)}")
        if self.num_classes is not None and self.num_classes < 2:
            raise ValueError(f"num_classes={self.num_classes}: must be at least 2")
        for name, least in (("epochs", 1), ("batch_size", 2), ("ratio", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")
        if not self.lr > 0 or not self.weight_decay >= 0:
            raise ValueError(f"lr={self.lr}, weight_decay={self.weight_decay}: must be above 0 and at least 0")


FLOATS = (np.float64, np.float32)


def _array(values: Any) -> Any:
    """NumPy knows no bfloat16."""
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()


def _like(given: Any, result: Tensor) -> Any:
    return result.to(given.device) if isinstance(given, Tensor) else result.numpy()
