"""Stage 1 of TL;DR on the user's own shards: a small codebook captioner from scratch, and its eyes for any picture."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from foveal.curate.tldr_captioner import CodebookCaptioner, caption_ids, load_captioner, save_captioner
from foveal.data.record import Sample
from foveal.data.transforms import resize_square, to_tensor
from foveal.data.webdataset import ShardBatches, Shards
from foveal.train import FitConfig, fit
from foveal.zoo.nano.bpe import clip_tokenizer

LONGEST = 30
"""Tokens of a caption, start and end included."""


def small_captioner(
    tokenizer: Any, *, image_size: int = 64, patch: int = 8, width: int = 192, layers: int = 3, num_codes: int = 256
) -> CodebookCaptioner:
    """A ViT and a BERT decoder of transformers, both ``width`` wide, with random weights."""
    from transformers import BertConfig, BertLMHeadModel, ViTConfig, ViTModel

    shared: dict[str, Any] = {
        "hidden_size": width,
        "num_attention_heads": max(1, width // 48),
        "intermediate_size": 4 * width,
    }
    vision = ViTConfig(**shared, num_hidden_layers=layers, image_size=image_size, patch_size=patch)
    decoder = BertConfig(
        **shared,
        num_hidden_layers=max(1, layers - 1),
        vocab_size=len(tokenizer),
        max_position_embeddings=2 * LONGEST,
        is_decoder=True,
        add_cross_attention=True,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    parts = ViTModel(vision, add_pooling_layer=False), BertLMHeadModel(decoder)
    return CodebookCaptioner(*parts, num_codes=num_codes, dim=width)


def captioner_pixels(
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], model: CodebookCaptioner
) -> Float[Tensor, "b 3 s s"]:
    """Squares of the size that the vision tower's config names, in [−1, 1], on the captioner's device."""
    vision: Any = model.vision
    squares = [resize_square(picture, vision.config.image_size) for picture in pictures]
    return 2 * to_tensor(np.stack(squares)).to(model.codebook.device) - 1


def train_captioner(
    paths: Sequence[Path],
    folder: Path,
    *,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
    vocabulary: int = 4096,
    read: int = 20_000,
    **size: int,
) -> tuple[CodebookCaptioner, Any]:
    """Train on image–caption shards and save to ``folder``; what is there already is loaded, what was begun goes on.

    Args:
        steps: of the optimiser.
        vocabulary: entries of the tokenizer, learned from the first ``read`` captions.
        size: see `small_captioner`.
    """
    if (folder / "captioner.json").is_file():
        return load_captioner(folder)
    shards = Shards(paths, seed=seed)
    texts = [sample.caption for sample in islice(Shards(paths), read) if sample.captions]
    tokenizer = clip_tokenizer(texts, vocabulary, LONGEST)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = small_captioner(tokenizer, **size)

    def collate(samples: list[Sample]) -> dict[str, Tensor]:
        usable = [sample for sample in samples if sample.images and sample.captions]
        if not usable:
            raise ValueError(f"{len(samples)} samples around {samples[0].key!r} lack image or caption: mend the shards")
        ids, mask = caption_ids([sample.caption for sample in usable], tokenizer, LONGEST)
        return {"images": captioner_pixels([sample.image for sample in usable], model), "ids": ids, "mask": mask}

    config = FitConfig(
        lr=1e-3, batch_size=batch_size, seed=seed, save_every=200, after_step=Reseeding(steps // 2, seed)
    )
    batches = ShardBatches(shards, batch_size, collate)
    fit(model, batches, steps=steps, loss=_loss, config=config, out=folder / "training")
    model = model.cpu().eval()
    save_captioner(model, tokenizer, folder)
    return model, tokenizer


def _loss(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    out = model(**batch)
    return {"loss": out.loss, "lm": out.lm, "vq": out.vq}


class Reseeding:
    """For `FitConfig.after_step`: looks for unused codes every 20 steps until step ``last``, then leaves them alone.

    A codebook that starts around zero collapses within a few steps: all tokens are nearest to the same few codes. So
    this does not wait until 5 % are left, as `reseed_dead_` does by default, but keeps half of the codes in use.
    """

    def __init__(self, last: int, seed: int) -> None:
        self.step, self.last, self.generator = 0, last, torch.Generator().manual_seed(seed)

    def __call__(self, model: CodebookCaptioner) -> None:
        self.step += 1
        if self.step % 20 == 0 and self.step <= self.last:
            model.reseed_dead_(self.generator, least=0.5)
