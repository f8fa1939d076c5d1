"""What preference methods share: how likely an answer is, the answer that other logits would have given, DPO, batches.

Logits are aligned with the input: those of position t − 1 predict token t. Labels are the input with everything that is
not response (prompt, image tokens, padding) set to −100.

DPO (Rafailov et al., Direct Preference Optimization, NeurIPS 2023, arXiv 2305.18290):
``−log σ(β·((π_w − π_l) − (ρ_w − ρ_l)))`` with the log-probabilities π of the policy and ρ of the reference, of the
chosen answer w and the rejected one l.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from foveal.nn.modes import evaluating

IGNORE = -100
SIDES = ("chosen", "rejected")
PARTS = ("input_ids", "attention_mask", "labels")
TILED = ("image_sizes", "batch_num_images")
"""What models that cut pictures into tiles are given beside the pixels, where a batch holds it."""
Batch = Mapping[str, Tensor]


def response_logps(
    logits: Float[Tensor, "b l v"],
    labels: Int64[Tensor, "b l"],
    *,
    average: bool = False,
    ignore_index: int = IGNORE,
) -> Float[Tensor, " b"]:
    """Log-probability (nats, float32) of each row's response: its sum over tokens, or under ``average`` their mean.

    ValueError: shapes that do not fit, a label outside the vocabulary, or an average over a row without a response.
    """
    _check_logits(logits, labels)
    targets = labels[:, 1:]
    asked = targets != ignore_index
    _check_tokens(targets[asked], logits.shape[-1], ignore_index)
    # only where something is asked: in float32 the logits of a long prompt would not fit
    found = -F.cross_entropy(
        logits[:, :-1][asked].float(), targets[asked].long(), reduction="none", ignore_index=ignore_index
    )
    sums = torch.zeros(targets.shape, device=logits.device).masked_scatter(asked, found).sum(1)
    if not average:
        return sums
    if not bool(asked.any(1).all()):
        raise ValueError(f"labels hold a row without a response (all {ignore_index}): its mean is undefined")
    return sums / asked.sum(1)


@torch.no_grad()
def triggered_labels(
    noisy_logits: Float[Tensor, "b l v"],
    labels: Int64[Tensor, "b l"],
    *,
    avoid_gold: bool = False,
    ignore_index: int = IGNORE,
) -> Int64[Tensor, "b l"]:
    """What these logits would have said at each response position, aligned with ``labels``: teacher forcing.

    Args:
        noisy_logits: of the model on (say) a noisy picture, with the response as its input.
        labels: of the response.
        avoid_gold: take the runner-up where the first choice is the label itself.
        ignore_index: stays where it is in ``labels``, and is put at position 0, which nothing predicts.
    """
    _check_logits(noisy_logits, labels)
    targets = labels[:, 1:]
    asked = targets != ignore_index
    scores = noisy_logits[:, :-1][asked]
    first, gold = scores.argmax(-1), targets[asked]
    if avoid_gold:
        wrong = first == gold
        others = scores[wrong]
        first[wrong] = others.scatter(1, gold[wrong, None].long(), -torch.inf).argmax(-1)
    found = torch.full_like(labels, ignore_index)
    found[:, 1:].masked_scatter_(asked, first.to(labels.dtype))
    return found


def dpo_loss(
    policy_chosen: Float[Tensor, " b"],
    policy_rejected: Float[Tensor, " b"],
    ref_chosen: Float[Tensor, " b"],
    ref_rejected: Float[Tensor, " b"],
    *,
    beta: float = 0.1,
    reference_free: bool = False,
) -> Float[Tensor, " b"]:
    """DPO's loss of each pair from sums of log-probabilities.

    ``reference_free`` takes a uniform reference, whatever ``ref_chosen`` and ``ref_rejected`` are.
    """
    policy = {"policy_chosen": policy_chosen, "policy_rejected": policy_rejected}
    check_rows(**policy, **({} if reference_free else {"ref_chosen": ref_chosen, "ref_rejected": ref_rejected}))
    check_weights(beta=beta)
    margin = policy_chosen - policy_rejected
    if not reference_free:
        margin = margin - (ref_chosen - ref_rejected)
    return -F.logsigmoid(beta * margin)


def check_rows(**scores: Tensor) -> None:
    """ValueError unless all are finite and of one shape (B,)."""
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    first = next(iter(shapes.values()))
    if len(first) != 1 or not first[0] or len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{listed}: give one log-probability for each example, all of one shape (B,)")
    for name, score in scores.items():
        if not bool(score.isfinite().all()):
            row = int((~score.isfinite()).nonzero()[0])
            raise ValueError(f"{name}[{row}]={float(score[row].detach())}: must be finite; look at this example")


def check_weights(**weights: float) -> None:
    """ValueError unless all are finite and not negative."""
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{name}={weight}: must be a finite number ≥ 0")


def choose(name: str, value: str, options: tuple[str, ...]) -> str:
    """The value; ValueError unless it is one of the options."""
    if value not in options:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(options)}")
    return value


class PreferenceObjective(nn.Module):
    """A policy and the frozen model that it is held to, both called on batches of preferences.

    A batch has ``pixel_values`` and, for both answers, ``chosen_input_ids``, ``chosen_attention_mask``,
    ``chosen_labels`` and ``rejected_input_ids`` … , all (B, L) with an L of each answer's own; for models that cut
    pictures into tiles also ``image_sizes``. `foveal.align.batches` makes such batches.

    Args:
        policy: called as ``policy(pixel_values=, input_ids=, attention_mask=).logits``.
        reference: the model before training: another module, which is frozen; the policy itself, of which a frozen
            copy is made; or None for a policy with adapters of peft, which are switched off for it.

    Raises:
        ValueError: the reference would move with the policy, since what is trained is part of it.
    """

    def __init__(self, policy: nn.Module, reference: nn.Module | None) -> None:
        super().__init__()
        if reference is None and not hasattr(policy, "disable_adapter"):
            raise ValueError(f"reference=None needs a policy with peft's adapters, not a {type(policy).__name__}")
        if reference is policy:
            reference = copy.deepcopy(policy)
        _check_apart(policy, reference)
        self.policy, self.reference = policy, reference
        if reference is not None:
            reference.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "PreferenceObjective":
        """The reference stays in evaluation mode."""
        super().train(mode)
        if self.reference is not None:
            self.reference.eval()
        return self

    def policy_logits(self, batch: Batch, side: str, pixels: Tensor | None = None) -> Float[Tensor, "b l v"]:
        """Of the chosen or the rejected answer; ``pixels`` replaces the pictures of the batch."""
        return _logits(self.policy, batch, side, pixels)

    @torch.no_grad()
    def reference_logits(self, batch: Batch, side: str, pixels: Tensor | None = None) -> Float[Tensor, "b l v"]:
        if self.reference is not None:
            return _logits(self.reference, batch, side, pixels)
        with _without_adapter(self.policy):
            return _logits(self.policy, batch, side, pixels)


@contextmanager
def _without_adapter(policy: Any) -> Iterator[None]:
    with evaluating(policy), policy.disable_adapter():
        yield


def _check_apart(policy: Any, reference: nn.Module | None) -> None:
    learned = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    if reference is not None:
        fixed = {id(parameter) for parameter in reference.parameters()}
        shared = [name for name, parameter in learned.items() if id(parameter) in fixed]
        remedy = "give a copy of the model before training (or the policy itself, to be copied; or None with peft)"
    elif hasattr(policy, "peft_config"):
        adapters = ("modules_to_save", "prompt_encoder", *(tuner.prefix for tuner in _tuners(policy)))
        shared = [name for name in learned if not any(adapter in name for adapter in adapters)]
        remedy = "name its module in peft's modules_to_save, or give a copy of the model before training"
    else:
        return
    if shared:
        raise ValueError(f"reference: {shared[0]} is trained and would move the reference too; {remedy}")


def _tuners(policy: Any) -> list[Any]:
    return [module for module in policy.modules() if hasattr(module, "prefix") and hasattr(module, "peft_config")]


def check_batch(batch: Batch) -> None:
    """ValueError: a key is missing, shapes differ, or a row has no response token (its answer was cut off)."""
    names = ["pixel_values", *(f"{side}_{part}" for side in SIDES for part in PARTS)]
    if missing := [name for name in names if name not in batch]:
        raise ValueError(f"batch lacks {', '.join(missing)}; it has {', '.join(batch)}")
    for side in SIDES:
        shapes = {part: tuple(batch[f"{side}_{part}"].shape) for part in PARTS}
        if len(set(shapes.values())) > 1 or len(shapes["labels"]) != 2:
            raise ValueError(f"batch: {side} ids, mask and labels must share one shape (B, L), not {shapes}")
        empty = (batch[f"{side}_labels"][:, 1:] == IGNORE).all(1).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"batch: {side}_labels of row {empty[0]} hold no response token; give an answer, or room for it"
            )


def _logits(model: nn.Module, batch: Batch, side: str, pixels: Tensor | None) -> Tensor:
    ids = batch[f"{side}_input_ids"]
    inputs = {name: batch[name] for name in TILED if name in batch}
    inputs["pixel_values"] = batch["pixel_values"] if pixels is None else pixels
    logits = model(**inputs, input_ids=ids, attention_mask=batch[f"{side}_attention_mask"]).logits
    if logits.shape[:2] != ids.shape:
        raise ValueError(
            f"{type(model).__name__} gave logits {tuple(logits.shape)} for {side}_input_ids {tuple(ids.shape)}: they "
            "must be aligned, with every image token written out in the ids as transformers' processors do"
        )
    return logits


def _check_tokens(tokens: Tensor, vocabulary: int, ignore_index: int) -> None:
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        raise ValueError(
            f"labels reach from {int(tokens.min())} to {int(tokens.max())}: give tokens below {vocabulary}, and "
            f"ignore_index={ignore_index} where nothing is asked"
        )


def _check_logits(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}: give (B, L) for (B, L, V)"
        )
