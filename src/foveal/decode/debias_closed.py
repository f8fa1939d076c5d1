"""Debias, closed answers: label probabilities, and the affine map that takes the language prior out of them.

Yi-Fan Zhang et al., arXiv 2403.05262; see `debias` for the whole method.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, check_non_negative, validate_data
from torch import Tensor

Mode = Literal["diagonal", "identity"]


def surface_forms(tokenizer: Any, labels: Sequence[str]) -> list[list[int]]:
    """Ids of the tokens that say each label: those equal to it in lower case and without blanks ("Yes", " yes").

    Raises ValueError for a label that no single token says.
    """
    words = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    ids: dict[str, list[int]] = {label.lower().strip(): [] for label in labels}
    for token, word in enumerate(words):
        if (form := word.lower().strip()) in ids:
            ids[form].append(token)
    if missing := [label for label in labels if not ids[label.lower().strip()]]:
        raise ValueError(f"labels={missing}: no token says it; use labels of one token, such as 'A', 'B' or 'yes'")
    return [ids[label.lower().strip()] for label in labels]


def answer_step(logits: Float[Tensor, "t v"], label_ids: Sequence[Sequence[int]]) -> int:
    """The first step whose most probable token is a label: an answer may begin with a bracket or a blank.

    Raises ValueError when there is none.
    """
    labels = torch.tensor(sorted({token for ids in label_ids for token in ids}), device=logits.device)
    steps = torch.isin(logits.argmax(-1), labels).nonzero()
    if len(steps) == 0:
        raise ValueError(f"logits of {len(logits)} steps never favour a label: generate more tokens or use step 0")
    return int(steps[0])


def label_probs(
    logits: Float[Tensor, "b v"], label_ids: Sequence[Sequence[int]], aggregate: Literal["max", "sum"] = "max"
) -> Float[Tensor, "b k"]:
    """Probability of each of K labels among all V tokens; not normalised over the labels.

    Args:
        label_ids: token ids of the surface forms of each label.
        aggregate: how the forms of a label count, by the most probable one or all together.

    Raises ValueError for a label without ids, ids outside the vocabulary and an unknown ``aggregate``.
    """
    if aggregate not in ("max", "sum"):
        raise ValueError(f"aggregate={aggregate!r}: must be 'max' or 'sum'")
    if logits.ndim != 2 or not label_ids:
        raise ValueError(f"logits {tuple(logits.shape)} must be (B, V), and label_ids ({len(label_ids)}) not empty")
    for label, ids in enumerate(label_ids):
        if len(ids) == 0 or not all(0 <= token < logits.shape[1] for token in ids):
            raise ValueError(f"label_ids[{label}]={list(ids)}: needs ids in [0, {logits.shape[1]}), at least one")
    p = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    if bool(p.isnan().any()):
        raise ValueError("logits hold NaN, infinity or a row of −inf: run the model in bfloat16 or float32")
    forms = [p[:, list(ids)] for ids in label_ids]
    return torch.stack([form.amax(-1) if aggregate == "max" else form.sum(-1) for form in forms], -1)


def calibration_affine(
    p_free: Float[Tensor, " k"], mode: Mode = "diagonal", eps: float = 1e-4
) -> tuple[Float[Tensor, "k k"], Float[Tensor, " k"]]:
    """W and b of the map under which ``p_free`` would give equal scores.

    Args:
        p_free: image-free probabilities of the labels, of any positive sum.
        eps: added to the normalised probabilities, for labels that never appear.

    Raises ValueError for negative probabilities, a sum of 0, an unknown mode, and where a prior of 0 would divide.
    """
    prior = _prior(p_free, eps, 1, mode)
    if _is_diagonal(mode):
        return torch.diag(1 / prior), torch.zeros_like(prior)
    return torch.eye(len(prior), dtype=prior.dtype, device=prior.device), -prior


def post_hoc_debias(
    p: Float[Tensor, "b k"],
    p_free: Float[Tensor, " k"] | Float[Tensor, "b k"],
    mode: Mode = "diagonal",
    eps: float = 1e-4,
) -> Float[Tensor, "b k"]:
    """Calibrated scores of the labels; the answer is their argmax. Normalised in mode ``diagonal`` only.

    Args:
        p: label probabilities with the image, of any positive sum.
        p_free: those without it, of each sample or one for all.

    Raises ValueError for shapes that do not fit, negative probabilities and sums of 0.
    """
    p, p_free = _shares(p, "p", ndim=2), torch.as_tensor(p_free)
    if p_free.shape not in (p.shape, p.shape[1:]):
        raise ValueError(f"p_free {tuple(p_free.shape)} must be (K,) or (B, K) for p {tuple(p.shape)}")
    prior = _prior(p_free, eps, p_free.ndim, mode).to(p)
    if _is_diagonal(mode):  # every row has its own W = diag(1/prior)
        q = p / prior
        return q / q.sum(-1, keepdim=True)
    return p - prior


class PostHocDebias(TransformerMixin, BaseEstimator):
    """`post_hoc_debias` in scikit-learn's manner; takes tensors or arrays and gives back what it was given.

    ``fit`` keeps one prior for all samples; with image-free sets in the call, each sample has its own. Several sets
    (``none`` and ``unk``) are added. ``fit_transform(p)`` calibrates by the mean answer of the batch itself.
    """

    def __init__(self, mode: Mode = "diagonal", eps: float = 1e-4) -> None:
        self.mode = mode
        self.eps = eps

    def fit(self, *p_free: Any) -> "PostHocDebias":
        """Take the mean of image-free label probabilities (B, K) as the prior ``p_free_`` (K,), which sums to 1.

        What a pipeline passes as ``y``, None or B targets, is ignored. Raises ValueError without a set, and when sets
        differ in shape.
        """
        sets = [_array(p) for p in p_free if p is not None]
        if len(sets) > 1 and np.asarray(sets[-1]).shape == np.asarray(sets[0]).shape[:1]:
            sets.pop()  # targets
        if not sets:
            raise ValueError("p_free has no set: fit on the label probabilities of image-free prompts, (B, K)")
        _is_diagonal(self.mode)
        sets[0] = validate_data(self, sets[0], dtype=np.float64)
        mean = _added(sets).mean(0)
        _prior(mean, self.eps, 1, self.mode)  # what cannot be a prior is found here, not when it is used
        self.p_free_: Float[np.ndarray, " k"] = (mean / mean.sum()).numpy()
        return self

    def predict_proba(self, p: Any, *p_free: Any) -> Any:
        """Calibrated scores (B, K) of label probabilities (B, K), by the given image-free sets or the fitted prior.

        A set is (B, K), or (K,) for all samples.
        """
        sets = [_array(prior) for prior in p_free if prior is not None]
        if not sets:
            check_is_fitted(self, msg="no image-free probabilities: call fit(p_free) first, or pass p_free here")
            rows = validate_data(self, _array(p), dtype=np.float64, reset=False)
        else:
            rows = check_array(_array(p), dtype=np.float64)
        prior = _added(sets) if sets else torch.tensor(self.p_free_)
        q = post_hoc_debias(torch.tensor(rows), prior, self.mode, self.eps)
        return q.to(p) if isinstance(p, Tensor) else q.numpy()

    def transform(self, p: Any, *p_free: Any) -> Any:
        """`predict_proba` by the name that pipelines call."""
        return self.predict_proba(p, *p_free)

    def predict(self, p: Any, *p_free: Any) -> Any:
        """Index of the best label, (B,)."""
        return self.predict_proba(p, *p_free).argmax(-1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags


def _added(sets: Sequence[Any]) -> Float[Tensor, "*b k"]:
    arrays = [check_array(p, dtype=np.float64, ensure_2d=False) for p in sets]
    if len({p.shape for p in arrays}) > 1:
        raise ValueError(f"p_free has sets of {[p.shape for p in arrays]}: all must be (B, K) alike")
    for p in arrays:
        check_non_negative(p, "PostHocDebias: give probabilities, not logits")
    return torch.tensor(np.sum(arrays, axis=0))


def _array(p: Any) -> Any:
    return p.detach().cpu().double().numpy() if isinstance(p, Tensor) else p  # NumPy knows no bfloat16


def _prior(p_free: Tensor, eps: float, ndim: int, mode: Mode) -> Tensor:
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps={eps}: must be finite and at least 0")
    prior = _shares(p_free, "p_free", ndim) + eps
    if _is_diagonal(mode) and not bool((prior > 0).all()):
        raise ValueError(f"eps={eps}: must be positive, since a label of p_free never appears and would divide by 0")
    return prior


def _is_diagonal(mode: str) -> bool:
    if mode not in ("diagonal", "identity"):
        raise ValueError(f"mode={mode!r}: must be 'diagonal' or 'identity'")
    return mode == "diagonal"


def _shares(p: Tensor, name: str, ndim: int) -> Tensor:
    """``p`` as shares of 1 in its last dimension; ValueError for what cannot be."""
    p = torch.as_tensor(p)
    p = p if p.dtype == torch.float64 else p.float()
    if p.ndim != ndim or 0 in p.shape:
        raise ValueError(f"{name} {tuple(p.shape)} must have shape {('(K,)', '(B, K)')[ndim - 1]}, none of them 0")
    if not bool((p >= 0).all()) or not bool(p.isfinite().all()):
        raise ValueError(f"{name} holds negative values, NaN or infinity: give probabilities, not logits")
    if not bool((p.sum(-1) > 0).all()):
        raise ValueError(f"{name} has a row that sums to 0: no label has any probability there; check label_ids")
    return p / p.sum(-1, keepdim=True)
