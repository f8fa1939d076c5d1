"""What a checkpoint of `fit` holds, and whether a run may go on from it."""

import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foveal.train.checkpoint import CheckpointError

Groups = dict[str, dict[str, Tensor]]


def training_tensors(model: nn.Module, optimizer: Optimizer, losses: list[float]) -> Groups:
    """Copies on the CPU: "model" (trainable parameters and persistent buffers) and "training" (optimiser, losses).

    Frozen parameters are not kept: whoever resumes builds the model in the same way, and a connector of a megabyte
    should not drag a language model of a gigabyte into every checkpoint.
    """
    trainable = _trainable(model)
    weights = {name: parameter.detach() for name, parameter in trainable.items()}
    weights.update(_buffers(model))
    training = {"losses": torch.tensor(losses, dtype=torch.float64)}
    for name, parameter in trainable.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            training[f"{name}/{key}"] = value
    return {"model": _on_cpu(weights), "training": _on_cpu(training)}


def restore_tensors(folder: Path, model: nn.Module, optimizer: Optimizer, groups: Groups) -> list[float]:
    """Put everything back in place and return the losses so far.

    Raises:
        CheckpointError: when names, shapes or types are not those of the model; nothing has been changed then.
    """
    if groups.keys() != {"model", "training"}:
        raise CheckpointError(f"checkpoint {folder}: holds {sorted(groups)} instead of model and training")
    trainable = _trainable(model)
    places = {**trainable, **_buffers(model)}
    weights, training = groups["model"], dict(groups["training"])
    losses = training.pop("losses", None)
    wrong = sorted(places.keys() ^ weights.keys())
    form = operator.attrgetter("shape", "dtype")
    wrong += [name for name in places.keys() & weights.keys() if form(places[name]) != form(weights[name])]
    wrong += [name for name in training if name.rpartition("/")[0] not in trainable]
    if wrong or losses is None:
        raise CheckpointError(
            f"checkpoint {folder}: does not fit model={type(model).__name__} at {(wrong or ['losses'])[0]}: "
            "build the model as in the first run, or give another out folder"
        )
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(weights[name])
    for name, value in training.items():
        owner, _, key = name.rpartition("/")
        parameter = trainable[owner]
        # AdamW's step counter lives on the parameter's device in its fused form, else on the CPU
        fused = optimizer.param_groups[0].get("fused")
        optimizer.state[parameter][key] = value if key == "step" and not fused else value.to(parameter.device)
    return losses.tolist()


def check_same_run(folder: Path, state: Mapping[str, Any], fixed: Mapping[str, Any], steps: int, world: int) -> None:
    """Refuse to mix two runs; only ``steps`` may grow (the schedule is then that of the new total).

    Raises:
        ValueError: naming the setting, its old and its new value.
    """
    remedy = "give another out folder, or the old value"
    run = state.get("run", {})
    for name, now in fixed.items():
        if run.get(name) != now:
            raise ValueError(f"{name}={now!r}: checkpoint {folder} was trained with {run.get(name)!r}; {remedy}")
    if state["step"] > steps:
        raise ValueError(f"steps={steps}: checkpoint {folder} already holds {state['step']} steps; {remedy}")
    if state["positions"] and len(state["positions"]) != world:
        raise ValueError(
            f"{world} processes: checkpoint {folder} holds the data positions of {len(state['positions'])}; {remedy}"
        )


def gather_positions(position: Any, accelerator: Any) -> list[Any]:
    """The data positions of all processes, in order; empty when they have none. JSON as bytes, nothing is pickled."""
    if accelerator.num_processes == 1:
        return [] if position is None else [position]
    text = json.dumps(position).encode()
    size = torch.tensor([len(text)], device=accelerator.device)
    sizes = accelerator.gather(size).tolist()
    padded = torch.zeros(1, max(sizes), dtype=torch.uint8, device=accelerator.device)
    padded[0, : len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    rows = accelerator.gather(padded).cpu()
    positions = [json.loads(bytes(row[:length].tolist())) for row, length in zip(rows, sizes, strict=True)]
    return [] if all(entry is None for entry in positions) else positions


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    persistent = model.state_dict().keys()
    return {name: buffer.detach() for name, buffer in model.named_buffers() if name in persistent}


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # cloned, because safetensors refuses tensors that share memory (expanded buffers, views)
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
