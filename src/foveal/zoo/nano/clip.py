"""nano-clip: a ``CLIPModel`` of two and a half million parameters for 96 px, trained on drawn scenes and Twemoji.

Two contrastive losses of one form (Radford et al., arXiv 2103.00020), in which equal texts of a batch are one text:
pictures against their captions, and regions against their phrases, where a region is the mean of the patch tokens that
its box covers (Zhong et al., RegionCLIP, arXiv 2112.09106). Until the last steps most patches are left out,
those of the ground before those of things, which makes a step three times as fast (Li et al., FLIP, arXiv 2212.00794).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from foveal.train import FitConfig, fit
from foveal.zoo.nano.bpe import clip_tokenizer
from foveal.zoo.nano.captions import CaptionedScenes, corpus
from foveal.zoo.nano.scenes import CLIP_LESSONS, CLIP_WORLD, DrawnScenes
from foveal.zoo.nano.training import TrainingRecord, check_destination, loss_curve, publish_checkpoint

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
DATA = (
    "Scenes of foveal's procedural world (base nouns only: no novel noun is drawn or named) with short and long "
    "captions and region phrases; Twemoji pictures of the training families with their English names."
)
LIMITS = (
    "It knows drawn scenes and emoji, not photographs, and only English words of this world. Words that it was not "
    "trained on, the novel nouns among them, mean nothing to it. Noise, inverted, grey, sepia and mosaic pictures were "
    "never seen."
)

POSITION_SIZE = 0.2
"""Of the initial position embeddings; that of the patches' initial embeddings is about 0.3."""
LONGEST = 100.0
"""Wavelength / 2π in patches of the slowest wave."""
PART = 32
"""Pictures that go through the tower together."""


@dataclass(frozen=True)
class ClipTraining:
    """All that shapes the weights."""

    scenes: int = 30_000
    steps: int = 1400
    batch: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.1
    sparse: float = 0.85
    """Part of the steps that see only ``patches`` of the patches of every picture; the others see all."""
    patches: float = 1 / 3
    preference: float = 0.5
    """How much likelier patches of things stay than those of the ground; at 1 they all come first."""
    region_weight: float = 1.0
    width: int = 128
    layers: int = 6
    text_width: int = 128
    text_layers: int = 3
    embedding: int = 128
    vocabulary: int = 3000
    positions: int = 64
    seed: int = 0


def train(out: Path, work: Path, smoke: bool = False) -> Path:
    """Train nano-clip and publish it in ``out``; a killed run goes on from ``work``."""
    check_destination(out)
    settings = ClipTraining()
    if smoke:
        settings = replace(settings, scenes=32, steps=2, batch=8, width=32, layers=2, text_width=32, text_layers=1)
    data = CaptionedScenes(DrawnScenes(CLIP_LESSONS, settings.seed, settings.scenes), settings.steps * settings.batch)
    processor = build_processor(corpus(data.scenes), settings)
    learner = Learner(build_model(settings, processor.tokenizer), processor.tokenizer, settings)
    config = FitConfig(
        lr=settings.lr,
        batch_size=settings.batch,
        weight_decay=settings.weight_decay,
        optimizer="muon",
        save_every=100,
        keep=1,
        collate=list,
        seed=settings.seed,
        after_step=Learner.after_step,
    )
    report = fit(learner, data, steps=settings.steps, loss=Learner.loss, config=config, out=work)
    curves = {"loss": loss_curve(report.losses)}
    record = TrainingRecord(
        "nano-clip", "foveal train nano-clip", asdict(settings), DATA, LIMITS, report.seconds_in_all, curves
    )

    def save(folder: Path) -> None:
        learner.clip.half().save_pretrained(folder)
        processor.save_pretrained(folder)

    return publish_checkpoint(out, save, record)


def build_processor(texts: Iterable[str], settings: ClipTraining) -> CLIPProcessor:
    """CLIP's preprocessing for 96 px, and a tokenizer made from ``texts``."""
    square = {"height": CLIP_WORLD.shape[0], "width": CLIP_WORLD.shape[1]}
    images = CLIPImageProcessorPil(size=square, crop_size=square, image_mean=MEAN, image_std=STD)
    return CLIPProcessor(images, clip_tokenizer(texts, settings.vocabulary, settings.positions))


def build_model(settings: ClipTraining, tokenizer: CLIPTokenizer) -> CLIPModel:
    """With weights drawn from the seed."""
    vision = {
        "hidden_size": settings.width,
        "intermediate_size": 4 * settings.width,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.width // 32,
        "image_size": CLIP_WORLD.shape[0],
        "patch_size": 8,
    }
    text = {
        "hidden_size": settings.text_width,
        "intermediate_size": 4 * settings.text_width,
        "num_hidden_layers": settings.text_layers,
        "num_attention_heads": settings.text_width // 32,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": settings.positions,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.embedding)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        model = CLIPModel(config)
    grid = (CLIP_WORLD.shape[0] // 8, CLIP_WORLD.shape[1] // 8)
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.weight[1:] = POSITION_SIZE * waves(grid, settings.width)
    return model


def waves(grid: tuple[int, int], width: int) -> Float[Tensor, "n d"]:
    """Sines and cosines of row and column at geometric wavelengths: patches can tell neighbours from the first step."""
    frequencies = LONGEST ** -(torch.arange(width // 4) / (width // 4))
    down, across = (torch.arange(length)[:, None] * frequencies for length in grid)
    rows, columns = (torch.cat([angle.sin(), angle.cos()], 1) for angle in (down, across))
    parts = (rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1))
    return torch.cat(parts, 2).flatten(0, 1)


class Learner(nn.Module):
    """A CLIP model with what its training needs beside it."""

    finished: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, clip: CLIPModel, tokenizer: CLIPTokenizer, settings: ClipTraining) -> None:
        super().__init__()
        self.clip, self.tokenizer, self.settings = clip, tokenizer, settings
        self.register_buffer("finished", torch.zeros((), dtype=torch.int64))  # steps; travels with the checkpoints
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def after_step(self) -> None:
        self.clip.logit_scale.clamp_(0, math.log(100))
        self.finished += 1

    def loss(self, batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Both contrastive losses of a batch of `CaptionedScenes`."""
        pictures = torch.from_numpy(np.stack([sample["image"] for sample in batch]))
        owner = torch.tensor([i for i, sample in enumerate(batch) for _ in sample["phrases"]])
        boxes = torch.from_numpy(np.concatenate([sample["boxes"] for sample in batch])).float()
        covered = self.covered(boxes)
        things = covered.new_zeros(len(batch), covered.shape[1])
        things.scatter_reduce_(0, owner[:, None].expand_as(covered), covered, "amax")
        sparse = int(self.finished) < self.settings.sparse * self.settings.steps
        whole, patches, places = self.encode(pictures, self.settings.patches if sparse else 1.0, things)
        weights = covered.gather(1, places[owner])
        seen = weights.sum(1) > 0
        regions = self.pool(patches[owner][seen], weights[seen])
        scale = self.clip.logit_scale.exp()
        captions = matching_loss(whole, *self.texts([sample["caption"] for sample in batch]), scale)
        phrases = [phrase for sample in batch for phrase in sample["phrases"]]
        phrases = [phrase for phrase, kept in zip(phrases, seen.tolist(), strict=True) if kept]
        local = matching_loss(regions, *self.texts(phrases), scale)
        total = captions + self.settings.region_weight * local
        return {"loss": total, "captions": captions, "regions": local}

    def covered(self, boxes: Float[Tensor, "r 4"]) -> Float[Tensor, "r n"]:
        """Share of each patch that each box covers."""
        side = self.clip.vision_model.embeddings.patch_size
        edges = [torch.arange(0, length, side) for length in CLIP_WORLD.shape]
        down, across = (
            (torch.minimum(edge + side, boxes[:, high, None]) - torch.maximum(edge, boxes[:, low, None])).clamp(min=0)
            for edge, low, high in zip(edges, (1, 0), (3, 2), strict=True)
        )
        return (down[:, :, None] * across[:, None, :]).flatten(1) / side**2

    def encode(
        self, pictures: UInt8[Tensor, "b h w 3"], share: float, things: Float[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b m d"], Int[Tensor, "b m"]]:
        """Embedding of the picture, tokens of a random ``share`` of its patches, and which patches they are.

        Patches that ``things`` cover come before most of the ground.
        """
        tower = self.clip.vision_model
        pixels = (pictures.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        tokens = tower.embeddings(pixels)
        places = torch.arange(tokens.shape[1] - 1).expand(len(tokens), -1)
        if share < 1:
            order = (torch.rand(places.shape) - self.settings.preference * things).argsort(1)
            places = order[:, : round(share * places.shape[1])]
            kept = tokens[:, 1:].gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))
            tokens = torch.cat([tokens[:, :1], kept], 1)
        tokens = tower.pre_layrnorm(tokens)
        # in parts, whose activations the processor's cache can hold
        hidden = torch.cat([tower.encoder(inputs_embeds=part).last_hidden_state for part in tokens.split(PART)])
        return self.clip.visual_projection(tower.post_layernorm(hidden[:, 0])), hidden[:, 1:], places

    def pool(self, patches: Float[Tensor, "r m d"], weights: Float[Tensor, "r m"]) -> Float[Tensor, "r e"]:
        """Weighted mean of the patches of each region, as an embedding."""
        mean = torch.einsum("rm,rmd->rd", weights / weights.sum(1, keepdim=True), patches)
        return self.clip.visual_projection(self.clip.vision_model.post_layernorm(mean))

    def texts(self, texts: Sequence[str]) -> tuple[Float[Tensor, "u e"], Int[Tensor, " t"]]:
        """Embeddings of the different texts, and which of them each text is."""
        different = {text: i for i, text in enumerate(sorted(set(texts), key=len))}  # like lengths: less padding
        parts = [list(different)[start : start + 32] for start in range(0, len(different), 32)]
        features = []
        for part in parts:
            ids = self.tokenizer(part, padding=True, truncation=True, return_tensors="pt")
            features.append(self.clip.get_text_features(**ids).pooler_output)
        return torch.cat(features), torch.tensor([different[text] for text in texts])


def matching_loss(
    images: Float[Tensor, "b e"], texts: Float[Tensor, "u e"], index: Int[Tensor, " b"], scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """CLIP's loss where several images may have one text: ``texts[index[i]]`` belongs to ``images[i]``."""
    logits = scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).mT
    own = index[:, None] == torch.arange(len(texts))
    to_image = logits.logsumexp(0) - logits.masked_fill(~own, -torch.inf).logsumexp(0)
    return (F.cross_entropy(logits, index) + to_image.mean()) / 2
