"""UNITER's network: words and image regions as one sequence through a BERT encoder, and the heads of its four tasks.

The layers are those of `transformers`' BERT. Parameters carry the names of the official release, whose checkpoints
load into `UNITERForPretraining`; `UNITER.load_bert` starts from a BERT instead. See `foveal.pretrain.uniter`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertPooler

from foveal.nn.ot import cosine_cost, ipot
from foveal.nn.word_head import TiedWordHead

Batch = Mapping[str, Tensor]
EPS = 1e-12
HIDDEN_SCORE = -10_000.0  # what the release adds to the scores of padding: its exponential is 0 in every precision
POSITION_FEATURES = 7
INPUTS = ("input_ids", "text_mask", "region_features", "region_positions", "region_mask")


@dataclass(frozen=True)
class UNITERConfig:
    """Sizes; the defaults are UNITER-base. ``img_dim``: width of region features. ``img_label_dim``: detector classes
    with the background, which is class 0."""

    vocab_size: int = 28996
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    dropout: float = 0.1
    img_dim: int = 2048
    img_label_dim: int = 1601

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads}: must divide hidden_size={self.hidden_size}"
            )
        if self.type_vocab_size < 2 or self.img_label_dim < 2:
            sizes = f"type_vocab_size={self.type_vocab_size}, img_label_dim={self.img_label_dim}"
            raise ValueError(f"{sizes}: both must be at least 2 (text and image; background and one class)")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: must be in [0, 1)")

    def bert(self) -> BertConfig:
        """The same sizes for the layers of transformers."""
        own = "dropout", "img_dim", "img_label_dim"
        sizes: dict[str, Any] = {name: value for name, value in asdict(self).items() if name not in own}
        sizes |= dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), self.dropout)
        sizes |= {"layer_norm_eps": EPS, "attn_implementation": "sdpa"}
        return BertConfig(**sizes)


def mask_regions(features: Float[Tensor, "b n dv"], masked: Bool[Tensor, "b n"]) -> Float[Tensor, "b n dv"]:
    """A copy whose masked rows are 0."""
    if features.ndim != 3 or masked.shape != features.shape[:2]:
        raise ValueError(f"features {tuple(features.shape)}, masked {tuple(masked.shape)}: must be (B, N, Dv), (B, N)")
    return features.masked_fill(masked.bool()[..., None], 0)


def wra_distance(
    text_hidden: Float[Tensor, "b m d"],
    image_hidden: Float[Tensor, "b n d"],
    text_mask: Bool[Tensor, "b m"],
    image_mask: Bool[Tensor, "b n"],
    *,
    beta: float = 0.5,
    iterations: int = 50,
    inner: int = 1,
) -> Float[Tensor, " b"]:
    """Cost of moving each text's words onto its image's regions: Σ C∘T with C = 1 − cosine and T from `ipot`.

    The gradient goes through C alone, as the optimal T does not change to first order. Padding may hold anything.
    Raises ValueError for shapes that do not fit, and for NaN or infinity at valid places.
    """
    for name, hidden, mask in (("text", text_hidden, text_mask), ("image", image_hidden, image_mask)):
        if hidden.ndim != 3 or mask.shape != hidden.shape[:2]:
            shapes = f"{name}_hidden {tuple(hidden.shape)}, {name}_mask {tuple(mask.shape)}"
            raise ValueError(f"{shapes}: must be (B, length, D) and (B, length)")
    words, regions = mask_regions(text_hidden, ~text_mask.bool()), mask_regions(image_hidden, ~image_mask.bool())
    for name, hidden in (("text_hidden", words), ("image_hidden", regions)):
        if not bool(hidden.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity: check the features that it was computed from")
    cost = cosine_cost(words, regions)
    plan = ipot(cost.detach(), text_mask, image_mask, beta=beta, iterations=iterations, inner=inner)
    return (cost * plan).sum((1, 2))


class RegionEmbeddings(nn.Module):
    """Region features and places -> vectors as wide as those of words; regions have no order."""

    def __init__(self, config: UNITERConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.img_linear = nn.Linear(config.img_dim, width)
        self.img_layer_norm = nn.LayerNorm(width, eps=EPS)
        self.pos_linear = nn.Linear(POSITION_FEATURES, width)
        self.pos_layer_norm = nn.LayerNorm(width, eps=EPS)
        self.mask_embedding = nn.Embedding(2, config.img_dim, padding_idx=0)  # row 1 is the mask, row 0 stays zero
        self.LayerNorm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        features: Float[Tensor, "b n dv"],
        positions: Float[Tensor, "b n 7"],
        kind: Float[Tensor, " d"],
        masked: Bool[Tensor, "b n"] | None,
    ) -> Float[Tensor, "b n d"]:
        """``kind``: the token-type vector of images. Masked regions keep their place and lose their feature."""
        features = features.to(self.img_linear.weight.dtype)
        if masked is not None:
            features = mask_regions(features, masked) + masked[..., None] * self.mask_embedding.weight[1]
        what = self.img_layer_norm(self.img_linear(features))
        where = self.pos_layer_norm(self.pos_linear(positions.to(features.dtype)))
        return self.dropout(self.LayerNorm(what + where + kind))


class UNITER(nn.Module):
    """[words; regions] -> hidden states and the pooled [CLS]."""

    def __init__(self, config: UNITERConfig) -> None:
        super().__init__()
        self.config = config
        bert = config.bert()
        self.embeddings = BertEmbeddings(bert)
        self.img_embeddings = RegionEmbeddings(config)
        self.encoder = BertEncoder(bert)
        self.pooler = BertPooler(bert)
        self.apply(_start)

    def forward(
        self,
        input_ids: Int[Tensor, "b l"],
        text_mask: Bool[Tensor, "b l"],
        region_features: Float[Tensor, "b n dv"],
        region_positions: Float[Tensor, "b n 7"],
        region_mask: Bool[Tensor, "b n"],
        masked_regions: Bool[Tensor, "b n"] | None = None,
    ) -> tuple[Float[Tensor, "b l_plus_n d"], Float[Tensor, "b d"]]:
        """Hidden states of words, then regions; and the pooled vector. Padding (mask False) may hold anything.

        Args:
            input_ids: [CLS] words [SEP], padded on the right.
            region_positions: from `region_position_features`.
            masked_regions: True: the region's feature is hidden, it is for the model to guess.

        Raises ValueError for shapes that do not fit, texts longer than the positions, texts that start with padding,
        images without a valid region, and masked padding.
        """
        self._check(input_ids, text_mask, region_features, region_positions, region_mask, masked_regions)
        text_mask, region_mask = text_mask.bool(), region_mask.bool()
        features, positions = mask_regions(region_features, ~region_mask), mask_regions(region_positions, ~region_mask)
        text = self.embeddings(input_ids.masked_fill(~text_mask, 0))
        kind = self.embeddings.token_type_embeddings(input_ids.new_ones(()))
        regions = self.img_embeddings(features, positions, kind, masked_regions)
        hidden_score = HIDDEN_SCORE * ~torch.cat([text_mask, region_mask], 1)[:, None, None]
        sequence = torch.cat([text, regions], 1)
        hidden = self.encoder(sequence, attention_mask=hidden_score.to(sequence.dtype)).last_hidden_state
        return hidden, self.pooler(hidden)

    @torch.no_grad()
    def load_bert(self, bert: BertModel) -> None:
        """Start from a BERT of the same sizes: all but the embedding of regions. ValueError names what does not fit."""
        theirs = bert.state_dict()
        shared = {name: value for name, value in self.state_dict().items() if not name.startswith("img_embeddings.")}
        for name, value in shared.items():
            if name not in theirs or theirs[name].shape != value.shape:
                found = tuple(theirs[name].shape) if name in theirs else "missing"
                raise ValueError(f"bert has {name} {found}: must be {tuple(value.shape)}, make UNITERConfig fit it")
        self.load_state_dict({name: theirs[name] for name in shared}, strict=False)

    def _check(
        self,
        input_ids: Tensor,
        text_mask: Tensor,
        features: Tensor,
        positions: Tensor,
        region_mask: Tensor,
        masked: Tensor | None,
    ) -> None:
        longest, width = self.config.max_position_embeddings, self.config.img_dim
        if input_ids.ndim != 2 or not 0 < input_ids.shape[1] <= longest or text_mask.shape != input_ids.shape:
            shapes = f"input_ids {tuple(input_ids.shape)}, text_mask {tuple(text_mask.shape)}"
            raise ValueError(f"{shapes}: must be (B, L) alike with L at most max_position_embeddings={longest}")
        rows = (len(input_ids), *region_mask.shape[1:])
        if region_mask.shape != rows or features.shape != (*rows, width) or positions.shape != (*rows, 7):
            shapes = f"region_features {tuple(features.shape)}, region_positions {tuple(positions.shape)}, region_mask"
            raise ValueError(
                f"{shapes} {tuple(region_mask.shape)}: must be (B, N, {width}), (B, N, 7), (B, N) with B={rows[0]}"
            )
        if not bool(text_mask[:, 0].bool().all()):
            raise ValueError("text_mask hides the first place of a text: [CLS] must stand there, pad on the right")
        if not bool(region_mask.bool().any(1).all()):
            raise ValueError("region_mask has a row without a valid region: give such an image its whole as a region")
        if masked is not None and masked.shape != region_mask.shape:
            raise ValueError(
                f"masked_regions {tuple(masked.shape)} must be like region_mask {tuple(region_mask.shape)}"
            )
        if masked is not None and bool((masked.bool() & ~region_mask.bool()).any()):
            raise ValueError("masked_regions marks padding: mask valid regions only, see sample_region_mask")


class RegionRegression(nn.Module):
    """Hidden states -> region features, through the transpose of the map by which features came in."""

    def __init__(self, width: int, img_linear: nn.Linear) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=EPS))
        self.weight = img_linear.weight
        self.bias = nn.Parameter(torch.zeros(img_linear.in_features))

    def forward(self, hidden: Float[Tensor, "s d"]) -> Float[Tensor, "s dv"]:
        return F.linear(self.net(hidden), self.weight.T, self.bias)


class UNITERForPretraining(nn.Module):
    """UNITER with the heads of its tasks.

    A batch is a dict: ``input_ids``, ``text_mask``, ``region_features`` (not masked), ``region_positions``,
    ``region_mask``, and what a task needs: ``labels`` (mlm), ``masked_regions`` (mrfr, mrc), ``detector_probs`` (mrc),
    ``targets`` (itm). S counts the masked regions of the batch, image by image.
    """

    def __init__(self, config: UNITERConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.uniter = UNITER(config)
        self.cls = nn.ModuleDict({"predictions": TiedWordHead(self.uniter.embeddings.word_embeddings, EPS)})
        self.feat_regress = RegionRegression(width, self.uniter.img_embeddings.img_linear)
        layers = (
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width, eps=EPS),
            nn.Linear(width, config.img_label_dim),
        )
        self.region_classifier = nn.ModuleDict({"net": nn.Sequential(*layers)})
        self.itm_output = nn.Linear(width, 2)
        for head in (self.cls, self.feat_regress, self.region_classifier, self.itm_output):
            head.apply(_start)

    def forward_mlm(self, batch: Batch) -> Float[Tensor, "b l v"]:
        """Scores of all words at every place of the text; all regions are visible."""
        return self.cls["predictions"](self.encode(batch)[0][:, : batch["input_ids"].shape[1]])

    def word_scores(self, batch: Batch, wanted: Bool[Tensor, "b l"]) -> Float[Tensor, "s v"]:
        """`forward_mlm` at the places ``wanted`` alone: with a large vocabulary the others cost most of the step."""
        return self.cls["predictions"](self.encode(batch)[0][:, : batch["input_ids"].shape[1]][wanted])

    def forward_mrfr(self, batch: Batch) -> Float[Tensor, "s dv"]:
        """The features of the masked regions; all words are visible."""
        return self.feat_regress(self._masked_regions(batch))

    def forward_mrc(self, batch: Batch) -> Float[Tensor, "s c"]:
        """Scores of the detector's classes for the masked regions."""
        return self.region_classifier["net"](self._masked_regions(batch))

    def forward_itm(self, batch: Batch) -> tuple[Float[Tensor, "b 2"], Float[Tensor, " b"]]:
        """Scores of (no match, match), and `wra_distance` over all valid words and regions; nothing is masked."""
        return self.match(batch, *self.encode(batch))

    def match(
        self, batch: Batch, hidden: Float[Tensor, "b l_plus_n d"], pooled: Float[Tensor, "b d"]
    ) -> tuple[Float[Tensor, "b 2"], Float[Tensor, " b"]]:
        """`forward_itm` of what `encode` gave."""
        length = batch["input_ids"].shape[1]
        masks = batch["text_mask"], batch["region_mask"]
        return self.itm_output(pooled), wra_distance(hidden[:, :length], hidden[:, length:], *masks)

    def encode(
        self, batch: Batch, masked: Bool[Tensor, "b n"] | None = None
    ) -> tuple[Float[Tensor, "b l_plus_n d"], Float[Tensor, "b d"]]:
        """Hidden states of words and regions, and the pooled vector; see `UNITER`."""
        return self.uniter(*(batch[name] for name in INPUTS), masked)

    def _masked_regions(self, batch: Batch) -> Float[Tensor, "s d"]:
        masked = batch["masked_regions"].bool()
        return self.encode(batch, masked)[0][:, batch["input_ids"].shape[1] :][masked]


def _start(module: nn.Module) -> None:
    """BERT's random start."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
