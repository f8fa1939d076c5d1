"""FoPru: drop visual tokens before the decoder, by the attention that the vision encoder has paid already.

The significance of a patch is the attention that the encoder's class token pays to it, in the block whose output the
model takes as features. Two rules turn it into the tokens that stay, for every image by itself.

    s_j = mean_h A[h, CLS, j]                 A: softmax attention of that block, h heads, j over the N patches
    rank:  keep the ⌊N·r⌋ patches of largest s
    row:   keep the ⌊h·r⌋ of h image rows with the largest mean s, each of them whole

At least one patch or row stays, and all go into the decoder in raster order, renumbered as if nothing else had been
there. Encoders without a class token take the mean over all queries in its place.

Lei Jiang, Weizhe Huang, Tongxuan Liu, et al.: FoPru: Focal Pruning for Efficient Large Vision-Language Models. arXiv
2411.14164.

Departures: the paper leaves open which block is read and what becomes of LLaVA-NeXT's line ends. Here it is the block
that the features come from; line ends are not ranked, stay under "rank" and go with their row under "row".
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial, wraps
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from foveal.compress.anatomy import Anatomy
from foveal.compress.base import LayerInput, keep_count
from foveal.compress.prefill import Keep
from foveal.compress.runtime import PrefillReducer

STRATEGIES = ("rank", "row")
AGGREGATES = ("cls", "mean")
POSITIONS = ("compact", "original")
KINDS = ("llava", "llava_next", "llava_onevision")
NOTE = "_foveal_focus"


def token_significance(attention: Float[Tensor, "b h m m"], aggregate: str = "cls") -> Float[Tensor, "b n"]:
    """Attention that tokens receive, mean over heads.

    "cls": from token 0 to each of the n = m − 1 others, as it is in the softmax over all m. "mean": to each of the
    n = m tokens, mean over all queries. Raises ValueError when ``attention`` is not 4-D and for another ``aggregate``.
    """
    _check("aggregate", aggregate, AGGREGATES)
    if attention.ndim != 4:
        raise ValueError(f"attention has shape {tuple(attention.shape)}; give (batch, heads, queries, keys)")
    return attention[:, :, 0, 1:].mean(1) if aggregate == "cls" else attention.mean((1, 2))


def rank_select(significance: Float[Tensor, " n"], ratio: float) -> Int[Tensor, " k"]:
    """The max(1, ⌊n·ratio⌋) tokens of largest ``significance``, ascending; of equals the first.

    Raises ValueError when ``significance`` is not 1-D or empty and for a ratio outside (0, 1].
    """
    _check_ratio(ratio)
    if significance.ndim != 1 or not len(significance):
        raise ValueError(f"significance has shape {tuple(significance.shape)}; give one value for each token")
    keep = max(1, keep_count(len(significance), ratio))
    return significance.argsort(descending=True, stable=True)[:keep].sort().values


def row_select(significance: Float[Tensor, " n"], grid: Sequence[int], ratio: float) -> Int[Tensor, " k"]:
    """The tokens of the max(1, ⌊h·ratio⌋) rows with the largest mean ``significance``, ascending.

    ``grid`` is (h, w), the tokens in raster order. Raises ValueError when h·w is not n and for a ratio outside (0, 1].
    """
    _check_ratio(ratio)
    height, width = (int(side) for side in grid)
    if significance.shape != (height * width,):
        raise ValueError(
            f"significance has shape {tuple(significance.shape)}, grid={(height, width)} has {height * width} tokens"
        )
    rows = torch.arange(height, device=significance.device).repeat_interleave(width)
    return _best_rows(significance, rows, ratio).nonzero()[:, 0]


@torch.no_grad()
def encoder_attention(
    self_attn: Any, hidden: Float[Tensor, "b m d"], rows: Int[Tensor, " r"] | Sequence[int] | slice | int | None = None
) -> Float[Tensor, "b h r m"]:
    """Attention of an encoder block's query ``rows`` (None: all) to all m tokens, in float32 or better.

    ``self_attn`` is the block's attention module (q_proj, k_proj, num_heads), ``hidden`` its input, after the block's
    first LayerNorm. The block itself goes on with its own kernel.
    """
    every = torch.arange(hidden.shape[1], device=hidden.device)
    asked = hidden if rows is None else hidden[:, every[rows].reshape(-1)]
    query, key = (
        part.unflatten(-1, (self_attn.num_heads, -1)).transpose(1, 2)
        for part in (self_attn.q_proj(asked), self_attn.k_proj(hidden))
    )
    logits = (query @ key.transpose(2, 3)) * query.shape[-1] ** -0.5
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)


class FoPru(PrefillReducer):
    """Keep the visual tokens that the vision encoder itself attends to; the decoder never sees the others.

    Works on LLaVA, LLaVA-NeXT and LLaVA-OneVision (whose encoder needs ``aggregate="mean"``). The encoder and its
    kernel stay as they are; one query row against all keys of one block is the price.

    Args:
        ratio: share r of each image's patches or rows that stays, in (0, 1]; at least one does.
        strategy: "rank" keeps the best patches, "row" whole image rows.
        aggregate: "cls" reads the class token's attention, "mean" that of all tokens, for encoders without one.
        layer: block to read, counted as ``vision_feature_layer``: 1 is the first block, −1 the last. None: the one that
            the model takes its features from.
        positions: "compact" renumbers what stays, as in the paper; "original" keeps the numbers, which serves a model
            better that has only ever seen one number of image tokens.

    Raises ValueError for other values; on `attach` for a model that has no such block, or no class token for "cls".
    """

    reads_features = True

    def __init__(
        self,
        ratio: float = 0.25,
        strategy: str = "rank",
        aggregate: str = "cls",
        layer: int | None = None,
        positions: str = "compact",
    ) -> None:
        super().__init__()
        _check_ratio(ratio)
        _check("strategy", strategy, STRATEGIES)
        _check("aggregate", aggregate, AGGREGATES)
        _check("positions", positions, POSITIONS)
        if layer is not None and (not isinstance(layer, int) or layer == 0):
            raise ValueError(f"layer={layer!r} must be 1, 2, … from the first block or −1, −2, … from the last")
        self.ratio, self.strategy, self.aggregate, self.layer = ratio, strategy, aggregate, layer
        self.positions = positions
        self._significance: Float[Tensor, "tiles n"] | None = None
        self._maps: list[Float[Tensor, " n"]] | None = None
        self._cost = 0

    # The vision side --------------------------------------------------------------------------------------------------

    def check(self, anatomy: Anatomy) -> None:
        """Raise ValueError for models other than the LLaVA family, and for a tower without what is to be read."""
        name = type(self).__name__
        if anatomy.kind not in KINDS:
            anatomy.refuse(name, "its images come in other parts than the encoder's patches, or without a class token")
        if not hasattr(_tower(anatomy), "encoder"):
            anatomy.refuse(name, f"the vision tower {type(anatomy.vision).__name__} has no encoder.layers to read")
        if self.aggregate == "cls" and not self._has_class_token(anatomy):
            raise ValueError(
                f'aggregate="cls": {type(anatomy.vision).__name__} has no class token; take aggregate="mean"'
            )
        self._block(anatomy)

    def watch(self, anatomy: Anatomy) -> list[Any]:
        """Read the attention of one encoder block, and let the model lay out significance as it lays out features."""
        attention = self._block(anatomy).self_attn
        handles: list[Any] = [attention.register_forward_pre_hook(self._read, with_kwargs=True)]
        if hasattr(anatomy.base, "pack_image_features"):
            handles.append(_Wrapped(anatomy.base, "pack_image_features", self._pack))
        return handles

    def annotate(self, features: list[Tensor], arguments: Mapping[str, Any]) -> None:
        """Choose the tokens of each image as soon as it is encoded, and note them on its features."""
        assert self.anatomy is not None
        self._check_layer_of_call(arguments)
        assert self._significance is not None
        maps = list(self._significance) if self._maps is None else self._maps
        cost, self._significance, self._maps = self._cost // max(1, len(features)), None, None
        vision = self.anatomy.model.config.vision_config
        pixels = arguments["pixel_values"]
        height, width = (side // vision.patch_size for side in pixels[0].shape[-2:])
        for feature, significance in zip(features, maps, strict=True):
            if len(significance) != len(feature):
                raise ValueError(
                    f"an image has {len(feature)} features for {len(significance)} patches; use the model with "
                    'vision_feature_select_strategy="default" where its encoder has a class token, else with "full"'
                )
            setattr(feature, NOTE, (self._stays(significance, height, width).nonzero()[:, 0], cost))

    def _block(self, anatomy: Anatomy) -> Any:
        layers = _tower(anatomy).encoder.layers
        wanted = anatomy.model.config.vision_feature_layer if self.layer is None else self.layer
        if not isinstance(wanted, int):
            raise ValueError(f"the model joins features of several blocks, {wanted}; say which to read with layer=…")
        if wanted == 0 or not -len(layers) <= wanted <= len(layers):
            raise ValueError(f"layer={wanted}: the vision tower has blocks 1 to {len(layers)} or −{len(layers)} to −1")
        return layers[wanted - 1 if wanted > 0 else wanted]

    def _check_layer_of_call(self, arguments: Mapping[str, Any]) -> None:
        """The block was chosen on `attach`."""
        assert self.anatomy is not None
        own, asked = self.anatomy.model.config.vision_feature_layer, arguments.get("vision_feature_layer")
        if self.layer is None and asked is not None and asked != own:
            raise ValueError(
                f"vision_feature_layer={asked} at the call, {own} in the model's config; set it in the config before "
                "attaching, or name the block with FoPru(layer=…)"
            )

    def _has_class_token(self, anatomy: Anatomy) -> bool:
        return hasattr(_tower(anatomy).embeddings, "class_embedding")

    @torch.no_grad()
    def _read(self, attention: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Significance of every patch of every tile, right before the block's own attention."""
        assert self.anatomy is not None
        hidden = (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]).detach()
        tiles, m, width = hidden.shape
        queries = 1 if self.aggregate == "cls" else m
        self._cost = 2 * tiles * (m + queries) * width * width + 2 * tiles * queries * m * width
        if self.aggregate == "cls":
            self._significance = token_significance(encoder_attention(attention, hidden, [0]))
            return
        # m × m attention of one tile at a time
        each = [token_significance(encoder_attention(attention, tile), "mean") for tile in hidden.split(1)]
        self._significance = torch.cat(each)[:, int(self._has_class_token(self.anatomy)) :]

    def _pack(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's own layout of tiles, once more for the significance; line ends become NaN."""
        packed = original(*args, **kwargs)
        assert self._significance is not None
        call = inspect.signature(original).bind(*args, **kwargs)
        counts = [len(tiles) for tiles in call.arguments["image_features"]]
        call.arguments["image_features"] = self._significance[..., None].split(counts)
        call.arguments["image_newline"] = self._significance.new_full((1,), torch.nan)
        self._maps = [laid[:, 0] for laid in original(*call.args, **call.kwargs)[0]]
        return packed

    def _stays(self, significance: Float[Tensor, " n"], height: int, width: int) -> Bool[Tensor, " n"]:
        """Which entries of one image stay; NaN marks line ends."""
        line_end = significance.isnan()
        if self.strategy == "rank":
            patches = (~line_end).nonzero()[:, 0]
            stays = line_end.clone()
            stays[patches[rank_select(significance[patches], self.ratio)]] = True
            return stays
        return _best_rows(significance, image_rows(line_end, height, width), self.ratio)

    # The decoder's side -----------------------------------------------------------------------------------------------

    def select(self, step: LayerInput) -> Keep | None:
        """What was chosen as the images were encoded, before the first layer."""
        if step.layer != 0 or not any(step.n_image):
            return None
        chosen: list[list[Tensor]] = [[] for _ in step.n_image]
        for (sample, places), feature in zip(step.images(), step.features or (), strict=True):
            stays, cost = getattr(feature, NOTE)
            chosen[sample].append(places[stays.to(places.device)])
            step.spend(cost)
        return [torch.cat(places) if places else None for places in chosen]


def image_rows(line_end: Bool[Tensor, " n"], height: int, width: int) -> Int[Tensor, " n"]:
    """The image row that each feature belongs to: those of the whole picture, then those of its enlarged map.

    The picture has ``height`` × ``width`` features. The map that may follow ends each of its rows with a line end. A
    single line end without a map belongs to the picture's last row.
    """
    places = torch.arange(len(line_end), device=line_end.device)
    ended = line_end.cumsum(0) - line_end.long()
    rows = torch.where(places < height * width, places // width, height + ended)
    return rows.clamp(max=height - 1) if len(line_end) <= height * width + 1 else rows


def _best_rows(significance: Float[Tensor, " n"], rows: Int[Tensor, " n"], ratio: float) -> Bool[Tensor, " n"]:
    """Which tokens are in the best rows by mean; NaN entries do not count and go with their row."""
    significance = significance.to(torch.promote_types(significance.dtype, torch.float32))
    counted = (~significance.isnan()).to(significance.dtype)
    empty = significance.new_zeros(int(rows.max()) + 1)
    total = empty.index_add(0, rows, significance.nan_to_num(0.0))
    mean = total / empty.index_add(0, rows, counted)
    return torch.isin(rows, rank_select(mean, ratio))


class _Wrapped:
    """A method of one instance, replaced until `remove`, as the handles of hooks."""

    def __init__(self, owner: Any, name: str, replacement: Any) -> None:
        original = getattr(owner, name)
        own = name in vars(owner)
        self.remove = partial(setattr, owner, name, original) if own else partial(delattr, owner, name)
        setattr(owner, name, wraps(original)(partial(replacement, original)))


def _tower(anatomy: Anatomy) -> Any:
    """Before transformers 5.23 the towers had a shell around embeddings and encoder."""
    return getattr(anatomy.vision, "vision_model", anatomy.vision)


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio={ratio}: the share of tokens to keep must lie in (0, 1]")


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r} must be {' or '.join(repr(option) for option in known)}")
