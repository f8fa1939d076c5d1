"""Learning-rate schedules as pure functions of the step, so that a resumed run needs no saved schedule."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def lr_factor(step: int, steps: int, warmup: float = 0.05, schedule: str = "cosine") -> float:
    """What the peak learning rate is multiplied with at ``step`` (0-based) of ``steps``, in (0, 1].

    With w = round(warmup · steps): (step + 1) / w while step < w; afterwards, with t = (step − w) / (steps − w),
    ½ (1 + cos πt) for "cosine", 1 − t for "linear", 1 for "constant".
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    done = min(1.0, (step - rising) / max(1, steps - rising))
    match schedule:
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        case "linear":
            return 1.0 - done
        case "constant":
            return 1.0
    raise ValueError(f"schedule={schedule!r}: must be one of cosine, linear, constant")


def scheduler(optimizer: Optimizer, steps: int, warmup: float, schedule: str, start: int = 0) -> LambdaLR:
    """`lr_factor` driving ``optimizer``, standing at step ``start``."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])  # LambdaLR asks for it when it does not start at 0
    return LambdaLR(optimizer, lambda step: lr_factor(step, steps, warmup, schedule), last_epoch=start - 1)
