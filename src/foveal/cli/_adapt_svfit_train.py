"""What `foveal adapt svfit` trains: a dual encoder against the names of classes, or an image model with a new head."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft import get_peft_model
from torch import Tensor, nn

from foveal.adapt.svfit import parameter_budget
from foveal.adapt.svfit_peft import QUERY_VALUE, SVFitConfig, SVFitLayer
from foveal.cli._adapt_svfit_pictures import Collate, Watch
from foveal.nn.cosine import unit_rows
from foveal.train import FitConfig, fit

Rows = list[tuple[Path, int]]
NAMES = [*QUERY_VALUE, "query", "value"]
LAYERS = "|".join(NAMES)
HEAD_LR = 1e-3


@dataclass
class Task:
    """A model and how it tells classes apart.

    Attributes:
        model: of transformers.
        processor: what is saved beside a merged model.
        image_processor: pictures -> pixels.
        targets: names or pattern of the layers to adapt.
        text: features of the classes' names, scaled; None for a model with a head.
        head: name of the new head.
        device: where it computes.
    """

    model: Any
    processor: Any
    image_processor: Any
    targets: list[str] | str
    text: Float[Tensor, "k d"] | None
    head: str
    device: Any

    def logits(self, model: Any, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        if self.text is None:
            return model(pixel_values=pixels).logits
        features = model.get_image_features(pixel_values=pixels)
        features = features if isinstance(features, Tensor) else features.pooler_output
        return unit_rows(features) @ self.text.to(features).T

    def loss(self, model: Any, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        return F.cross_entropy(self.logits(model, batch["pixels"]), batch["labels"])

    @torch.no_grad()
    def accuracy(self, rows: Rows, size: int, watch: Watch) -> float:
        """In percent."""
        right, collate = 0, Collate(self.image_processor)
        for start in range(0, len(rows), size):
            watch("testing", start, len(rows))
            batch = collate(rows[start : start + size])
            found = self.logits(self.model, batch["pixels"].to(self.device)).argmax(1).cpu()
            right += int((found == batch["labels"]).sum())
        return 100 * right / len(rows)

    def fit(self, model: nn.Module, rows: Rows, training: dict[str, Any], lr: float, out: Path) -> None:
        fixed = {"lr": lr, "batch_size": training["batch_size"], "seed": training["seed"], "save_every": 100}
        config = FitConfig(**fixed, collate=Collate(self.image_processor))
        fit(model, rows, steps=training["steps"], loss=self.loss, config=config, out=out)
        model.to(self.device)

    def adapt(
        self,
        config: SVFitConfig,
        train: Rows,
        held: Rows,
        out: Path,
        merge: bool,
        training: dict[str, Any],
        watch: Watch,
    ) -> dict[str, Any]:
        """Train, measure before and after, save into ``out``; the part of the report that this makes."""
        before = "the names of the classes, zero-shot"
        if self.text is None:
            before, config.modules_to_save = f"its new {self.head} alone, trained as long", [self.head]
            self.model.requires_grad_(False)
            self.model.get_submodule(self.head).requires_grad_(True)
            watch("training the head", 0, 1)
            self.fit(self.model, train, training, HEAD_LR, out / "training-head")
        accuracy = self.accuracy(held, training["batch_size"], watch)
        adapted: Any = get_peft_model(self.model, config)
        numbers = _parameters(adapted)
        watch("training the singular values", 0, 1)
        self.fit(adapted, train, training, training["lr"], out / "training")
        after = self.accuracy(held, training["batch_size"], watch)
        adapted.save_pretrained(out / "adapter", save_embedding_layers=False)
        if merge:
            adapted.merge_and_unload(safe_merge=True).save_pretrained(out / "model")
            self.processor.save_pretrained(out / "model")
        for folder in ("training", "training-head"):
            shutil.rmtree(out / folder, ignore_errors=True)
        return {
            "before": {"what": before, "accuracy": accuracy},
            "after": {"what": "with SVFit", "accuracy": after},
            "parameters": numbers,
        }


def _parameters(model: nn.Module) -> dict[str, int]:
    layers = [module for module in model.modules() if isinstance(module, SVFitLayer)]
    budgets = [
        parameter_budget(
            layer.out_features, layer.in_features, svfit_rank=len(layer.svfit_sigma["default"]), lora_rank=8
        )
        for layer in layers
    ]
    return {
        "layers": len(layers),
        "trained": sum(budget["svfit"] for budget in budgets),
        "lora of rank 8": sum(budget["lora"] for budget in budgets),
        "all": sum(parameter.numel() for parameter in model.parameters()),
    }


def open_task(name: str, classes: Sequence[str], template: str, device: str, seed: int) -> Task:
    """The model behind a nano name, a folder or a hub id, ready to learn ``classes``.

    Raises ValueError when it is neither a dual encoder nor a model with a class for image classification.
    """
    from transformers import AutoConfig, AutoModelForImageClassification, AutoProcessor

    from foveal.evaluate.models import open_model
    from foveal.evaluate.models.files import find_folder

    folder = find_folder(name)
    kind = type(AutoConfig.from_pretrained(folder, local_files_only=True))
    if kind in AutoModelForImageClassification._model_mapping and "text_config" not in kind.sub_configs:
        return _with_head(folder, AutoModelForImageClassification._model_mapping[kind], classes, device, seed)
    opened = open_model(name, device=device, dtype="float32")
    if opened.kind != "dual encoder":
        raise ValueError(f"model={name!r} is a {opened.kind} model: give a dual encoder or an image classifier")
    dual = opened.model
    scale = dual.model.logit_scale.detach().exp().cpu() if hasattr(dual.model, "logit_scale") else 100.0
    text = scale * unit_rows(dual.text_features([template.replace("{}", name) for name in classes]))
    targets = rf".*vision_model\..*\.({LAYERS})"
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    return Task(dual.model, processor, dual.image_processor, targets, text, "", dual.model.device)


def _with_head(folder: Path, model_class: Any, classes: Sequence[str], device: str, seed: int) -> Task:
    from transformers import AutoImageProcessor

    from foveal.evaluate.models import torch_device
    from foveal.zoo.quiet import quiet_loading

    place = torch_device(device)
    with quiet_loading(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = model_class.from_pretrained(
            folder,
            num_labels=len(classes),
            id2label=dict(enumerate(classes)),
            label2id={name: number for number, name in enumerate(classes)},
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
        )
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    return Task(model.eval().to(place), processor, processor, NAMES, None, "classifier", place)
