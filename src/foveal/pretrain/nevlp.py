"""NEVLP: a Q-Former between a frozen image encoder and a frozen LLM, trained on pairs of which many are noise.

Three losses with equal weights, on B pairs; s_ij = max over queries q of cos(query_iq, text_j), p = softmax(s/τ):

    nitc    ω_i = λ ε_i, ε_i = probability that pair i is noise (`NoiseEstimator`); for row and column i alike
            mixture           −log[(1 − ω_i) p_i + ω_i/(B−1) Σ_{j≠i} p_j]
            label_smoothing   −(1 − ω_i) log p_i − ω_i/(B−1) Σ_{j≠i} log p_j
    citm    does the text, with the names of what is in the image, match? positives and hard negatives ∝ softmax(s/τ)
    citg    each word of the text from image, names and the words before it

Stage 2 (`VisualPrefix`, `prefix_lm_loss`) puts the queries' outputs before the words of a frozen language model.

Yiyi Tao, Zhuoyue Wang, Hang Zhang, Lun Wang: NEVLP: Noise-Robust Framework for Efficient Vision-Language Pre-training.
2024, arXiv 2409.09582. No official code. BLIP-2, whose losses these extend: see `foveal.nn.qformer`.

Departures: the paper does not write out the softened loss; "mixture" and "label_smoothing" are the two forms of NLIP
(arXiv 2212.07086), and λ = 0.5 is ours. One start token serves all tasks (BLIP-2 swaps it for generation).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveal.nn.cosine import unit_rows
from foveal.pretrain import base_fusion
from foveal.pretrain.base import (
    LogitScale,
    at_least_float32,
    finite_loss,
    full_precision,
    gather_features,
    mean_over_processes,
)
from foveal.pretrain.base_fusion import IGNORED as IGNORED
from foveal.pretrain.base_towers import vision_tokens
from foveal.pretrain.nevlp_bridge import ConceptQFormer as ConceptQFormer
from foveal.pretrain.nevlp_bridge import VisualPrefix as VisualPrefix
from foveal.pretrain.nevlp_bridge import build_attention_mask as build_attention_mask
from foveal.pretrain.nevlp_bridge import prefix_lm_loss as prefix_lm_loss
from foveal.pretrain.nevlp_noise import NoiseEstimator as NoiseEstimator
from foveal.pretrain.nevlp_noise import NoiseGMM as NoiseGMM
from foveal.pretrain.nevlp_noise import fit_noise_gmm as fit_noise_gmm
from foveal.pretrain.nevlp_noise import itc_per_sample as itc_per_sample
from foveal.pretrain.nevlp_noise import scaled_scores

MODES = ("mixture", "label_smoothing")
NEVER = -1e4  # a cosine that the softmax of hard negatives turns into 0

# Contrast -------------------------------------------------------------------------------------------------------------


@dataclass
class NITCLoss:
    """The mean over the batch, and what each pair adds to it."""

    loss: Float[Tensor, ""]
    per_sample: Float[Tensor, " b"]


def query_text_similarity(query: Float[Tensor, "b q d"], text: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
    """Cosine of each text with the query of each image that is nearest to it; rows are images."""
    if query.ndim != 3 or text.ndim != 2 or query.shape[0] != text.shape[0] or query.shape[2] != text.shape[1]:
        raise ValueError(f"query {tuple(query.shape)} and text {tuple(text.shape)} must be (B, Q, D) and (B, D)")
    with full_precision(query):
        return torch.einsum("iqd,jd->ijq", unit_rows(query), unit_rows(text)).amax(2)


def noise_adaptive_itc(
    sim: Float[Tensor, "b b"],
    noise_prob: Float[Tensor, " b"],
    temperature: float | Tensor = 0.07,
    lam: float = 0.5,
    mode: str = "mixture",
) -> NITCLoss:
    """The contrastive loss whose targets soften with the noise probability of the pair; ``lam`` = 0 is the plain one.

    Noisy pairs stay negatives of the others. A batch of one has nowhere to put the softened mass: its loss is 0.

    Args:
        sim: cosines; rows are images, columns texts.
        noise_prob: ε in [0, 1].
        mode: "mixture" accepts mass on the pair or anywhere else, "label_smoothing" pulls towards uniform.

    Raises ValueError for a sim that is not square or not finite, ε or λ outside [0, 1], an unknown mode.
    """
    logits = scaled_scores(sim, temperature)
    if noise_prob.shape != sim.shape[:1]:
        raise ValueError(f"noise_prob {tuple(noise_prob.shape)} must be ({len(sim)},), one for each pair")
    if bool((wrong := ~((noise_prob >= 0) & (noise_prob <= 1))).any()):
        value = noise_prob[wrong][0].item()
        raise ValueError(f"noise_prob holds {value}: must be finite and in [0, 1], probabilities of fit_noise_gmm")
    if not 0 <= lam <= 1:
        raise ValueError(f"lam={lam}: must be in [0, 1]")
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown: choose one of {', '.join(MODES)}")
    omega = lam * noise_prob.to(logits.dtype)
    form = _mixture if mode == "mixture" else _label_smoothing
    if len(sim) == 1:
        per_sample = 0 * (logits[0] + omega)
    else:
        per_sample = (form(logits, omega) + form(logits.mT, omega)) / 2
    return NITCLoss(finite_loss(per_sample.mean(), sim=sim), per_sample)


def _mixture(logits: Float[Tensor, "b b"], omega: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    log_p = logits.log_softmax(1)
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    elsewhere = log_p.masked_fill(own, -math.inf).logsumexp(1) - math.log(len(logits) - 1)
    return -torch.logaddexp(_log(1 - omega) + log_p.diagonal(), _log(omega) + elsewhere)


def _label_smoothing(logits: Float[Tensor, "b b"], omega: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    log_p = logits.log_softmax(1)
    elsewhere = (log_p.sum(1) - log_p.diagonal()) / (len(logits) - 1)
    return -(1 - omega) * log_p.diagonal() - omega * elsewhere


def _log(x: Tensor) -> Tensor:
    """log x, with log 0 = −∞ whose gradient is 0 and not NaN."""
    return torch.where(x > 0, x.where(x > 0, 1).log(), -math.inf)


# Concepts -------------------------------------------------------------------------------------------------------------


def retrieve_concepts(
    image: Float[Tensor, "b d"], concepts: Float[Tensor, "c d"], k: int
) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k"]]:
    """Indices and cosines of the k concepts nearest to each image, best first."""
    if image.ndim != 2 or concepts.ndim != 2 or image.shape[1] != concepts.shape[1]:
        raise ValueError(f"image {tuple(image.shape)} and concepts {tuple(concepts.shape)} must be (B, D) and (C, D)")
    if not 1 <= k <= len(concepts):
        raise ValueError(f"k={k}: must be between 1 and the number of concepts, {len(concepts)}")
    with full_precision(image):
        score, index = (unit_rows(image) @ unit_rows(concepts).mT).topk(k, 1)
    return index, score


def concept_text(concepts: Sequence[str], caption: str) -> str:
    """ "a, b. caption"; without concepts the caption."""
    return f"{', '.join(concepts)}. {caption}" if concepts else caption


class ConceptIndex:
    """Images -> tokens of the names of what is in them: "a, b, c."

    Args:
        names: the vocabulary of C object names.
        features: their vectors from the text tower of a pretrained dual encoder, (C, D).
        encode_image: its image tower: images -> (B, D).
        tokenize: texts -> (ids, mask) of the bridge's tokenizer, without special tokens, padded on the right.
        k: names for each image.
    """

    def __init__(
        self,
        names: Sequence[str],
        features: Float[Tensor, "c d"],
        encode_image: Callable[[Any], Float[Tensor, "b d"]],
        tokenize: Callable[[list[str]], tuple[Tensor, Tensor]],
        k: int = 4,
    ) -> None:
        if len(names) != len(features) or not 1 <= k <= len(names):
            raise ValueError(f"names ({len(names)}) and features ({len(features)}) must pair up, k={k} at most as many")
        self.names, self.features, self.encode_image, self.tokenize, self.k = names, features, encode_image, tokenize, k

    @torch.no_grad()
    def __call__(self, images: Any) -> tuple[Int[Tensor, "b c"], Bool[Tensor, "b c"]]:
        """Ids and mask of the enriching text."""
        index, _ = retrieve_concepts(self.encode_image(images), self.features, self.k)
        return self.tokenize([concept_text([self.names[i] for i in row], "").strip() for row in index.tolist()])


# Matching and generation ----------------------------------------------------------------------------------------------


@torch.no_grad()
def hard_negatives(
    sim: Float[Tensor, "b b"], generator: torch.Generator, temperature: float | Tensor = 1.0
) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
    """A wrong text for each image and a wrong image for each text, drawn ∝ softmax(sim/temperature), never its own."""
    logits = scaled_scores(sim, temperature)
    if len(sim) < 2:
        raise ValueError("sim has one pair: negatives need at least two")
    logits = logits.masked_fill(torch.eye(len(sim), dtype=torch.bool, device=sim.device), -math.inf)
    both = torch.cat([logits, logits.mT]).softmax(1)
    finite_loss(both.sum(), sim=sim)
    drawn = torch.multinomial(both.to(generator.device), 1, generator=generator)[:, 0].to(sim.device)
    return drawn[: len(sim)], drawn[len(sim) :]


def itm_loss(logits: Float[Tensor, "n q 2"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """`base_fusion.itm_loss`; label 1: image and text match."""
    return base_fusion.itm_loss(logits, labels)


def citg_labels(
    concept_ids: Int[Tensor, "b c"], text_ids: Int[Tensor, "b t"], text_mask: Bool[Tensor, "b t"]
) -> Int[Tensor, "b c_plus_t"]:
    """The words to predict: −100 for concepts, for the start token ``text_ids[:, 0]`` and for padding."""
    if text_ids.ndim != 2 or text_mask.shape != text_ids.shape or concept_ids.shape[:1] != text_ids.shape[:1]:
        shapes = f"concept_ids {tuple(concept_ids.shape)}, text_ids {tuple(text_ids.shape)}"
        raise ValueError(f"{shapes}, text_mask {tuple(text_mask.shape)}: must be (B, C), (B, T) and (B, T)")
    silent = ~text_mask.bool()
    silent[:, 0] = True
    return torch.cat([torch.full_like(concept_ids, IGNORED), text_ids.masked_fill(silent, IGNORED)], 1)


def itg_loss(logits: Float[Tensor, "b l v"], labels: Int[Tensor, "b l"]) -> Float[Tensor, ""]:
    """Cross-entropy of the next word, the scores at p against the label at p + 1; mean over the words with a label."""
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}: must be (B, L, V) and (B, L)")
    if not bool((labels[:, 1:] != IGNORED).any()):
        raise ValueError(f"labels are all {IGNORED} after the first place: a text needs a word after its start token")
    return F.cross_entropy(
        at_least_float32(logits)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )


# Objective ------------------------------------------------------------------------------------------------------------


@dataclass
class NevlpOutput:
    """The sum and its parts; ``per_sample_itc`` is the plain loss of this process's pairs, for `NoiseEstimator`."""

    loss: Float[Tensor, ""]
    nitc: Float[Tensor, ""]
    citm: Float[Tensor, ""]
    citg: Float[Tensor, ""]
    per_sample_itc: Float[Tensor, " b"]


class NevlpObjective(nn.Module):
    """Stage 1. In a distributed run contrast and hard negatives reach over all processes.

    There every process needs as many pairs and a generator in the same state; texts and concepts may be padded to
    other lengths on each.

    Args:
        vision: images -> (B, N, Dv), or a vision model of transformers; it is frozen here, and stays in eval mode.
        concept_index: names objects where forward gets no ``concept_ids``; without both, texts are not enriched.
        lam, mode: see `noise_adaptive_itc`.

    After every optimiser step call ``objective.logit_scale.clamp_()``: it is 1/τ, τ starts at 0.07.
    """

    def __init__(
        self,
        vision: nn.Module,
        bridge: ConceptQFormer,
        concept_index: ConceptIndex | None = None,
        lam: float = 0.5,
        mode: str = "mixture",
    ) -> None:
        super().__init__()
        if not 0 <= lam <= 1:
            raise ValueError(f"lam={lam}: must be in [0, 1]")
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} is unknown: choose one of {', '.join(MODES)}")
        self.vision, self.bridge = vision.requires_grad_(False).eval(), bridge
        self.concept_index, self.lam, self.mode = concept_index, lam, mode
        self.logit_scale = LogitScale()

    def train(self, mode: bool = True) -> "NevlpObjective":
        """As for every module, except that the frozen encoder stays in eval mode."""
        super().train(mode)
        self.vision.eval()
        return self

    def forward(
        self,
        images: Any,
        text_ids: Int[Tensor, "b t"],
        text_mask: Bool[Tensor, "b t"],
        concept_ids: Int[Tensor, "b c"] | None,
        concept_mask: Bool[Tensor, "b c"] | None,
        noise_prob: Float[Tensor, " b"] | None,
        generator: torch.Generator,
    ) -> NevlpOutput:
        """The losses of a batch. ``noise_prob`` None: plain contrast, for the warm-up.

        Raises ValueError for shapes that do not fit, empty texts and non-finite features. A batch of one has no
        negatives: nitc is 0, citm sees the positive alone, as it does where all texts are alike.
        """
        if concept_ids is None or concept_mask is None:
            if self.concept_index is not None:
                concept_ids, concept_mask = self.concept_index(images)
            else:
                concept_ids, concept_mask = text_ids[:, :0], text_mask[:, :0].bool()
        features = vision_tokens(self.vision, images)
        texts = [text_ids, text_mask.bool(), concept_ids, concept_mask.bool()]
        _check_texts(features, *texts)
        noise = text_ids.new_zeros(len(text_ids), dtype=torch.float32) if noise_prob is None else noise_prob
        query, text = self.bridge.contrast(features, *texts[:2])
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        mine = slice(rank * len(text_ids), (rank + 1) * len(text_ids))
        sim = query_text_similarity(gather_features(query), gather_features(text))
        scale = self.logit_scale()
        nitc = noise_adaptive_itc(sim, gather_features(noise), 1 / scale, self.lam, self.mode)
        citm = self._match(features, texts, sim, mine, generator)
        labels = citg_labels(concept_ids, *texts[:2])
        words = (labels != IGNORED).sum()
        citg = itg_loss(self.bridge.words(features, *texts), labels) * words / mean_over_processes(words)
        loss = finite_loss(nitc.loss + citm + citg, image_features=features)
        return NevlpOutput(loss, nitc.loss, citm, citg, itc_per_sample(sim.detach(), 1 / scale.detach())[mine])

    def _match(
        self, features: Tensor, texts: list[Tensor], sim: Tensor, mine: slice, generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """Positives, then each image with a wrong text, then each text with a wrong image and that image's concepts."""
        lengths = gather_features(sim.new_tensor([[x.shape[1] for x in texts]], dtype=torch.long)).amax(0).tolist()
        texts = [F.pad(x, (0, length - x.shape[1])) for x, length in zip(texts, lengths, strict=True)]
        rows, wrong = len(features), [[features, *texts]]
        ids, mask, concepts, concept_mask = (gather_features(x.long()) for x in texts)
        mask, concept_mask = mask.bool(), concept_mask.bool()
        visible = ids.masked_fill(~mask, -1)
        alike = (visible[:, None] == visible[None]).all(2)  # a text's duplicate is no negative
        if not bool(alike.all()):
            every_image = gather_features(features)
            distances = sim.detach().masked_fill(alike, NEVER)
            text_for_image, image_for_text = hard_negatives(distances, generator, 1 / self.logit_scale().detach())
            other_text, other_image = text_for_image[mine], image_for_text[mine]
            wrong.append([features, ids[other_text], mask[other_text], *texts[2:]])
            wrong.append([every_image[other_image], *texts[:2], concepts[other_image], concept_mask[other_image]])
        logits = self.bridge.match(*(torch.cat(parts) for parts in zip(*wrong, strict=True)))
        return itm_loss(logits, (torch.arange(len(logits), device=logits.device) < rows).long())


def _check_texts(features: Tensor, ids: Tensor, mask: Tensor, concept_ids: Tensor, concept_mask: Tensor) -> None:
    if ids.ndim != 2 or mask.shape != ids.shape or len(ids) != len(features) or 0 in ids.shape:
        shapes = f"text_ids {tuple(ids.shape)}, text_mask {tuple(mask.shape)}"
        raise ValueError(f"{shapes}: must be (B, T) alike for the {len(features)} images")
    if concept_ids.ndim != 2 or len(concept_ids) != len(ids) or concept_mask.shape != concept_ids.shape:
        shapes = f"concept_ids {tuple(concept_ids.shape)}, concept_mask {tuple(concept_mask.shape)}"
        raise ValueError(f"{shapes}: must be (B, C) alike for the {len(ids)} texts")
    if not bool(mask[:, :2].all()) or ids.shape[1] < 2:
        raise ValueError("text_mask: every text needs its start token and a word, padded on the right")
