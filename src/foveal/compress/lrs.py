"""LRS: read a picture of any size from coarse to fine, and only where the question looks.

The picture becomes a pyramid of tiles. A small module, copied from a few layers of the language model and distilled to
look where it looks, scores the tokens of a coarse level for the question; the best vote for tiles of the next level:

    s = mean_h softmax(q_h · k_h / √d)          q: last token of the prompt, k: local image tokens, softmax over these
    vote(r, c) = (r·gh // h, c·gw // w)         token (r, c) of h × w to a tile of gh × gw; the best ⌊α·m⌋ of m vote
    keep ⌊α·n⌋ best tokens and all newlines     at the last level, of n valid ones

The language model reads text ⧺ thumbnail ⧺ kept tokens ⧺ text. Only the thumbnail, the whole first level and the tiles
that were voted for are ever encoded (or, with `LazyPyramid`, read from disk).

Junwei Luo, Yingying Zhang, Xue Yang, et al.: When Large Vision-Language Model Meets Large Remote Sensing Imagery:
Coarse-to-Fine Text-Guided Token Pruning. ICCV 2025, arXiv 2503.07588.

Departures: newlines do not vote (in the authors' code they always fetch the right-most tiles); no ':' is put between
thumbnail and local tokens; a picture whose thumbnail has the size of its first level keeps both (their code fails);
the crop leaves at least one row and column, and tiles that it cuts away whole are not fetched if nothing else is.
The authors' code returns the logits of student and teacher without a loss: the KL divergence is our reading. Tokens of
tiles that were not fetched leave the sequence of the region focus module while the others keep their positions, which
gives the scores of masking them for the price of the rest.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from foveal.compress.anatomy import find
from foveal.compress.lrs_benchmark import LrsVqaItem as LrsVqaItem
from foveal.compress.lrs_benchmark import load_lrs_vqa as load_lrs_vqa
from foveal.compress.lrs_benchmark import score_lrs_vqa as score_lrs_vqa
from foveal.compress.lrs_focus import FocusResult as FocusResult
from foveal.compress.lrs_focus import LevelTokens, check_reach, encode_tiles, every_tile, focus, lay_out
from foveal.compress.lrs_focus import coarse_to_fine as coarse_to_fine
from foveal.compress.lrs_focus_pyramid import LazyPyramid as LazyPyramid
from foveal.compress.lrs_focus_pyramid import PyramidLevel as PyramidLevel
from foveal.compress.lrs_focus_pyramid import build_pyramid as build_pyramid
from foveal.compress.lrs_focus_pyramid import pyramid_plan as pyramid_plan
from foveal.compress.lrs_focus_tokens import attention_distillation_loss as attention_distillation_loss
from foveal.compress.lrs_focus_tokens import check_share
from foveal.compress.lrs_focus_tokens import crop_padding as crop_padding
from foveal.compress.lrs_focus_tokens import scatter_tiles as scatter_tiles
from foveal.compress.lrs_focus_tokens import select_tokens as select_tokens
from foveal.compress.lrs_focus_tokens import select_tokens_by_threshold as select_tokens_by_threshold
from foveal.compress.lrs_focus_tokens import text_to_vision_attention as text_to_vision_attention
from foveal.compress.lrs_focus_tokens import vote_tiles as vote_tiles
from foveal.compress.lrs_region import RegionFocusModule as RegionFocusModule
from foveal.compress.lrs_region import language_model_logits as language_model_logits
from foveal.data.windows import PictureFile

TILES_AT_ONCE = 16
"""Tiles that go through the vision tower together."""


@dataclass(frozen=True)
class _Prompt:
    """Embeddings around the local tokens."""

    before: Float[Tensor, "a d"]
    thumbnail: Float[Tensor, "g d"]
    after: Float[Tensor, "b d"]

    @property
    def start(self) -> int:
        """Where the local tokens begin."""
        return len(self.before) + len(self.thumbnail)

    def around(self, local: Float[Tensor, "n d"]) -> Float[Tensor, "1 l d"]:
        return torch.cat([self.before, self.thumbnail, local, self.after])[None]


class LargeImageLlava:
    """A LLaVA-1.5 or LLaVA-NeXT of Hugging Face that reads large images from coarse to fine.

    Args:
        model: the ``…ForConditionalGeneration``; it is not changed.
        rfm: scores the tokens of a level for the question.
        tile: pixels a side; must be the vision tower's ``image_size``, which None takes.
        base_long_side: pixels of the long side of the first level.
        pool: local tiles are pooled to ⌈g / pool⌉ tokens a side, of the tower's g; the thumbnail keeps all.
        keep_ratio, max_level, max_tiles: see `coarse_to_fine`. A picture of 16,384 pixels has its full resolution at
            level 6; ``max_tiles`` then bounds time and memory.

    Attributes:
        last: what the last image came to (`FocusResult`).

    Raises ValueError for other classes of models, another ``tile``, numbers below 1 and a module of another width.
    """

    def __init__(
        self,
        model: Any,
        rfm: RegionFocusModule,
        tile: int | None = None,
        base_long_side: int = 1008,
        pool: int = 2,
        keep_ratio: float = 0.25,
        max_level: int = 2,
        max_tiles: int | None = None,
    ) -> None:
        self.anatomy = anatomy = find(model)
        if anatomy.kind not in ("llava", "llava_next"):
            raise ValueError(f"model={type(model).__name__}: only LLaVA-1.5 and LLaVA-NeXT encode tiles one by one")
        vision = anatomy.model.config.vision_config
        if tile not in (None, vision.image_size):
            raise ValueError(f"tile={tile} must be {vision.image_size}, the image_size of the vision tower")
        if pool < 1 or base_long_side < 1:
            raise ValueError(f"pool={pool}, base_long_side={base_long_side}: both must be at least 1")
        first: Any = rfm.layers[0]
        width, own = anatomy.language.config.hidden_size, first.self_attn.q_proj.in_features
        if own != width:
            raise ValueError(
                f"rfm works on {own} numbers a token, the language model on {width}: copy it from this one"
            )
        check_share(keep_ratio)
        check_reach(max_level, max_tiles)
        self.model, self.rfm = model, rfm
        self.tile, self.base_long_side = vision.image_size, base_long_side
        self.grid = vision.image_size // vision.patch_size
        self.side = math.ceil(self.grid / pool)
        self.keep_ratio, self.max_level, self.max_tiles = keep_ratio, max_level, max_tiles
        self.last: FocusResult | None = None

    def open(self, path: str | os.PathLike[str], mean: Sequence[float], std: Sequence[float]) -> LazyPyramid:
        """A picture on disk that `prepare` and `generate` read by windows; mean and std as in the image processor."""
        return LazyPyramid(PictureFile(path), mean, std, self.tile, self.base_long_side)

    @torch.no_grad()
    def prepare(
        self, image: Float[Tensor, "3 h w"] | LazyPyramid, input_ids: Int[Tensor, "1 l"]
    ) -> dict[str, Float[Tensor, "1 m d"] | Int[Tensor, "1 m"]]:
        """``inputs_embeds`` and ``attention_mask`` for the model, of one image and one prompt.

        Args:
            image: normalised, or from `open`.
            input_ids: with one run of image tokens, of any length, that marks the place of the image.

        Raises ValueError for more than one prompt, none or several runs, a prompt that ends with the image, and a
            pyramid of another ``tile`` or ``base_long_side``.
        """
        pyramid, plan = self._pyramid(image)
        prompt = self._prompt(pyramid, input_ids)

        def score(tokens: LevelTokens, level: int) -> Tensor:
            return self._score(prompt, tokens)

        self.last = focus(
            pyramid,
            plan,
            self._local,
            score,
            self.side,
            self._newline(),
            self.keep_ratio,
            self.max_level,
            self.max_tiles,
        )
        embeds = prompt.around(self.last.tokens)
        return {"inputs_embeds": embeds, "attention_mask": embeds.new_ones(embeds.shape[:2], dtype=torch.long)}

    def generate(
        self, image: Float[Tensor, "3 h w"] | LazyPyramid, input_ids: Int[Tensor, "1 l"], **options: Any
    ) -> Any:
        """What ``model.generate`` gives for `prepare`'s embeddings: the new tokens alone. ``options`` are its own."""
        return self.model.generate(**self.prepare(image, input_ids), **options)

    @torch.no_grad()
    def first_level(
        self, image: Float[Tensor, "3 h w"] | LazyPyramid, input_ids: Int[Tensor, "1 l"]
    ) -> tuple[Float[Tensor, "1 m d"], tuple[int, int]]:
        """Text, thumbnail, every token of the first level, text; and the range of the local ones.

        The input on which the module is distilled, beside `language_model_logits`. Errors as in `prepare`.
        """
        pyramid, plan = self._pyramid(image)
        prompt = self._prompt(pyramid, input_ids)
        every = every_tile(plan[1])
        features = encode_tiles(pyramid, plan, 1, every, self._local, self.side)
        local = lay_out(features, every, plan[1], self.side, self._newline()).features
        return prompt.around(local), (prompt.start, prompt.start + len(local))

    def _pyramid(self, image: Any) -> tuple[list[Tensor] | LazyPyramid, list[PyramidLevel]]:
        if isinstance(image, LazyPyramid):
            if (image.tile, image.base_long_side) != (self.tile, self.base_long_side):
                raise ValueError(
                    f"image has tile={image.tile}, base_long_side={image.base_long_side}, this model works with "
                    f"{self.tile} and {self.base_long_side}; use `open`"
                )
            return image, image.plan
        if image.ndim != 3:
            raise ValueError(f"image {tuple(image.shape)} must be (3, H, W): one normalised image")
        height, width = image.shape[1:]
        plan = pyramid_plan(height, width, self.tile, self.base_long_side)[: self.max_level + 1]
        return build_pyramid(image, plan, self.tile), plan

    def _prompt(self, pyramid: list[Tensor] | LazyPyramid, input_ids: Int[Tensor, "1 l"]) -> _Prompt:
        if input_ids.numel() != input_ids.shape[-1]:
            raise ValueError(f"input_ids {tuple(input_ids.shape)} must be one prompt, (1, L)")
        ids = input_ids.flatten()
        places = (ids == self.anatomy.placeholders[0]).nonzero()[:, 0].tolist()
        if not places or places[-1] - places[0] + 1 != len(places) or places[-1] == len(ids) - 1:
            raise ValueError(
                f"input_ids has {len(places)} image tokens, from {places[:1]} to {places[-1:]} of {len(ids)}; there "
                "must be one run of them, with the question behind it"
            )
        embed = self.model.get_input_embeddings()
        zero = torch.zeros(1, dtype=torch.long)
        thumbnail = self._features(pyramid[0][zero, zero])[0]
        before, after = embed(ids[: places[0]]), embed(ids[places[-1] + 1 :])
        return _Prompt(before, thumbnail.to(before), after)

    def _score(self, prompt: _Prompt, tokens: LevelTokens) -> Float[Tensor, " v"]:
        """Attention of the prompt's last token; places without a token are left out, the others keep their numbers."""
        start, own, every = prompt.start, len(tokens.features), len(tokens.valid)
        device = prompt.after.device
        local = tokens.valid.nonzero()[:, 0].to(device)
        numbers = torch.arange(start + every + len(prompt.after), device=device)
        numbers = torch.cat([numbers[:start], start + local, numbers[start + every :]])
        last = torch.tensor([len(numbers) - 1], device=device)
        embeds = prompt.around(tokens.features.to(prompt.after))
        return self.rfm.scores(embeds, last, (start, start + own), position_ids=numbers[None])[0]

    def _newline(self) -> Tensor | None:
        return getattr(self.anatomy.base, "image_newline", None)

    def _local(self, tiles: Float[Tensor, "k 3 t t"]) -> Float[Tensor, "k n d"]:
        features = self._features(tiles)
        grid = features.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return F.interpolate(grid, (self.side, self.side), mode="bilinear").flatten(2).transpose(1, 2)

    def _features(self, tiles: Float[Tensor, "k 3 t t"]) -> Float[Tensor, "k g d"]:
        """All tokens of each tile as the language model takes them."""
        base, config = self.anatomy.base, self.anatomy.model.config
        wanted = config.vision_feature_layer
        first = next(self.anatomy.vision.parameters())
        parts = []
        for some in tiles.to(first).split(TILES_AT_ONCE):
            states = self.anatomy.vision(some, output_hidden_states=True).hidden_states
            chosen = [states[number] for number in ([wanted] if isinstance(wanted, int) else wanted)]
            patches = torch.cat(chosen, -1)[:, -(self.grid**2) :]  # without the class token, where there is one
            parts.append(base.multi_modal_projector(patches))
        return torch.cat(parts)
