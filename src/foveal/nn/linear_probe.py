"""Linear probe: how much of a task is linearly readable from frozen features, with the penalty tuned fairly.

    min_W,b   C · Σ_n cross-entropy_n + ½ ‖W‖²           (b is not penalised)          λ = 1/C

Radford et al. (CLIP), ICML 2021, arXiv 2103.00020, section 3.2 and appendix A.3. Features are not normalised; for ViTs
the paper takes those before the projection. The solver is scikit-learn's L-BFGS.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor


class LinearProbe:
    """Multinomial logistic regression in scikit-learn's manner; ``C`` is the inverse of the penalty λ.

    Two classes share one weight vector (as in scikit-learn), more have one each.
    """

    def __init__(self, C: float = 0.316, max_iter: int = 1000) -> None:
        if not 0 < C < math.inf:
            raise ValueError(f"C={C}: must be positive and finite; C is 1/λ, weak penalties have a large C")
        if max_iter < 1:
            raise ValueError(f"max_iter={max_iter}: must be at least 1")
        self.C, self.max_iter = C, max_iter
        self._model: Any = None

    def fit(
        self, X: Float[Tensor, "m d"] | Float[np.ndarray, "m d"], y: Int[Tensor, " m"] | Sequence[int]
    ) -> "LinearProbe":
        """Find the optimum; scikit-learn warns when ``max_iter`` steps did not reach it.

        Raises ValueError for shapes that do not fit, non-finite features and fewer than two classes.
        """
        from sklearn.linear_model import LogisticRegression  # half a second

        # the default tolerance stops visibly short of the optimum on un-normalised features
        model = LogisticRegression(C=self.C, max_iter=self.max_iter, tol=1e-6)
        self._model = model.fit(_features(X), _labels(y))
        return self

    @property
    def classes_(self) -> Int[np.ndarray, " k"]:
        """The labels seen in `fit`, sorted."""
        return self._fitted().classes_

    def predict(self, X: Float[Tensor, "m d"] | Float[np.ndarray, "m d"]) -> Int[np.ndarray, " m"]:
        """The most probable label of each row, as given to `fit`."""
        return self._fitted().predict(_features(X))

    def predict_proba(self, X: Float[Tensor, "m d"] | Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m k"]:
        """Probabilities; column k belongs to ``classes_[k]``."""
        return self._fitted().predict_proba(_features(X))

    def score(self, X: Float[Tensor, "m d"] | Float[np.ndarray, "m d"], y: Int[Tensor, " m"] | Sequence[int]) -> float:
        """Accuracy in [0, 1]."""
        return float(self._fitted().score(_features(X), _labels(y)))

    def _fitted(self) -> Any:
        if self._model is None:
            raise ValueError("this LinearProbe has not been fitted: call fit(X, y) first")
        return self._model


def probe_lambda_search(
    score: Callable[[float], float],
    *,
    low: float = -6.0,
    high: float = 6.0,
    coarse: float = 2.0,
    fine: float = 0.125,
) -> tuple[float, dict[float, float]]:
    """The exponent e for which ``score(10**e)`` is best, and all scores by exponent. Ties go to the smaller exponent.

    First the grid ``low, low + coarse, …, high``; then the step is halved down to ``fine``, and each time the two
    neighbours of the best exponent so far are tried. ``score(λ)`` is typically the validation accuracy of
    ``LinearProbe(C=1/λ)``; refit on training and validation data afterwards.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"low={low}, high={high}: must be finite exponents with low ≤ high")
    if not 0 < fine <= coarse < math.inf:
        raise ValueError(f"fine={fine}, coarse={coarse}: must be steps with 0 < fine ≤ coarse")
    scores: dict[float, float] = {}

    def try_exponent(exponent: float) -> None:
        if low <= exponent <= high and exponent not in scores:
            scores[exponent] = float(score(10.0**exponent))
            if math.isnan(scores[exponent]):
                raise ValueError(f"score(1e{exponent:g}) is NaN: cannot be compared")

    def best() -> float:
        return max(scores, key=lambda exponent: (scores[exponent], -exponent))

    for index in range(math.floor((high - low) / coarse + 1e-9) + 1):
        try_exponent(low + index * coarse)
    step = coarse
    while step > fine:
        step = max(step / 2, fine)
        centre = best()
        try_exponent(centre - step)
        try_exponent(centre + step)
    return best(), scores


def _features(X: Any) -> Float[np.ndarray, "m d"]:
    """float64, in which the solver reaches its optimum."""
    if isinstance(X, Tensor):
        X = X.detach().cpu().double()  # NumPy knows no bfloat16
    X = np.asarray(X, dtype=np.float64)
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"X {X.shape} must be (samples, features), none of them 0")
    if not np.isfinite(X).all():
        raise ValueError("X holds NaN or infinity: check the encoder's output")
    return X


def _labels(y: Any) -> Int[np.ndarray, " m"]:
    labels = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"y must be whole numbers of shape (samples,), not {labels.dtype} {labels.shape}")
    return labels
