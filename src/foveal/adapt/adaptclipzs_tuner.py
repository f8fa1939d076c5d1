"""AdaptCLIPZS as an estimator: fine-tune a CLIP on pictures with classes and bags of captions, name new classes."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from foveal.adapt.adaptclipzs_loss import bag_contrastive_loss, description_probabilities
from foveal.adapt.adaptclipzs_views import random_view
from foveal.zoo.dual_encoder import DualEncoder

Pictures = Sequence[UInt8[np.ndarray, "_ _ 3"]] | Float[Tensor, "n ..."]
TAU_LR, TAU_DECAY, LEAST_TAU = 1e-2, 1e-6, 0.01
BETAS, EPS = (0.9, 0.98), 1e-6
MOST_SCORES = 2**24
"""Of pictures with captions, at once: 64 MiB."""
FIRST_RESTART, LATER_RESTARTS = 10, 2
"""Epochs of the first cosine, and how much longer each further one is."""
HEADS = ("visual_projection.", "text_projection.")
INNER = (".q_proj.", ".k_proj.", ".v_proj.", ".out_proj.", ".fc2.")
"""What the release's rule "proj in the name" means in transformers' names."""


class BagFineTuner(ClassifierMixin, BaseEstimator):
    """Fine-tunes a copy of a CLIP; the model given is never changed.

    Attributes after `fit`: ``encoder_`` (a `DualEncoder`; ``encoder_.model.save_pretrained`` writes it), ``tau_``,
    ``losses_`` (mean of each epoch) and ``classes_``.

    Args:
        model: a `DualEncoder` of a ``transformers.CLIPModel``, or what has such a ``model`` and its ``processor``, as
            ``foveal.zoo.load("nano-clip")`` gives it. Parameters that do not require a gradient stay as they are.
        batch_size: pairs of a step; the paper has 128 for natural domains.
        main_lr, main_wd: of everything but the two output projections; the paper has a decay of 1e-1 for natural
            domains.
        proj_lr, proj_wd: of the two output projections.
        tau: start of the learnt temperature; the paper has 1.3 for natural domains.
        shuffle: False takes the pictures in their order, as the release does, so that batches hold few classes.
        freeze_inner_proj: leave attention and the second matrix of each MLP as they are, as the release does: its rule
            is "proj" in the name, which in OpenAI's names are in_proj, out_proj and c_proj.
    """

    def __init__(
        self,
        model: Any,
        *,
        epochs: int = 15,
        batch_size: int = 256,
        main_lr: float = 1e-7,
        proj_lr: float = 5e-7,
        main_wd: float = 1e-2,
        proj_wd: float = 1e-2,
        tau: float = 2.0,
        shuffle: bool = True,
        freeze_inner_proj: bool = True,
    ) -> None:
        self.model = model
        self.epochs, self.batch_size, self.shuffle, self.tau = epochs, batch_size, shuffle, tau
        self.main_lr, self.proj_lr, self.main_wd, self.proj_wd = main_lr, proj_lr, main_wd, proj_wd
        self.freeze_inner_proj = freeze_inner_proj

    def fit(
        self,
        images: Pictures,
        class_ids: Int64[Tensor, " n"] | Sequence[int],
        captions: Mapping[int, Sequence[str]],
        generator: torch.Generator,
        *,
        watch: Callable[[int, int], None] = lambda done, total: None,
    ) -> "BagFineTuner":
        """Each epoch visits every picture once, with one caption of its class drawn anew.

        Args:
            images: RGB arrays of any size, of which each visit sees another view (`random_view`); or a tensor with
                one ready input of the vision tower in each row (processed pixels), which is not changed.
            class_ids: the class of each picture.
            captions: class id -> its captions, for every class that occurs; those of other classes are never read.
            watch: called with the epochs done and their number.

        Raises ValueError for settings, classes and captions that do not fit, and when the loss is not finite.
        """
        self._check_settings()
        ids = _checked_ids(images, class_ids)
        bags = _checked_captions(captions, set(ids.tolist()))
        encoder = copy.deepcopy(as_dual_encoder(self.model))
        encoder.model.float().train()
        tau = nn.Parameter(torch.tensor(float(self.tau), device=encoder.model.device))
        optimizer = self._optimizer(encoder.model, tau)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, FIRST_RESTART, LATER_RESTARTS)
        devices = [encoder.model.device] if encoder.model.device.type == "cuda" else []
        losses = []
        with torch.random.fork_rng(devices):  # dropout draws from the global generator
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            for epoch in range(self.epochs):
                watch(epoch, self.epochs)
                losses.append(self._epoch(encoder, optimizer, tau, images, ids, bags, generator))
                schedule.step()
        encoder.model.eval()
        self.encoder_, self.tau_, self.losses_ = encoder, tau.item(), losses
        self.classes_ = ids.unique()
        return self

    def predict_proba(self, images: Pictures, captions: Mapping[int, Sequence[str]]) -> Float[Tensor, "n k"]:
        """`description_probabilities` of the K classes of ``captions``, which need not be those of `fit`."""
        check_is_fitted(self)
        return class_probabilities(self.encoder_, images, captions)

    def predict(self, images: Pictures, captions: Mapping[int, Sequence[str]]) -> Int64[Tensor, " n"]:
        """The class id, a key of ``captions``, of each picture."""
        found = self.predict_proba(images, captions).argmax(1)
        return torch.tensor([int(key) for key in captions], dtype=torch.int64)[found]

    def score(
        self,
        images: Pictures,
        class_ids: Int64[Tensor, " n"] | Sequence[int],
        captions: Mapping[int, Sequence[str]],
    ) -> float:
        """Accuracy in [0, 1]."""
        return (self.predict(images, captions) == _checked_ids(images, class_ids)).double().mean().item()

    def __sklearn_clone__(self) -> "BagFineTuner":
        """A new one, not fitted, on the same model, which `fit` copies anyway."""
        return type(self)(**self.get_params(deep=False))

    def _epoch(
        self,
        encoder: DualEncoder,
        optimizer: torch.optim.Optimizer,
        tau: nn.Parameter,
        images: Pictures,
        ids: Int64[Tensor, " n"],
        bags: Mapping[int, Sequence[str]],
        generator: torch.Generator,
    ) -> float:
        """One visit of every picture; the mean loss of the batches."""
        model, losses = encoder.model, []
        learnt = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        order = torch.randperm(len(ids), generator=generator) if self.shuffle else torch.arange(len(ids))
        for rows in order.split(self.batch_size):
            texts = [_drawn(bags[label], generator) for label in ids[rows].tolist()]
            image = _features(model.get_image_features(pixel_values=_views(encoder, images, rows, generator)))
            text = _features(model.get_text_features(**encoder.tokens(texts)))
            classes = ids[rows].to(image.device)
            loss = bag_contrastive_loss(image, text, classes, logit_scale=model.logit_scale.exp(), tau=tau).loss
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.get_total_norm([parameter.grad for parameter in learnt if parameter.grad is not None])
            if not bool((loss + norm).isfinite()):
                raise ValueError(f"loss={loss.item()}, its gradient {norm.item()}: lower main_lr={self.main_lr}")
            optimizer.step()
            with torch.no_grad():
                tau.clamp_(min=LEAST_TAU)
            losses.append(loss.item())
        return sum(losses) / len(losses)

    def _optimizer(self, model: nn.Module, tau: nn.Parameter) -> torch.optim.AdamW:
        main, heads = [], []
        for name, parameter in model.named_parameters():
            fixed = self.freeze_inner_proj and any(part in name for part in INNER)
            if fixed or not parameter.requires_grad:
                parameter.requires_grad_(False)
            elif name.startswith(HEADS):
                heads.append(parameter)
            else:
                main.append(parameter)
        groups = [
            {"params": main, "lr": self.main_lr, "weight_decay": self.main_wd},
            {"params": heads, "lr": self.proj_lr, "weight_decay": self.proj_wd},
            {"params": [tau], "lr": TAU_LR, "weight_decay": TAU_DECAY},
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], betas=BETAS, eps=EPS)

    def _check_settings(self) -> None:
        for name in ("epochs", "batch_size"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("main_lr", "proj_lr", "main_wd", "proj_wd"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0 and finite")
        if not LEAST_TAU <= self.tau < math.inf:
            raise ValueError(f"tau={self.tau}: must be at least {LEAST_TAU} and finite")


def class_probabilities(
    encoder: DualEncoder, images: Pictures, captions: Mapping[int, Sequence[str]]
) -> Float[Tensor, "n k"]:
    """`description_probabilities` by a CLIP, tuned or not, of the K classes of ``captions`` in its order.

    No pictures give no rows; of very many, some at a time are compared with all captions.
    """
    bags = list(_checked_captions(captions, set()).values())
    if not len(images):
        return torch.zeros(0, len(bags))
    owners = torch.repeat_interleave(torch.tensor([len(bag) for bag in bags]))
    said = encoder.text_features([text for bag in bags for text in bag])
    scale = encoder.model.logit_scale.exp().item()
    parts = _image_features(encoder, images).split(max(1, MOST_SCORES // len(said)))
    return torch.cat([description_probabilities(part, said, owners, len(bags), logit_scale=scale) for part in parts])


def as_dual_encoder(model: Any) -> DualEncoder:
    """The model as `DualEncoder`. ValueError unless it is a CLIP with its projections and logit scale."""
    if not isinstance(model, DualEncoder):
        if not hasattr(model, "model") or not hasattr(model, "processor"):
            raise ValueError(
                f"model={type(model).__name__}: give DualEncoder(model, processor) or what zoo.load('nano-clip') gives"
            )
        model = DualEncoder(model.model, model.processor)
    missing = [
        name for name in ("visual_projection", "text_projection", "logit_scale") if not hasattr(model.model, name)
    ]
    if missing:
        raise ValueError(f"model={type(model.model).__name__} has no {missing[0]}: give a CLIPModel")
    return model


def _views(encoder: DualEncoder, images: Pictures, rows: Tensor, generator: torch.Generator) -> Tensor:
    model = encoder.model
    if isinstance(images, Tensor):
        return images[rows].to(model.device, model.dtype)
    size = model.config.vision_config.image_size
    views = [random_view(images[row], size, generator) for row in rows.tolist()]
    return encoder.image_processor(images=views, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)


@torch.no_grad()
def _image_features(encoder: DualEncoder, images: Pictures) -> Float[Tensor, "n d"]:
    if not isinstance(images, Tensor):
        return encoder.image_features(images)
    model = encoder.model
    batches = [batch.to(model.device, model.dtype) for batch in images.split(encoder.batch_size)]
    return torch.cat([_features(model.get_image_features(pixel_values=batch)).float().cpu() for batch in batches])


def _features(output: Any) -> Float[Tensor, "n d"]:
    return output if isinstance(output, Tensor) else output.pooler_output  # transformers below 5 and since


def _drawn(bag: Sequence[str], generator: torch.Generator) -> str:
    return bag[int(torch.randint(len(bag), (), generator=generator))]


def _checked_ids(images: Pictures, class_ids: Any) -> Int64[Tensor, " n"]:
    ids = torch.as_tensor(class_ids)
    if ids.is_floating_point() or ids.ndim != 1 or len(ids) != len(images) or not len(ids):
        raise ValueError(
            f"class_ids {tuple(ids.shape)} of {ids.dtype} must be one whole number for each of {len(images)} images, "
            "of which there is at least one"
        )
    return ids.to("cpu", torch.int64)


def _checked_captions(captions: Mapping[int, Sequence[str]], needed: set[int]) -> dict[int, list[str]]:
    if not isinstance(captions, Mapping) or not captions:
        raise ValueError(f"captions={captions!r}: must map class ids to lists of captions, at least one class")
    bags = {int(key): bag for key, bag in captions.items()}
    if missing := sorted(needed - set(bags)):
        raise ValueError(f"captions has no entry for class {missing[0]}, which class_ids names")
    for key, bag in bags.items():
        if isinstance(bag, str) or not len(bag) or not all(isinstance(text, str) and text.strip() for text in bag):
            raise ValueError(f"captions[{key}]={bag!r}: must be a list of at least one text, none of them empty")
    return {key: list(bag) for key, bag in bags.items()}
