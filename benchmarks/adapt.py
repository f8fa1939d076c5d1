"""SVFit, LoRA and full fine-tuning side by side: ``python benchmarks/adapt.py [--steps 60] [--rounds 3]``.

nano-clip's picture tower (a CLIPVisionModel) learns to tell six textures apart, on pictures in a style that it knows
little of. All arms have the same new head, pictures, steps and batches, and the better of two learning rates by
pictures for validation. Steps are timed one of each arm after the other, in rounds, as CPU-seconds; ratios are taken
within a round. Bytes of the optimiser are those of AdamW's state, without the head, and so are the trained numbers. The
paper's ratio is that of a 768 x 768 matrix: LoRA with r = 8 against all 768 singular values.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from foveal import zoo
from foveal.adapt.svfit import apply_svfit, parameter_budget
from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.train import FitConfig, fit
from foveal.train.optim import adamw

TEXTURES = world.vocabulary.TEXTURES
TARGETS = ["q_proj", "v_proj"]
BATCH = 16


class Classifier(nn.Module):
    """A linear head on the pooled output of a picture tower."""

    def __init__(self, vision: nn.Module, width: int) -> None:
        super().__init__()
        self.vision, self.head = vision, nn.Linear(width, len(TEXTURES))
        nn.init.zeros_(self.head.weight)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.vision(pixel_values=pixels).pooler_output)


@dataclass(frozen=True)
class Arm:
    name: str
    prepare: Callable[[Classifier], Any]
    rates: tuple[float, float]


def head(model: Classifier) -> None:
    model.vision.requires_grad_(False)


def svfit(model: Classifier, rank: int | None) -> None:
    apply_svfit(model, TARGETS, rank=rank, modules_to_train=["head"])


def lora(model: Classifier, r: int) -> None:
    inject_adapter_in_model(LoraConfig(r=r, lora_alpha=16, target_modules=TARGETS), model)
    model.head.requires_grad_(True)


ARMS = (
    Arm("head only", head, (1e-2, 3e-2)),
    Arm("SVFit, all singular values", lambda model: svfit(model, 10_000), (3e-2, 9e-2)),
    Arm("SVFit, 99 % of the energy", lambda model: svfit(model, None), (3e-2, 9e-2)),
    Arm("LoRA (peft), r = 8", lambda model: lora(model, 8), (3e-3, 9e-3)),
    Arm("full fine-tuning", lambda model: None, (3e-4, 1e-3)),
)


def pictures(seed: int, n: int, style: str, processor: Any) -> tuple[Tensor, Tensor]:
    """Pixels as the model reads them, and textures."""
    scenes = {"size": 96, "things": (1, 1), "sprites": 0.0, "sizes": ("large",), "backgrounds": ("plain",)}
    drawn = world.pairs(seed, n, world.WorldConfig(**scenes, styles=(style,)))
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    labels = torch.tensor([TEXTURES.index(scene.things[0].texture) for scene in drawn.scenes])
    return (to_tensor(drawn.images) - mean) / std, labels


def make(arm: Arm, vision: nn.Module, width: int) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Classifier(copy.deepcopy(vision), width)
        arm.prepare(model)
    return model


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    found = torch.cat([model(part).argmax(1) for part in data[0].split(100)])
    return 100 * (found == data[1]).float().mean().item()


def trained(arm: Arm, vision: nn.Module, width: int, sets: list[tuple[Tensor, Tensor]], steps: int) -> float:
    """Test accuracy at the rate that is better in validation."""
    train, validation, test = sets
    found: list[tuple[float, nn.Module]] = []
    for rate in arm.rates:
        model = make(arm, vision, width)
        data = torch.utils.data.TensorDataset(*train)
        fit(model, data, steps=steps, loss=loss, config=FitConfig(lr=rate, batch_size=BATCH))
        found.append((accuracy(model, validation), model))
    return accuracy(max(found, key=lambda one: one[0])[1], test)


def step_seconds(models: list[Classifier], batch: tuple[Tensor, Tensor], rounds: int) -> list[list[float]]:
    """CPU-seconds of a step of each model, round by round; the first round warms up and is dropped."""
    optimizers = [adamw(model, 1e-4, (0.9, 0.98), 0.0) for model in models]
    times: list[list[float]] = []
    for _ in range(rounds + 1):
        times.append([])
        for model, optimizer in zip(models, optimizers, strict=True):
            model.train()
            start = time.process_time()
            loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            times[-1].append(time.process_time() - start)
    return times[1:]


def optimiser_bytes(model: nn.Module) -> int:
    """Of AdamW's two averages of what is trained, the head apart."""
    sizes = {n: p.numel() * p.element_size() for n, p in model.named_parameters() if p.requires_grad}
    return 2 * sum(size for name, size in sizes.items() if not name.startswith("head."))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--labels", type=int, default=240)
    parser.add_argument("--test", type=int, default=400, help="pictures; a quarter as many for validation")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--style", default="sepia")
    options = parser.parse_args()
    nano = zoo.load("nano-clip")
    vision, processor = nano.model.vision_model, nano.processor.image_processor
    width = nano.model.config.vision_config.hidden_size
    sizes = ((0, options.labels), (1, options.test // 4), (2, options.test))
    sets = [pictures(seed, n, options.style, processor) for seed, n in sizes]
    models = [make(arm, vision, width) for arm in ARMS]
    batch = (sets[0][0][:BATCH], sets[0][1][:BATCH])
    seconds = step_seconds(models, batch, options.rounds)
    table = Table(
        title=f"nano-clip's picture tower, {options.labels} labels, {options.steps} steps of {BATCH} pictures"
    )
    for header in ("arm", "trained", "optimiser bytes", "CPU-s a step", "ratio to full", "accuracy %"):
        table.add_column(header, justify="left" if header == "arm" else "right")
    counts: dict[str, int] = {}
    for number, (arm, model) in enumerate(zip(ARMS, models, strict=True)):
        bytes_ = optimiser_bytes(model)
        counts[arm.name] = bytes_ // 8
        table.add_row(
            arm.name,
            f"{counts[arm.name]:,}",
            f"{bytes_:,}",
            f"{statistics.median(row[number] for row in seconds):.3f}",
            f"{statistics.median(row[number] / row[-1] for row in seconds):.2f}",
            f"{trained(arm, vision, width, sets, options.steps):.1f}",
        )
    console = Console()
    console.print(table)
    paper = parameter_budget(768, 768, svfit_rank=768, lora_rank=8)
    whole, energy, others = (counts[ARMS[number].name] for number in (1, 2, 3))
    console.print(f"LoRA r = 8 over SVFit: {paper['lora'] / paper['svfit']:.0f} in the paper's 768 x 768 matrix;")
    console.print(f"here {others / whole:.1f} with all singular values, {others / energy:.1f} with 99 % of the energy.")


if __name__ == "__main__":
    main()
