"""What to compare a new method with when labels are few: estimators on cached features of a CLIP's frozen towers.

    ZeroShot      scale · cos(f, w_k)
    CLIPAdapter   scale · cos(r · relu(U relu(D f)) + (1 − r) f, w_k)               U and D are trained
    TipAdapter    scale · cos(f, w_k) + α Σ_i exp(−β (1 − f̂ · f̂_i)) 1[y_i = k]      nothing is
    TipAdapterF   the same with the f̂_i of the cache trained, not normalised again
    LinearProbe   multinomial logistic regression on f
    CoOpLearner   learnt context words (`foveal.adapt.base_coop`)

Class features w_k are unit rows, one for each class: `foveal.nn.zero_shot.build_zero_shot_classifier` makes them of
class names and of `ONE_TEMPLATE` or of the ensemble of 80 in `foveal.adapt.baselines_templates`. Features f are as the
image tower gives them, not normalised. α, β and the like are chosen by cross-validation on the labelled pictures
(scikit-learn's ``GridSearchCV`` takes these estimators), never on the test set.

Peng Gao et al.: CLIP-Adapter: Better Vision-Language Models with Feature Adapters. IJCV 2024, arXiv 2110.04544. Renrui
Zhang et al.: Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification. ECCV 2022, arXiv 2207.09519.

Departures: the released Tip-Adapter-F keeps the epoch that is best on the test set; here it is the last one. Pictures
seen under several augmentations are averaged by the caller, before `fit`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.adapt.base_classifier import FeatureClassifier, train_as_coop, train_epochs
from foveal.adapt.base_coop import CoOpLearner as CoOpLearner
from foveal.nn import linear_probe
from foveal.nn.cosine import unit_rows
from foveal.nn.zero_shot import zero_shot_logits

ONE_TEMPLATE = ("a photo of a {}.",)


class _WithClassFeatures(FeatureClassifier):
    """A classifier that starts from text: ``class_features`` (K, D) and ``scale``."""

    class_features: Float[Tensor, "k d"]
    scale: float

    def _num_classes(self) -> int:
        return len(self.class_features)

    def _rows(self, X: Any) -> Float[Tensor, "n d"]:
        rows = super()._rows(X)
        if rows.shape[1] != self.class_features.shape[1]:
            raise ValueError(f"X has {rows.shape[1]} features, class_features {self.class_features.shape[1]}")
        return rows

    def _text_logits(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return zero_shot_logits(rows, torch.as_tensor(self.class_features), self.scale)


class ZeroShot(_WithClassFeatures):
    """CLIP as it is. `fit` learns nothing and may be left out."""

    def __init__(self, class_features: Float[Tensor, "k d"], *, scale: float = 100.0) -> None:
        self.class_features, self.scale = class_features, scale

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def decision_function(self, X: Any) -> Float[Tensor, "n k"]:
        """The logits."""
        return self._text_logits(self._rows(X))

    def _fit(self, rows: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        pass

    _logits = _WithClassFeatures._text_logits


class CLIPAdapter(_WithClassFeatures):
    """A bottleneck without biases beside the image feature; it is mixed in with weight ``ratio``.

    Args:
        class_features: unit rows.
        reduction: the bottleneck has D // ``reduction`` units.
        ratio: of the adapter's output in the sum, 0 to 1.
        epochs, lr, batch_size, seed: as for `CoOpLearner`, whose training the release shares.
    """

    def __init__(
        self,
        class_features: Float[Tensor, "k d"],
        *,
        reduction: int = 4,
        ratio: float = 0.2,
        scale: float = 100.0,
        epochs: int = 200,
        lr: float = 0.002,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        self.class_features, self.reduction, self.ratio, self.scale = class_features, reduction, ratio, scale
        self.epochs, self.lr, self.batch_size, self.seed = epochs, lr, batch_size, seed

    def _fit(self, rows: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        width = rows.shape[1]
        if not 1 <= self.reduction <= width or not 0 <= self.ratio <= 1:
            raise ValueError(f"reduction={self.reduction}, ratio={self.ratio}: must be in 1 … {width} and in [0, 1]")
        generator = torch.Generator().manual_seed(self.seed)
        narrow = width // self.reduction
        self.down_ = _linear_weight(narrow, width, generator)
        self.up_ = _linear_weight(width, narrow, generator)
        train_as_coop(
            lambda batch: F.cross_entropy(self._logits(rows[batch]), labels[batch]),
            [self.down_, self.up_],
            len(rows),
            epochs=self.epochs,
            lr=self.lr,
            batch_size=self.batch_size,
            generator=generator,
        )

    def _logits(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        adapted = F.linear(F.linear(rows, self.down_).relu(), self.up_).relu()
        return self._text_logits(self.ratio * adapted + (1 - self.ratio) * rows)


class TipAdapter(_WithClassFeatures):
    """The labelled pictures as a cache of keys (unit features) and values (their classes).

    Args:
        class_features: unit rows.
        alpha: weight of the cache; 0 is zero-shot.
        beta: how fast the weight of a key falls with its distance.
    """

    def __init__(
        self, class_features: Float[Tensor, "k d"], *, alpha: float = 1.0, beta: float = 5.5, scale: float = 100.0
    ) -> None:
        self.class_features, self.alpha, self.beta, self.scale = class_features, alpha, beta, scale

    def _fit(self, rows: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        if not (math.isfinite(self.alpha) and self.alpha >= 0 and math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"alpha={self.alpha}, beta={self.beta}: must be ≥ 0 and > 0")
        self.keys_ = unit_rows(rows)
        self.values_ = F.one_hot(labels, self._num_classes()).float()

    def _logits(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        closeness = unit_rows(rows) @ self.keys_.T
        return self._text_logits(rows) + self.alpha * (self.beta * (closeness - 1)).exp() @ self.values_


class TipAdapterF(TipAdapter):
    """`TipAdapter` whose keys go on learning from the same pictures: AdamW, its rate falling in a cosine to 0."""

    def __init__(
        self,
        class_features: Float[Tensor, "k d"],
        *,
        alpha: float = 1.0,
        beta: float = 5.5,
        scale: float = 100.0,
        epochs: int = 20,
        lr: float = 0.001,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__(class_features, alpha=alpha, beta=beta, scale=scale)
        self.epochs, self.lr, self.batch_size, self.seed = epochs, lr, batch_size, seed

    def _fit(self, rows: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        super()._fit(rows, labels)
        self.keys_.requires_grad_()
        train_epochs(
            lambda batch: F.cross_entropy(self._logits(rows[batch]), labels[batch]),
            torch.optim.AdamW([self.keys_], self.lr, eps=1e-4),
            len(rows),
            epochs=self.epochs,
            batch_size=self.batch_size,
            rate=lambda epoch: 0.5 * (1 + math.cos(math.pi * epoch / self.epochs)),
            generator=torch.Generator().manual_seed(self.seed),
        )
        self.keys_.requires_grad_(False)


class LinearProbe(FeatureClassifier):
    """`foveal.nn.linear_probe.LinearProbe` for classes of which some may have no label yet: they get probability 0.

    Args:
        num_classes: K.
        C: the inverse of the penalty.
    """

    def __init__(self, num_classes: int, *, C: float = 0.316, max_iter: int = 1000) -> None:
        self.num_classes, self.C, self.max_iter = num_classes, C, max_iter

    def _num_classes(self) -> int:
        return self.num_classes

    def _fit(self, rows: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        self.probe_ = linear_probe.LinearProbe(self.C, self.max_iter).fit(rows, labels)

    def _logits(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        logits = torch.full((len(rows), self.num_classes), -torch.inf)
        logits[:, self.probe_.classes_] = torch.from_numpy(self.probe_.predict_proba(rows)).log().float()
        return logits


def _linear_weight(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """As ``nn.Linear`` starts, from the generator."""
    weight = torch.empty(rows, columns)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
    return weight.requires_grad_()
