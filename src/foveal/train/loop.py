"""`fit`: the one training loop of the project, on accelerate, exact to the last bit when it is resumed."""

import atexit
import importlib
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from foveal.train.batches import Batches, batches_of
from foveal.train.checkpoint import latest_checkpoint, load_checkpoint, remove_leftovers, save_checkpoint
from foveal.train.config import FitConfig
from foveal.train.flops import FlopCounter
from foveal.train.guard import NonFiniteLoss, StopRequest, private_randomness, seed_step
from foveal.train.meters import Meter
from foveal.train.muon import muon
from foveal.train.objective import Loss, Objective, training_mode
from foveal.train.optim import adamw
from foveal.train.progress import ProgressBar
from foveal.train.resume import check_same_run, gather_positions, restore_tensors, training_tensors
from foveal.train.schedule import scheduler


class Recorder(Protocol):
    """What ``on`` must offer; `foveal.lab.Run` does."""

    seed: int

    def record(self, name: str, value: float, step: int) -> Any: ...


@dataclass(frozen=True)
class FitReport:
    """What a run did.

    Attributes:
        losses: mean loss of every step, the steps before a resume included.
        steps: finished steps.
        seconds: wall time of this call.
        seconds_in_all: the calls before a resume included, up to the checkpoint that each left.
        samples_per_second: of this call, over all processes.
        peak_memory_bytes: by how much this process (or its CUDA memory) grew at most.
        flops: of all steps and processes, taking every step to cost what the first one did (see `Meter`).
        resumed_from: steps that a checkpoint already held.
    """

    losses: list[float]
    steps: int
    seconds: float
    samples_per_second: float
    peak_memory_bytes: int
    flops: int
    resumed_from: int = 0
    seconds_in_all: float = 0.0


def fit(
    model: nn.Module,
    data: Any,
    *,
    steps: int,
    loss: Loss | None = None,
    config: FitConfig | None = None,
    on: Recorder | None = None,
    out: str | os.PathLike[str] | None = None,
) -> FitReport:
    """Train ``model`` in place and leave it in evaluation mode.

    The order of samples and all dropout are functions of (seed, step, process): the global generators are neither read
    nor changed. Parameters that do not require a gradient are left alone, and parts without any trainable parameter
    stay in evaluation mode. Under ``accelerate launch --multi_gpu`` or ``torchrun`` (also on CPUs) every process
    calls ``fit`` alike.

    Args:
        model: any module; it is moved to the device that accelerate chooses.
        data: a sequence of samples (a list, a map-style data set, ``TensorDataset(images, texts)``), shuffled anew in
            every epoch, with batches that may span epochs; or an iterable of ready micro-batches, one per process and
            micro-step, begun again when it ends, with optional JSON-able ``state_dict``/``load_state_dict``.
        steps: optimiser steps in all, those before a resume included.
        loss: ``loss(model, batch)`` -> scalar tensor, or mapping with "loss" whose other numbers are logged (every
            process must return the same names); None calls ``model(*batch)`` or ``model(**batch)``.
        config: see `FitConfig`.
        on: receives ``record(name, value, step)`` for the loss and what it logs, on the main process; its ``seed``
            replaces ``config.seed``.
        out: folder for checkpoints; a run that finds one there goes on from it. Ctrl-C and SIGTERM then save first.

    Returns:
        The `FitReport`.

    Raises:
        ValueError: for bad arguments, empty data, no trainable parameter, or a checkpoint of another run.
        NonFiniteLoss: before the optimiser step that a NaN or infinity would have entered.
        CheckpointError: when the latest checkpoint is damaged.
        OSError: when a checkpoint cannot be written.
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps={steps!r}: must be a whole number ≥ 1")
    config = config or FitConfig()
    with engine(config) as accelerator, private_randomness(accelerator.device):
        run = _Run(accelerator, model, data, steps, loss, config, on, None if out is None else Path(out))
        try:
            with Meter(device=accelerator.device) as meter:
                run.restore()
                resumed = run.done
                run.train()
        finally:
            run.optimizer.zero_grad(set_to_none=True)
            model.eval()
        return run.report(meter, resumed)


@contextmanager
def engine(config: FitConfig) -> Iterator[Any]:
    """An `accelerate.Accelerator` with these settings, whatever another one in the process was set to.

    accelerate keeps precision and accumulation in process-wide dictionaries: they are put back as they were found.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
    from accelerate.state import AcceleratorState, GradientState

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # DDP imports it later, and its defaults would hold the group then
        importlib.import_module("torch.distributed.nn.functional")
    shared = [AcceleratorState._shared_state, GradientState._shared_state]
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else accelerate overlooks torchrun's processes on CPUs
            gradient_accumulation_steps=config.accumulate,
            mixed_precision=config.mixed_precision,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        tested = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
        if accelerator.distributed_type not in tested:
            raise ValueError(
                f"accelerate was launched for {accelerator.distributed_type.value}: fit supports one process and DDP, "
                "where its exact resume and NaN guard hold; launch with torchrun or accelerate launch --multi_gpu"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) != accelerator.num_processes:
            raise ValueError(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but accelerate sees {accelerator.num_processes}: "
                "every process would train alone; launch CPU processes with ACCELERATE_USE_CPU=true"
            )
        if accelerator.num_processes > 1:
            atexit.unregister(_leave_group)  # once is enough
            atexit.register(_leave_group)
        yield accelerator
    finally:
        for state, old in zip(shared, before, strict=True):
            state.clear()
            state.update(old)


def _leave_group() -> None:
    """Which ends its threads: a process that ends before them is now and then aborted, its work done."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Run:
    """The state of one call of `fit`."""

    def __init__(
        self,
        accelerator: Any,
        model: nn.Module,
        data: Any,
        steps: int,
        loss: Loss | None,
        config: FitConfig,
        on: Recorder | None,
        out: Path | None,
    ) -> None:
        self.accelerator, self.model, self.steps, self.config = accelerator, model, steps, config
        self.on, self.out = on, out
        self.seed = seed = config.seed if on is None else int(on.seed)
        if seed < 0:
            raise ValueError(f"on.seed={seed}: must be ≥ 0")
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.data: Batches = batches_of(data, config, seed, self.rank, self.world)
        objective = Objective(model, loss).to(accelerator.device)
        if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
            raise ValueError(f"loss={type(loss).__name__} has trainable parameters: make them part of the model")
        self.fixed = {
            **config.fixed(),
            "mixed_precision": accelerator.mixed_precision,  # the launch may have chosen it
            "seed": seed,
            "samples": len(data) if hasattr(data, "__len__") else None,
        }
        training_mode(model)
        build = {"adamw": adamw, "muon": muon}[config.optimizer]
        optimizer = build(model, config.lr, config.betas, config.weight_decay)
        self.objective, scaling = accelerator.prepare(objective, optimizer)
        self.optimizer = optimizer
        # accelerate's wrapper is needed for fp16 only, and looks for a package on disk at every step
        self.stepper = scaling if accelerator.scaler is not None else optimizer
        self.optimizer.zero_grad(set_to_none=True)
        self.trainable = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.losses: list[float] = []
        self.flops_per_step = 0  # unknown before the first step
        self.seen = 0  # samples of this process in this call
        self.started = time.perf_counter()  # moved back by what earlier calls took
        self._position: Any = None  # of a resumed stream

    @property
    def done(self) -> int:
        return len(self.losses)

    def train(self) -> None:
        """Take the steps that are left."""
        if self.done >= self.steps:
            return
        batches = self.data.open(self.done, self._position)
        schedule = scheduler(self.optimizer, self.steps, self.config.warmup, self.config.schedule, start=self.done)
        show = self.config.progress and self.accelerator.is_main_process
        with StopRequest(active=self.out is not None) as request, ProgressBar(self.steps, show) as bar:
            while self.done < self.steps:
                stop = self.step(batches, request)
                schedule.step()
                bar.update(self.done, self.losses[-1])
                every = self.config.save_every
                if stop or self.done == self.steps or (every and self.done % every == 0):
                    self.save()
                if stop:
                    request.stop()
            if request.signal is not None:  # it came in the last step
                request.stop()

    def step(self, batches: Iterator[Any], request: StopRequest) -> bool:
        """One optimiser step; True when any process was asked to stop."""
        from accelerate.utils import send_to_device

        step, accelerator = self.done, self.accelerator
        seed_step(accelerator.device, self.seed, step, self.rank)
        counter = None if self.flops_per_step else FlopCounter()
        outputs, used = [], []
        with counter or nullcontext():
            for _ in range(self.config.accumulate):
                batch = next(batches)
                with accelerator.accumulate(self.objective):
                    output = self.objective(send_to_device(batch, accelerator.device))
                    accelerator.backward(output["loss"])
                outputs.append({name: value.detach() for name, value in output.items()})
                used.append(batch)
        values = self.mean(outputs, request)
        norm = accelerator.clip_grad_norm_(self.trainable, self.config.clip or math.inf)
        self.guard(values["loss"], float(norm), outputs, used)
        self.stepper.step()
        self.optimizer.zero_grad(set_to_none=True)
        if counter is not None:
            self.flops_per_step = max(1, counter.total)
        if self.config.after_step is not None:
            with torch.no_grad():
                self.config.after_step(self.model)
        self.seen += sum(self.data.size(batch) for batch in used)
        stop = values.pop("") > 0
        self.losses.append(values["loss"])
        if self.on is not None and accelerator.is_main_process:
            for name, value in values.items():
                self.on.record(name, value, step)
        return stop

    def mean(self, outputs: list[dict[str, Tensor]], request: StopRequest) -> dict[str, float]:
        """Logged values over micro-batches and processes; "" is positive when some process was asked to stop.

        One reduction carries everything, so that all processes come to the same decision at the same step: a loss that
        is not finite on one process is not finite in the mean.
        """
        names = list(outputs[0]) if self.on is not None else ["loss"]
        rows = [torch.stack([output[name] for output in outputs]).float().mean() for name in names]
        rows.append(torch.tensor(float(request.signal is not None), device=rows[0].device))
        vector = torch.stack(rows)
        if self.world > 1:
            vector = self.accelerator.reduce(vector, "mean")
        return dict(zip([*names, ""], vector.tolist(), strict=True))

    def guard(self, loss: float, norm: float, outputs: list[dict[str, Tensor]], used: list[Any]) -> None:
        """Raise `NonFiniteLoss`, on all processes alike, before anything enters the weights."""
        scaled = self.accelerator.scaler is not None  # fp16 overflows now and then: its scaler skips the step
        if math.isfinite(loss) and (math.isfinite(norm) or scaled):
            return
        step = self.done
        finite = [bool(output["loss"].isfinite()) for output in outputs]
        guilty = [micro for micro, fine in enumerate(finite) if not fine]
        if math.isfinite(loss):
            what, guilty = f"the gradient norm is {norm}", list(range(len(outputs)))
        elif guilty:
            what = f"the loss is {float(outputs[guilty[0]]['loss'])}"
        else:
            what = f"the loss is {loss} on another process"
        keys = [key for micro in guilty for key in self.data.keys(used[micro], step, micro)]
        raise NonFiniteLoss(what, step, keys, f"look at these samples, lower lr={self.config.lr} or clip harder")

    def save(self) -> None:
        """Checkpoint into ``out``; collective, though only the main process writes."""
        if self.out is None:
            return
        positions = gather_positions(self.data.state(), self.accelerator)
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "run": self.fixed,
                "world": self.world,
                "flops_per_step": self.flops_per_step,
                "seconds": time.perf_counter() - self.started,
                "positions": positions,
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            tensors = training_tensors(self.model, self.optimizer, self.losses)
            save_checkpoint(self.out, self.done, tensors, state, self.config.keep)
        if self.done == self.steps:
            self.accelerator.wait_for_everyone()  # nobody may look for this checkpoint before it is there

    def restore(self) -> None:
        """Go to where the latest checkpoint of ``out`` stood, if there is one."""
        if self.out is None:
            return
        folder = latest_checkpoint(self.out)
        if self.accelerator.is_main_process:
            remove_leftovers(self.out)
        if folder is None:
            return
        tensors, state = load_checkpoint(folder)
        check_same_run(folder, state, self.fixed, self.steps, self.world)
        self.losses = restore_tensors(folder, self.model, self.optimizer, tensors)
        self.flops_per_step = state["flops_per_step"]
        self.started -= state.get("seconds", 0.0)
        self._position = state["positions"][self.rank] if len(state["positions"]) == self.world else None
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def report(self, meter: Meter, resumed: int) -> FitReport:
        return FitReport(
            losses=self.losses,
            steps=self.done,
            seconds=meter.seconds,
            samples_per_second=self.seen * self.world / meter.seconds,
            peak_memory_bytes=meter.peak_memory_bytes,
            flops=self.flops_per_step * self.done * self.world,
            resumed_from=resumed,
            seconds_in_all=time.perf_counter() - self.started,
        )
