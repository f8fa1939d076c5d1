"""Model and loss as one module, so that a distributed wrapper sees one forward and a loss sees the bare model."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[Any, Any], Any]


class Objective(nn.Module):
    """``Objective(model, loss)(batch)`` -> {"loss": scalar that can be differentiated, other names: scalars to log}.

    ``loss(model, batch)`` may call any method of the model, also under DDP, because DDP wraps this module.
    """

    def __init__(self, model: nn.Module, loss: Loss | None) -> None:
        super().__init__()
        self.model = model
        self.compute = loss or model_loss

    def forward(self, batch: Any) -> dict[str, Tensor]:
        output = self.compute(self.model, batch)
        if isinstance(output, Tensor):
            loss, others = output, {}
        elif isinstance(output, Mapping) and "loss" in output:
            loss, others = output["loss"], {name: value for name, value in output.items() if name != "loss"}
        elif isinstance(getattr(output, "loss", None), Tensor):
            loss, others = output.loss, {}
        else:
            raise ValueError(
                f"loss returned {type(output).__name__}: must be a scalar tensor, a mapping with 'loss', or an object "
                "with .loss (models of transformers return one when the batch has labels)"
            )
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"loss={shape}: must be one number that depends on trainable parameters; take its mean")
        loss = loss.reshape(())
        logged = {name: _number(value, loss) for name, value in others.items() if _is_number(value)}
        return {"loss": loss, **logged}


def model_loss(model: nn.Module, batch: Any) -> Any:
    """The default loss: the model itself, called with the batch as keywords, as arguments, or as the one argument."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


def training_mode(model: nn.Module) -> None:
    """``model.train()``, except for parts that are wholly frozen: their dropout and running statistics stay still."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def _number(value: Any, loss: Tensor) -> Tensor:
    return torch.as_tensor(value).detach().reshape(()).to(loss)
