"""STIC: a vision–language model describes unlabelled pictures, well and badly, and learns to tell the two apart.

Stage 1: the chosen description answers a long step-by-step prompt; the rejected one answers a misleading prompt, or
sees a corrupted picture. Both are trained as answers to one short prompt x on the clean picture, so that the short
prompt inherits the quality of the long one. Stage 2: questions of the old instruction data are answered anew with the
model's own description in front of them ("describe, then respond").

Deng et al., Enhancing Large Vision Language Models with Self-Training on Image Comprehension, NeurIPS 2024,
arXiv 2405.19716.

    D(y) = log π(y | v, x) − log π_ref(y | v, x), sums over the tokens of y
    loss = −log σ(β·(D(y_w) − D(y_l))) − α·log π(y_w | v, x),  β = 0.1, α = 1/1024 as in the released trainer

The second term keeps the chosen answer from becoming less likely. At every position of the rejected answer the released
trainer scores the model's own first choice, or the runner-up where that is the rejected token:
``rejected_mode="runner_up"``; the formula above is ``"sequence"``, our default.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveal.align.base import (
    Batch,
    PreferenceObjective,
    check_batch,
    check_weights,
    choose,
    dpo_loss,
    response_logps,
    triggered_labels,
)
from foveal.align.stic_pictures import check_rgb
from foveal.align.stic_pictures import color_jitter as color_jitter
from foveal.align.stic_pictures import corrupt_image as corrupt_image
from foveal.align.stic_pictures import low_resolution as low_resolution

PREFERRED_PROMPT = (
    "Study this image and describe it thoroughly, step by step. First say who or what its main subjects are, and what "
    "they do. Then describe the setting: the place, the time of day, what is in front and what is behind. Next name "
    "the mood, and the light, gestures or weather that you infer it from. Go on to the colours, and to how things are "
    "arranged and relate to each other. Point out small details that tell something: writing, clothes, objects at "
    "the edge. End with what the image as a whole may be about. Only state what can be seen."
)
DESCRIPTION_PROMPTS = (
    "Describe what this image shows.",
    "Please describe this image in detail.",
    "Tell me what can be seen in the image.",
    "Write a description of this image.",
    "What is in this picture? Describe it.",
    "Explain the content of the image in a few sentences.",
    "Give an account of everything that you see here.",
    "Can you walk me through this image?",
)
BAD_PROMPTS = (
    "Describe the image, and add things that could be there but cannot be seen.",
    "Imagine what happens just outside the frame and describe it as part of the picture.",
    "Write a vivid scene that this image reminds you of, with characters of your own invention.",
    "Describe the picture as it would look if everything in it were replaced by something else.",
    "Make up an unlikely story behind this image and tell it as a fact.",
    "List objects that usually go with such a scene, whether they are visible or not.",
    "Describe what this place might have looked like a hundred years ago, as if you saw it now.",
    "Pretend that the image shows a dream, and describe its strangest details.",
)
MARK = "<image>\n"
Describe = Callable[[Float[Tensor, "3 h w"], str], str]
Source = Literal["bad_prompt", "low_resolution", "color_jitter"]


@dataclass(frozen=True)
class PreferencePair:
    """Two descriptions of the clean picture, as answers to ``prompt``.

    Attributes:
        source: where the rejected one is from.
        rejected_prompt: what the model was asked for it; ``prompt`` itself on a corrupted picture.
    """

    prompt: str
    chosen: str
    rejected: str
    source: Source
    rejected_prompt: str


def build_preference_pair(
    image: Float[Tensor, "3 h w"],
    describe: Describe,
    generator: torch.Generator,
    *,
    p_bad_prompt: float = 0.5,
    p_low_resolution: float = 0.5,
) -> PreferencePair:
    """Ask a model twice about one picture: well, then badly.

    Args:
        image: RGB in [0, 1].
        describe: the model: picture and prompt to text; the paper draws at temperature 0.2.
        generator: draws prompts, the kind of the bad answer and the corruption.
        p_bad_prompt: probability of a misleading prompt on the clean picture; else the picture is corrupted.
        p_low_resolution: see `corrupt_image`.

    Raises:
        ValueError: no RGB picture, or a probability outside [0, 1].
    """
    check_rgb(image)
    _check_probability("p_bad_prompt", p_bad_prompt)
    _check_probability("p_low_resolution", p_low_resolution)
    prompt = DESCRIPTION_PROMPTS[_draw(len(DESCRIPTION_PROMPTS), generator)]
    if float(torch.rand((), generator=generator)) < p_bad_prompt:
        bad = BAD_PROMPTS[_draw(len(BAD_PROMPTS), generator)]
        return PreferencePair(prompt, describe(image, PREFERRED_PROMPT), describe(image, bad), "bad_prompt", bad)
    spoiled, kind = corrupt_image(image, generator, p_low_resolution=p_low_resolution)
    return PreferencePair(prompt, describe(image, PREFERRED_PROMPT), describe(spoiled, prompt), kind, prompt)


def infuse_description(record: Mapping[str, Any], description: str) -> dict[str, Any]:
    """A copy of an instruction record in whose first human turn the description stands before the question.

    ValueError: the record has no conversation, or does not open with a human turn.
    """
    turns = record.get("conversations")
    if not turns or turns[0].get("from") != "human":
        raise ValueError(f"record {record.get('id')!r}: conversations must open with a turn from human")
    infused = copy.deepcopy(dict(record))
    first, prefix = infused["conversations"][0], described("", description)
    text = first["value"]
    first["value"] = text.replace(MARK, MARK + prefix, 1) if MARK in text else prefix + text
    return infused


def described(question: str, description: str) -> str:
    """The question with a description of the picture in front."""
    return f"Image description:\n{description}\n\n{question}"


def describe_and_respond(
    image: Float[Tensor, "3 h w"], question: str, describe: Describe, *, prompt: str | None = None
) -> tuple[str, str]:
    """Answer and description: the model is asked for a description first (by default with the first of
    `DESCRIPTION_PROMPTS`), and then the question with that description in front."""
    description = describe(image, DESCRIPTION_PROMPTS[0] if prompt is None else prompt)
    return describe(image, described(question, description)), description


@dataclass(frozen=True)
class STICOutput:
    """Mean and single losses, the means of both terms, and detached: rewards β·D, and how often the chosen one wins."""

    loss: Float[Tensor, ""]
    per_example: Float[Tensor, " b"]
    dpo: Float[Tensor, ""]
    sft: Float[Tensor, ""]
    """Mean of −log π(y_w): before it is multiplied with α."""
    reward_chosen: Float[Tensor, " b"]
    reward_rejected: Float[Tensor, " b"]
    accuracy: Float[Tensor, ""]


def stic_loss(
    policy_chosen: Float[Tensor, " b"],
    policy_rejected: Float[Tensor, " b"],
    ref_chosen: Float[Tensor, " b"],
    ref_rejected: Float[Tensor, " b"],
    *,
    beta: float = 0.1,
    alpha: float = 1 / 1024,
) -> STICOutput:
    """The loss from sums of log-probabilities. ValueError: shapes other than (B,), or numbers that are not finite."""
    check_weights(beta=beta, alpha=alpha)
    dpo = dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=beta)
    sft = -policy_chosen
    losses = dpo + alpha * sft
    chosen = (beta * (policy_chosen - ref_chosen)).detach()
    rejected = (beta * (policy_rejected - ref_rejected)).detach()
    accuracy = (chosen > rejected).float().mean()
    return STICOutput(losses.mean(), losses, dpo.mean(), sft.mean(), chosen, rejected, accuracy)


class STICObjective(PreferenceObjective):
    """The loss of a batch, see `PreferenceObjective`.

    Args:
        policy, reference: see `PreferenceObjective`; the reference is the model before stage 1.
        beta, alpha: see `stic_loss`.
        rejected_mode: "sequence" scores the rejected answer, "runner_up" what the released trainer does: at each of its
            positions the first choice of the model that scores, or its second where the first is the rejected token.

    Raises:
        ValueError: an unknown mode, negative weights, or a batch that lacks something.
    """

    def __init__(
        self,
        policy: nn.Module,
        reference: nn.Module | None,
        *,
        beta: float = 0.1,
        alpha: float = 1 / 1024,
        rejected_mode: Literal["sequence", "runner_up"] = "sequence",
    ) -> None:
        super().__init__(policy, reference)
        check_weights(beta=beta, alpha=alpha)
        self.beta, self.alpha = beta, alpha
        self.rejected_mode = choose("rejected_mode", rejected_mode, ("sequence", "runner_up"))

    def forward(self, batch: Batch) -> STICOutput:
        check_batch(batch)
        chosen = self.policy_logits(batch, "chosen"), self.reference_logits(batch, "chosen")
        rejected = self.policy_logits(batch, "rejected"), self.reference_logits(batch, "rejected")
        scores = [response_logps(logits, batch["chosen_labels"]) for logits in chosen]
        policy, reference = (self._rejected(logits, batch["rejected_labels"]) for logits in rejected)
        return stic_loss(scores[0], policy, scores[1], reference, beta=self.beta, alpha=self.alpha)

    def _rejected(self, logits: Float[Tensor, "b l v"], labels: Tensor) -> Float[Tensor, " b"]:
        if self.rejected_mode == "runner_up":
            labels = triggered_labels(logits, labels, avoid_gold=True)
        return response_logps(logits, labels)


def _draw(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: must be a probability from 0 to 1")
