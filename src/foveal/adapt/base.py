"""What the adapting methods share: rows of features that belong to classes, in any order and in any number."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def check_class_index(class_index: Int64[Tensor, " m"], rows: int, num_classes: int) -> None:
    """ValueError unless each of ``rows`` rows belongs to one of ``num_classes`` classes, and each class has a row."""
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: must be at least 1")
    if class_index.ndim != 1 or len(class_index) != rows or class_index.is_floating_point():
        raise ValueError(
            f"class_index {tuple(class_index.shape)} of {class_index.dtype} must be one integer for each of {rows} rows"
        )
    if rows and not 0 <= int(class_index.min()) <= int(class_index.max()) < num_classes:
        raise ValueError(
            f"class_index holds values from {int(class_index.min())} to {int(class_index.max())}; "
            f"with num_classes={num_classes} they must lie in [0, {num_classes - 1}]"
        )
    count = torch.bincount(class_index, minlength=num_classes)
    if not bool((count > 0).all()):
        empty = (count == 0).nonzero().flatten().tolist()
        raise ValueError(f"class_index names no row for class {empty[0]}: each class needs at least one")


def mean_by_class(
    columns: Float[Tensor, "*b m"], class_index: Int64[Tensor, " m"], num_classes: int
) -> Float[Tensor, "*b k"]:
    """The mean over the columns of each class, in float32 or better; differentiable.

    ValueError as `check_class_index`.
    """
    check_class_index(class_index, columns.shape[-1], num_classes)
    wide = columns.to(torch.promote_types(columns.dtype, torch.float32))
    sums = wide.new_zeros(*wide.shape[:-1], num_classes).index_add(-1, class_index, wide)
    return sums / torch.bincount(class_index, minlength=num_classes)
