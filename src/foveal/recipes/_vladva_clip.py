"""nano-clip on the pairs that nano-llava is adapted on."""

import copy
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.adapt.vladva import contrastive_loss
from foveal.lab import Run
from foveal.recipes._vladva_hosts import BATCH, nano
from foveal.recipes._vladva_scenes import told
from foveal.train import FitConfig, fit
from foveal.zoo.nano import Nano


class LockedCLIP(nn.Module):
    """nano-clip whose vision tower is frozen, as nano-llava's is; projections, text tower and scale may learn."""

    def __init__(self, host: Nano) -> None:
        super().__init__()
        self.clip, self.tokenizer = copy.deepcopy(host.model), host.processor.tokenizer
        self.clip.vision_model.requires_grad_(False)

    def forward(self, pooled: Float[Tensor, "b d"], ids: Int[Tensor, "b l"], mask: Int[Tensor, "b l"]) -> Tensor:
        text = self.clip.get_text_features(ids, mask).pooler_output
        return contrastive_loss(self.clip.visual_projection(pooled), text, self.clip.logit_scale.exp())

    def clamp_(self) -> None:
        self.clip.logit_scale.clamp_(0, math.log(100))

    def words(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return dict(self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt"))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        return self.clip.get_text_features(**self.words(texts)).pooler_output

    @torch.no_grad()
    def images(self, pooled: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return self.clip.visual_projection(pooled)


def pooled(run: Run, test: bool) -> Float[Tensor, "n d"]:
    host = run.shared(nano, "nano-clip")
    pixels = host.processor.image_processor(images=list(run.shared(told, test).images), return_tensors="pt")
    with torch.no_grad():
        return torch.cat([host.model.vision_model(x).pooler_output for x in pixels["pixel_values"].split(32)])


def tune(run: Run, model: LockedCLIP, steps: int, lr: float) -> None:
    rows, data = run.shared(pooled, False), run.shared(told, False)

    def batch(chosen: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        words = model.words([data.short[i] for i in chosen])
        return rows[chosen], words["input_ids"], words["attention_mask"]

    config = FitConfig(
        lr=lr, batch_size=BATCH, weight_decay=0.0, warmup=0.1, collate=batch, after_step=LockedCLIP.clamp_
    )
    fit(model, list(range(len(rows))), steps=run.steps(steps), config=config, on=run)
