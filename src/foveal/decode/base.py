"""What decoders share: branches that run beside ``generate``, and logits processors that listen to them.

A decoder here is an ordinary ``transformers.LogitsProcessor``. Beside the model's own logits ℓ it needs those that the
same model gives for *another input* (no image, a few patches, a masked image) and the same tokens said so far:

    ℓ' = w_main · ℓ + w_other · ℓ_branch          tokens with ℓ < max ℓ + log β get −∞

`ContrastBranch` is that other stream: one prefill, then one token a step, with a cache of its own, beside sampling,
beams, left padding and several returned sequences. Decoders in one list apply one after the other, and each takes the
scores it is given for its ℓ; `together` runs their branches as rows of the same pass.

Cost: one prefill per branch and one pass per step, counted as ``forwards``; a second cache as long as the branch.
Token reducers attached to the model (`foveal.compress`) shorten the main pass only: a branch runs without them and
leaves their notes alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from foveal.decode.base_models import bare as bare
from foveal.decode.base_models import check_has_images as check_has_images
from foveal.decode.base_models import check_pictures as check_pictures
from foveal.decode.base_models import image_features as image_features
from foveal.decode.base_models import image_token as image_token
from foveal.decode.base_passes import Passes, Prefill

# Scores ---------------------------------------------------------------------------------------------------------------


def plausible_contrast(
    logits: Float[Tensor, "b v"], other: Float[Tensor, "b v"], w_main: float, w_other: float, beta: float
) -> Float[Tensor, "b v"]:
    """``w_main · logits + w_other · other``, −∞ where ``logits`` finds a token implausible.

    Args:
        beta: in (0, 1]; a token is plausible when ``logits`` gives it at least β times its largest probability.

    Raises ValueError for shapes that differ (nothing is broadcast), a β outside (0, 1] and scores that are no numbers.
    """
    if logits.ndim != 2 or logits.shape != other.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and other {tuple(other.shape)} must both be (B, V), and equal")
    if not 0 < beta <= 1:
        raise ValueError(f"beta={beta}: must be in (0, 1]; it is a share of the largest probability")
    implausible = logits < logits.amax(-1, keepdim=True) + math.log(beta)
    mixed = w_main * logits if w_other == 0 else w_main * logits + w_other * other
    mixed = mixed.masked_fill(implausible, -math.inf)
    if not bool((mixed < math.inf).all()):  # NaN fails this too
        raise ValueError("logits or other hold NaN or infinity: run the model in bfloat16 or float32, not in float16")
    return mixed


def check_alpha(alpha: float) -> None:
    """ValueError unless the weight of the branch is a finite number of at least 0."""
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha={alpha}: must be finite and at least 0; 0 switches the branch off")


def check_beta(beta: float) -> None:
    """ValueError unless β is in (0, 1]; for processors, which would otherwise find out in the middle of a sentence."""
    if not 0 < beta <= 1:
        raise ValueError(f"beta={beta}: must be in (0, 1]; it is a share of the largest probability")


# Branches -------------------------------------------------------------------------------------------------------------


class ContrastBranch:
    """The model's answer to other inputs, given the tokens that ``generate`` has said so far.

    Args:
        model: any decoder-only model of transformers, unchanged.
        inputs: keyword arguments of the model's prefill for B prompts: ``input_ids`` (B, T) or ``inputs_embeds``
            (B, T, D), and as needed ``attention_mask`` (left-padded), ``pixel_values``, ``image_sizes`` and so on.

    Raises ValueError for inputs that are no such prefill.
    """

    def __init__(self, model: Any, inputs: dict[str, Any]) -> None:
        model = bare(model)
        self._prefill = Prefill.of(model, inputs)
        self._passes = Passes(model, [self._prefill])

    def logits(self, input_ids: Int[Tensor, "r t"]) -> Float[Tensor, "r v"]:
        """float32 logits of the next token of this branch.

        The first call starts it: whatever ``input_ids`` are, they are the prompt of the main pass, and the branch has
        its own. Later calls continue with the tokens behind that prompt. Rows may have been reordered (beams) or cut
        (assisted decoding) in between. The prompt alone, or another one that is no longer than the last call, starts
        again.

        Raises ValueError unless R is a multiple of B: each prompt has R/B rows that follow each other.
        """
        return self._passes.logits(input_ids, self._prefill)

    def reset(self) -> None:
        """Forget what was generated and free the cache."""
        self._passes.reset()

    @property
    def forwards(self) -> int:
        """Forward passes of the language model so far, by this branch and those that share them."""
        return self._passes.forwards


def share_passes(branches: Sequence[ContrastBranch]) -> None:
    """From now on the branches are rows of the same passes. ValueError unless model and batch size are the same."""
    models = {id(branch._passes.model): branch._passes.model for branch in branches}
    if len(models) != 1:
        names = ", ".join(type(model).__name__ for model in models.values()) or "none"
        raise ValueError(f"branches of {len(models)} models ({names}) cannot share passes: build them on one model")
    forwards = sum({id(branch._passes): branch.forwards for branch in branches}.values())
    passes = Passes(branches[0]._passes.model, [branch._prefill for branch in branches], forwards)
    for branch in branches:
        branch._passes = passes


# Processors -----------------------------------------------------------------------------------------------------------


class ContrastProcessor(LogitsProcessor):
    """A logits processor of ``generate`` that corrects the scores by those of branches.

    ``generate`` applies it after penalties and before temperature, top-k and top-p; a correction is meant for all
    tokens, so switch off filters that you do not want (``top_k=0, top_p=1.0``). With beams, whose scores are
    log-probabilities, set ``renormalize_logits=True``. One object serves any number of calls for its prompts.

    Args:
        combine: the scores of ``generate`` and then those of each branch, all (R, V), to the corrected scores.
    """

    def __init__(self, branches: Sequence[ContrastBranch], combine: Callable[..., Float[Tensor, "r v"]]) -> None:
        self.branches, self._combine = tuple(branches), combine
        share_passes(self.branches)

    def __call__(self, input_ids: Int[Tensor, "r t"], scores: Float[Tensor, "r v"]) -> Float[Tensor, "r v"]:
        """Corrected scores, in the dtype of ``scores``."""
        others = [branch.logits(input_ids).to(scores.device) for branch in self.branches]
        return self._combine(scores.float(), *others).to(scores.dtype)

    def reset(self) -> None:
        """Forget what was generated and free the cache, which otherwise lives as long as this object."""
        self.branches[0].reset()

    @property
    def forwards(self) -> int:
        """Extra forward passes of the language model so far, by this processor and those it runs `together` with."""
        return self.branches[0].forwards


def together(*processors: ContrastProcessor) -> LogitsProcessorList:
    """The processors as a list for ``generate``, all their branches from now on rows of the same forward passes.

    A step then costs one extra pass instead of one per processor, and the scores are the same. They are applied in the
    order given, each to what the one before it left.

    Raises ValueError without processors, for one that is given twice, and unless model and batch size are the same.
    """
    if len(processors) == 0 or len({id(processor) for processor in processors}) < len(processors):
        raise ValueError(f"processors has {len(processors)} objects: give each once, and at least one")
    share_passes([branch for processor in processors for branch in processor.branches])
    return LogitsProcessorList(processors)
