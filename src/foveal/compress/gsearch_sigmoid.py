"""The falling sigmoid that describes a whole strategy of `gsearch` by steepness, centre and floor."""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

ROUNDING = 1e-12
"""A budget this close to an end is that end."""


def p_sigmoid(n_layers: int, steepness: float, center: float, floor: float = 0.0, start_layer: int = 2) -> list[float]:
    """Keeping rates that fall from 1 towards ``floor`` along a sigmoid: r = floor + (1 − floor)·σ(−k·(x − c)).

    Args:
        n_layers: decoder layers n.
        steepness: k ≥ 0; 0 keeps one rate from ``start_layer`` on, a large one makes a step.
        center: c, where the sigmoid is halfway; x runs from 0 at ``start_layer`` to 1 at the last layer.
        floor: rate that the deepest layers approach, in [0, 1].
        start_layer: first layer that may process fewer tokens; earlier ones keep all.

    Raises ValueError for a negative ``steepness``, a ``floor`` outside [0, 1] and a ``start_layer`` outside [0, n).
    """
    check_depth(n_layers, start_layer)
    _check_floor(floor)
    if not 0 <= steepness < math.inf:
        raise ValueError(f"steepness={steepness}: must be finite and at least 0, or the rates would rise with depth")
    if not math.isfinite(center):
        raise ValueError(f"center={center}: must be finite")
    falling = floor + (1 - floor) * expit(-steepness * (_depths(n_layers, start_layer) - center))
    return [1.0] * start_layer + falling.tolist()


def fit_center(n_layers: int, steepness: float, budget: float, floor: float = 0.0, start_layer: int = 2) -> float:
    """The centre at which the rates of `p_sigmoid` have the mean ``budget`` over all layers; there is exactly one.

    Raises ValueError for a ``steepness`` that is not positive and a ``budget`` that no centre can meet.
    """
    check_budget(n_layers, budget, floor, start_layer)
    if not 0 < steepness < math.inf:
        raise ValueError(f"steepness={steepness}: must be finite and positive, or the centre has no effect")
    depths = steepness * _depths(n_layers, start_layer)
    share = (budget * n_layers - start_layer - floor * len(depths)) / ((1 - floor) * len(depths))
    # with s = k·c the first of the falling rates is σ(s) and the last σ(s − k): the mean σ lies between them
    level = float(logit(share))
    shift = brentq(
        lambda s: float(expit(s - depths).mean()) - share, level - 1, level + steepness + 1, xtol=1e-14, rtol=1e-15
    )
    return shift / steepness


def check_depth(n_layers: int, start_layer: int) -> None:
    """ValueError unless ``start_layer`` is one of the layers."""
    if not 0 <= start_layer < n_layers:
        raise ValueError(f"start_layer={start_layer}: must be one of the layers 0 to {n_layers - 1}")


def check_budget(n_layers: int, budget: float, floor: float, start_layer: int) -> None:
    """ValueError unless rates between ``floor`` and 1 can have the mean ``budget``, both ends excluded."""
    check_depth(n_layers, start_layer)
    _check_floor(floor)
    least = (start_layer + floor * (n_layers - start_layer)) / n_layers
    if not least + ROUNDING < budget < 1 - ROUNDING:
        raise ValueError(
            f"budget={budget}: with {start_layer} of {n_layers} layers whole and floor={floor} the mean rate must lie "
            f"between {least:.4g} and 1, both excluded"
        )


def _check_floor(floor: float) -> None:
    if not 0 <= floor <= 1:
        raise ValueError(f"floor={floor}: a share of tokens to keep must lie in [0, 1]")


def _depths(n_layers: int, start_layer: int) -> np.ndarray:
    """Place of each layer from ``start_layer`` on: 0 for the first, 1 for the last."""
    return np.arange(n_layers - start_layer) / max(n_layers - 1 - start_layer, 1)
