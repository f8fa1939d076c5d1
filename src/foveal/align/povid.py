"""POVID: preference tuning against two kinds of made-up answers, without human labels.

The preferred answer is the true one. Dispreferred are (1) the same answer with plausible errors written into it by a
language model, and (2) what the model itself would say, token by token, when its picture is noise: its language prior.

Zhou et al., Aligning Modalities in Vision Large Language Models via Preference Fine-tuning, arXiv 2402.11411, 2024.

    ᾱ_t = Π_{i≤t} (1 − β_i),  β = σ(linspace(−6, 6, T))·(0.005 − 10⁻⁵) + 10⁻⁵,  x_t = √ᾱ_t·x + √(1 − ᾱ_t)·ε
    y^n_s = argmax of the logits at s − 1, given x_t, the prompt and the preferred answer before s
    D(y)  = log π(y | x) − log π_ref(y | x), sums over the tokens of the answer
    joint: −log σ(α·D(y_w) − β_text·D(y_text) − β_noise·D(y_noise))
    split: −w·log σ(α·(D(y_w) − D(y_text))) − (1 − w)·log σ(α·(D(y_w) − D(y_noise))),  w = β_text / (β_text + β_noise)

*joint* is the paper's formula, *split* what the released trainer computes; with the defaults both agree to first order.
The trainer also scores y^n on the clean picture (``score_noise_on="clean"``, our default) where the formula has the
noisy one, and lets the reference choose its own y^n (``noise_tokens="own"``), where we score one sequence by both.
Stage 1 is DPO on the text pair alone; stage 2 starts from its result, which is also its reference.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from foveal.align.base import IGNORE, Batch, PreferenceObjective, check_batch, check_rows, check_weights, choose
from foveal.align.base import dpo_loss as dpo_loss
from foveal.align.base import response_logps as response_logps
from foveal.align.base import triggered_labels as triggered_labels
from foveal.align.base_noise import STEPS as STEPS
from foveal.align.base_noise import add_diffusion_noise as add_diffusion_noise
from foveal.align.base_noise import alpha_bar_schedule as alpha_bar_schedule
from foveal.align.povid_data import HALLUCINATION_KINDS as HALLUCINATION_KINDS
from foveal.align.povid_data import hallucination_messages as hallucination_messages
from foveal.align.povid_data import inject_hallucinations as inject_hallucinations
from foveal.align.povid_data import preference_record as preference_record
from foveal.align.povid_data import read_preferences as read_preferences
from foveal.align.povid_data import write_preferences as write_preferences

ALPHA, BETA = 0.1, 0.05
Combine = Literal["joint", "split"]


@dataclass(frozen=True)
class POVIDOutput:
    """The mean loss, that of each example, and detached: rewards α·D, and how often the true answer has the highest."""

    loss: Float[Tensor, ""]
    per_example: Float[Tensor, " b"]
    reward_chosen: Float[Tensor, " b"]
    reward_text: Float[Tensor, " b"]
    reward_noise: Float[Tensor, " b"]
    accuracy: Float[Tensor, ""]


def povid_loss(
    policy_chosen: Float[Tensor, " b"],
    policy_text: Float[Tensor, " b"],
    policy_noise: Float[Tensor, " b"],
    ref_chosen: Float[Tensor, " b"],
    ref_text: Float[Tensor, " b"],
    ref_noise: Float[Tensor, " b"],
    *,
    alpha: float = ALPHA,
    beta_text: float = BETA,
    beta_noise: float = BETA,
    combine: Combine = "joint",
) -> POVIDOutput:
    """The loss from sums of log-probabilities of the true, the rewritten and the noise-triggered answer.

    ValueError: shapes other than (B,), numbers that are not finite, negative weights, or split without any weight.
    """
    policy = {"policy_chosen": policy_chosen, "policy_text": policy_text, "policy_noise": policy_noise}
    check_rows(**policy, ref_chosen=ref_chosen, ref_text=ref_text, ref_noise=ref_noise)
    check_weights(alpha=alpha, beta_text=beta_text, beta_noise=beta_noise)
    choose("combine", combine, ("joint", "split"))
    chosen, text, noise = policy_chosen - ref_chosen, policy_text - ref_text, policy_noise - ref_noise
    if combine == "joint":
        losses = -F.logsigmoid(alpha * chosen - beta_text * text - beta_noise * noise)
    elif beta_text + beta_noise == 0:
        raise ValueError(f"beta_text={beta_text}, beta_noise={beta_noise}: split needs one of them above 0")
    else:
        weight = beta_text / (beta_text + beta_noise)
        pair = -F.logsigmoid(alpha * (chosen - text)), -F.logsigmoid(alpha * (chosen - noise))
        losses = weight * pair[0] + (1 - weight) * pair[1]
    true, rewritten, triggered = ((alpha * one).detach() for one in (chosen, text, noise))
    accuracy = ((true > rewritten) & (true > triggered)).float().mean()
    return POVIDOutput(losses.mean(), losses, true, rewritten, triggered, accuracy)


class POVIDObjective(PreferenceObjective):
    """The loss of a batch (see `PreferenceObjective`), chosen being the true and rejected the rewritten answer.

    A batch may hold ``pixel_values_noisy``, noised before normalisation. Without it noise is added to ``pixel_values``
    as they are, which are then to lie in [0, 1].

    Args:
        policy, reference: see `PreferenceObjective`.
        stage: 1 is DPO on the text pair, with β = alpha; 2 has both terms.
        alpha, beta_text, beta_noise, combine: see `povid_loss`.
        noise_step: see `add_diffusion_noise`.
        noise_tokens: whether the policy alone chooses y^n, or the reference its own.
        score_noise_on: the picture on which y^n is scored; on the noisy one, its gradient flows through that pass.
        avoid_gold: y^n takes the runner-up where the first choice is the true token.

    Raises:
        ValueError: an unknown option, or a batch that lacks something.
    """

    def __init__(
        self,
        policy: nn.Module,
        reference: nn.Module | None,
        *,
        stage: Literal[1, 2] = 2,
        alpha: float = ALPHA,
        beta_text: float = BETA,
        beta_noise: float = BETA,
        combine: Combine = "joint",
        noise_step: int = 500,
        noise_tokens: Literal["policy", "own"] = "policy",
        score_noise_on: Literal["clean", "noisy"] = "clean",
        avoid_gold: bool = False,
    ) -> None:
        super().__init__(policy, reference)
        if stage not in (1, 2):
            raise ValueError(f"stage={stage!r}: choose 1 (text alone) or 2 (text and noise)")
        if not 0 <= noise_step < STEPS:
            raise ValueError(f"noise_step={noise_step}: must lie in [0, {STEPS})")
        check_weights(alpha=alpha, beta_text=beta_text, beta_noise=beta_noise)
        self.stage, self.alpha, self.beta_text, self.beta_noise = stage, alpha, beta_text, beta_noise
        self.combine: Combine = combine
        self.noise_step, self.avoid_gold = noise_step, avoid_gold
        self.noise_tokens = choose("noise_tokens", noise_tokens, ("policy", "own"))
        self.score_noise_on = choose("score_noise_on", score_noise_on, ("clean", "noisy"))
        choose("combine", combine, ("joint", "split"))

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> POVIDOutput:
        """``generator`` draws the noise where the batch holds none; without one torch's own does, as for dropout."""
        check_batch(batch)
        clean = self.policy_logits(batch, "chosen"), self.reference_logits(batch, "chosen")
        chosen = [response_logps(logits, batch["chosen_labels"]) for logits in clean]
        sides = self.policy_logits(batch, "rejected"), self.reference_logits(batch, "rejected")
        text = [response_logps(logits, batch["rejected_labels"]) for logits in sides]
        if self.stage == 1:
            return self._text_alone(chosen, text)
        noise = self._noise_scores(batch, *clean, generator)
        return povid_loss(
            *(chosen[0], text[0], noise[0]),
            *(chosen[1], text[1], noise[1]),
            alpha=self.alpha,
            beta_text=self.beta_text,
            beta_noise=self.beta_noise,
            combine=self.combine,
        )

    def _text_alone(self, chosen: list[Tensor], text: list[Tensor]) -> POVIDOutput:
        losses = dpo_loss(chosen[0], text[0], chosen[1], text[1], beta=self.alpha)
        true, rewritten = ((self.alpha * (policy - reference)).detach() for policy, reference in (chosen, text))
        accuracy = (true > rewritten).float().mean()
        return POVIDOutput(losses.mean(), losses, true, rewritten, torch.zeros_like(true), accuracy)

    def _noise_scores(
        self,
        batch: Batch,
        policy_clean: Float[Tensor, "b l v"],
        reference_clean: Float[Tensor, "b l v"],
        generator: torch.Generator | None,
    ) -> list[Float[Tensor, " b"]]:
        """Of the noise-triggered answer, by policy and reference."""
        labels = batch["chosen_labels"]
        noisy = batch.get("pixel_values_noisy")
        if noisy is None:
            noisy = add_diffusion_noise(batch["pixel_values"], self.noise_step, generator=generator)
        elif noisy.shape != batch["pixel_values"].shape:
            shapes = tuple(noisy.shape), tuple(batch["pixel_values"].shape)
            raise ValueError(f"batch: pixel_values_noisy {shapes[0]} must have the shape of pixel_values {shapes[1]}")
        on_noisy, own = self.score_noise_on == "noisy", self.noise_tokens == "own"
        with torch.set_grad_enabled(on_noisy and torch.is_grad_enabled()):
            policy_noisy = self.policy_logits(batch, "chosen", noisy)
        reference_noisy = self.reference_logits(batch, "chosen", noisy) if on_noisy or own else None
        tokens = triggered_labels(policy_noisy, labels, avoid_gold=self.avoid_gold)
        theirs = tokens
        if own and reference_noisy is not None:
            theirs = triggered_labels(reference_noisy, labels, avoid_gold=self.avoid_gold)
        judged = reference_noisy if on_noisy and reference_noisy is not None else reference_clean
        blind = ~(policy_noisy[:, :-1].isfinite().all(-1) | (labels[:, 1:] == IGNORE)).all(1)
        return [
            # an argmax would hide that there is nothing to choose from
            response_logps(policy_noisy if on_noisy else policy_clean, tokens).masked_fill(blind, torch.nan),
            response_logps(judged, theirs),
        ]
