import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from foveal.decode.base import ContrastProcessor, share_passes
from foveal.decode.branch import ContrastBranch, plausible_contrast, together

from .contract import continued
from .tiny import TEXT, batch, model

torch.set_num_threads(1)
GOLDEN = np.load(Path(__file__).parents[1] / "golden/debias.npz")


def language_model(sliding=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if sliding:
            return MistralForCausalLM(MistralConfig(**TEXT, sliding_window=4)).eval()
        return LlamaForCausalLM(LlamaConfig(**TEXT)).eval()


def instruct_blip():
    narrow = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = InstructBlipConfig(
        vision_config={**narrow, "image_size": 16, "patch_size": 8},
        qformer_config={**narrow, "vocab_size": 9, "encoder_hidden_size": 16},
        text_config={"model_type": "llama", **TEXT},
        num_query_tokens=2,
    )
    return InstructBlipForConditionalGeneration(config).eval()


def said(*rows):
    """A main prompt of two tokens, which the branch never reads, and what was said after it."""
    return torch.tensor([[1, 2, *row] for row in rows])


PROMPT = torch.tensor([[3, 4, 5, 6, 7, 8, 9]])


def expected(host, *rows):
    return torch.cat([continued(host, {"input_ids": PROMPT}, torch.tensor([row]).long()) for row in rows]).detach()


# Scores ---------------------------------------------------------------------------------------------------------------


def test_golden_contrast():
    logits, other, mixed = (torch.from_numpy(GOLDEN[f"contrast__{name}"]) for name in ("logits", "other", "expected"))
    torch.testing.assert_close(plausible_contrast(logits, other, 2.0, -1.0, 0.1), mixed)


def test_cut_off_is_relative_to_the_main_branch():
    p = torch.tensor([[0.6, 0.3, 0.07, 0.03]])
    mixed = plausible_contrast(p.log(), torch.tensor([[9.0, 0.0, 0.0, -9.0]]), 1.0, -1.0, 0.1)
    assert mixed.isfinite().tolist() == [[True, True, True, False]]  # by p ≥ 0.06, though the last one gained most
    assert plausible_contrast(p.log(), p, 1.0, 0.0, 1.0).isfinite().sum() == 1
    assert plausible_contrast(p.log() - 100, p.log(), 2.0, -1.0, 0.1).isfinite().tolist() == mixed.isfinite().tolist()


def test_what_an_earlier_processor_forbade_stays_forbidden():
    logits = torch.tensor([[1.0, -math.inf, 0.5]])
    for weight in (-2.0, 0.0, 2.0):
        assert plausible_contrast(logits, torch.zeros(1, 3), 1.0, weight, 0.1)[0, 1] == -math.inf
    assert plausible_contrast(logits, torch.zeros(1, 3), 0.0, 1.0, 0.1)[0, 1] == -math.inf


def test_a_branch_without_weight_says_nothing():
    logits, other = torch.tensor([[1.0, 0.9, 0.9]]), torch.tensor([[1.0, -math.inf, math.nan]])
    assert torch.equal(plausible_contrast(logits, other, 1.0, 0.0, 0.1), logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"other": torch.zeros(1, 4)}, r"\(2, 4\) and other \(1, 4\)"),
        ({"logits": torch.zeros(4), "other": torch.zeros(4)}, r"\(B, V\)"),
        ({"beta": 0.0}, "beta=0.0"),
        ({"beta": 1.01}, "beta=1.01"),
        ({"beta": math.nan}, "beta=nan"),
        ({"other": torch.full((2, 4), math.nan)}, "NaN or infinity"),
        ({"other": torch.full((2, 4), -math.inf)}, "NaN or infinity"),
        ({"logits": torch.full((2, 4), math.nan)}, "NaN or infinity"),
    ],
)
def test_bad_scores(change, message):
    arguments = {"logits": torch.zeros(2, 4), "other": torch.zeros(2, 4), "w_main": 2.0, "w_other": -1.0, "beta": 0.1}
    with pytest.raises(ValueError, match=message):
        plausible_contrast(**{**arguments, **change})


# Branch ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sliding", [False, True])
def test_any_history_after_any_other(sliding):
    """Longer, shorter, other rows, other tokens: the answer is that of a plain pass."""
    host = language_model(sliding)
    branch = ContrastBranch(host, {"input_ids": PROMPT})
    histories = [
        [[], []],
        [[10], [11]],
        [[11, 12], [10, 13]],  # the beams have changed places
        [[11, 12, 14], [11, 12, 15]],  # one beam has died out
        [[11, 12, 14, 16, 17, 18], [11, 12, 15, 16, 17, 19]],  # several tokens at once
        [[11, 12, 14, 16, 20], [11, 12, 15, 16, 21]],  # guessed tokens taken back
        [[11, 12], [11, 12]],
        [[22], [23]],  # nothing in common
        [[22], [23]],  # asked again
    ]
    for rows in histories:
        got = branch.logits(said(*rows))
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected(host, *rows), atol=1e-5, rtol=1e-4)


def test_a_new_generation_reads_its_prompt_again():
    host = language_model()
    branch = ContrastBranch(host, {"input_ids": PROMPT})
    for rows in ([[]], [[10]], [[10, 11]], [[]], [[12]]):
        torch.testing.assert_close(branch.logits(said(*rows)), expected(host, *rows), atol=1e-5, rtol=1e-4)
    assert branch.forwards == 5
    branch.logits(torch.tensor([[9, 9, 9]]))  # another prompt, as long as the last call
    torch.testing.assert_close(branch.logits(torch.tensor([[9, 9, 9, 12]])), expected(host, [12]))
    branch.logits(said([], [], []))
    assert branch.logits(said([5], [6], [7])).shape == (3, 64)


def test_what_the_prompt_of_the_main_pass_says_does_not_matter():
    """Only its length does, also where beams have changed places."""
    host = language_model()
    branch = ContrastBranch(host, {"input_ids": PROMPT})
    branch.logits(torch.tensor([[1, 2], [3, 4]]))
    branch.logits(torch.tensor([[1, 2, 10], [3, 4, 20]]))
    swapped = branch.logits(torch.tensor([[3, 4, 20, 21], [1, 2, 10, 11]]))
    torch.testing.assert_close(swapped, expected(host, [20, 21], [10, 11]), atol=1e-5, rtol=1e-4)


def test_the_prompt_alone_is_never_answered_from_memory():
    host = language_model()
    branch = ContrastBranch(host, {"input_ids": PROMPT})
    before = branch.logits(said([]))
    torch.nn.init.ones_(host.lm_head.weight)  # the model has been trained in between
    torch.testing.assert_close(branch.logits(said([])), expected(host, []))
    assert not torch.allclose(before, expected(host, []))


def test_rows_of_several_prompts_do_not_mix():
    """Both prompts say the same: each row must go on from its own."""
    host = language_model()
    prompts = torch.tensor([[3, 4, 5], [6, 7, 8]])
    branch = ContrastBranch(host, {"input_ids": prompts})
    branch.logits(said([], [], [], []))
    branch.logits(said([10], [11], [10], [11]))
    got = branch.logits(said([11, 12], [10, 12], [11, 12], [10, 12]))
    for row, history in enumerate(([11, 12], [10, 12], [11, 12], [10, 12])):
        plain = continued(host, {"input_ids": prompts[row // 2][None]}, torch.tensor([history]))
        torch.testing.assert_close(got[row : row + 1], plain.detach(), atol=1e-5, rtol=1e-4)


def test_left_padding_and_embeddings():
    host = language_model()
    padded = torch.tensor([[0, 0, 3, 4], [5, 6, 7, 8]])
    mask = (padded > 0).int()
    ids = ContrastBranch(host, {"input_ids": padded, "attention_mask": mask})
    embeds = host.get_input_embeddings()(padded).detach() + (mask == 0)[..., None] * 7.0
    embedded = ContrastBranch(host, {"inputs_embeds": embeds, "attention_mask": mask})
    share_passes([embedded, ids])
    for rows in ([[], []], [[10], [11]]):
        for branch in (ids, embedded):
            got = branch.logits(said(*rows))
            for row, prompt in enumerate((padded[:1, 2:], padded[1:])):
                plain = continued(host, {"input_ids": prompt}, torch.tensor([rows[row]]).long()).detach()
                torch.testing.assert_close(got[row : row + 1], plain, atol=1e-5, rtol=1e-4)
    assert ids.forwards == embedded.forwards == 2


def test_a_pass_that_breaks_off_leaves_nothing_half_done():
    host = language_model()
    branch = ContrastBranch(host, {"input_ids": PROMPT})
    branch.logits(said([]))
    layer = host.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        branch.logits(said([10]))
    layer.remove()
    torch.testing.assert_close(branch.logits(said([10])), expected(host, [10]), atol=1e-5, rtol=1e-4)


def test_pictures_and_text_share_passes():
    host, inputs = model("llava"), batch("llava")
    pictures, words = ContrastBranch(host, inputs), ContrastBranch(host, {"input_ids": torch.tensor([[3, 4], [5, 6]])})
    alone = [branch.logits(inputs["input_ids"]) for branch in (pictures, words)]
    share_passes([pictures, words])
    for branch, logits in zip((pictures, words), alone, strict=True):
        torch.testing.assert_close(branch.logits(inputs["input_ids"]), logits)
    longer = torch.cat([inputs["input_ids"], torch.tensor([[7], [8]])], 1)
    assert pictures.logits(longer).shape == words.logits(longer).shape
    assert pictures.forwards == 2 + 2 + 1  # two apart before, then two prefills and one step


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input_ids or inputs_embeds"),
        ({"input_ids": PROMPT, "inputs_embeds": torch.zeros(1, 7, 32)}, "either"),
        ({"input_ids": PROMPT[0]}, r"\(7,\)"),
        ({"input_ids": PROMPT[:, :0]}, r"\(1, 0\)"),
        ({"inputs_embeds": torch.zeros(7, 32)}, r"\(7, 32\)"),
        ({"input_ids": PROMPT, "attention_mask": PROMPT[:, 1:]}, r"attention_mask \(1, 6\)"),
        ({"input_ids": PROMPT, "attention_mask": (PROMPT < 9).int()}, "pad on the left"),
        ({"input_ids": PROMPT, "past_key_values": object()}, "keeps|sees to it"),
    ],
)
def test_bad_prefills(inputs, message):
    with pytest.raises(ValueError, match=message):
        ContrastBranch(language_model(), inputs)


def test_bad_companions():
    host = language_model()
    branch = ContrastBranch(host, {"input_ids": PROMPT})
    processor = ContrastProcessor([branch], lambda scores, other: scores - other)
    with pytest.raises(ValueError, match="give each once"):
        together(processor, processor)
    with pytest.raises(ValueError, match="at least one"):
        together()
    other = ContrastProcessor([ContrastBranch(language_model(), {"input_ids": PROMPT})], lambda scores, other: scores)
    with pytest.raises(ValueError, match="2 models"):
        together(processor, other)
    with pytest.raises(ValueError, match=r"\[1, 2\] prompts"):
        share_passes([branch, ContrastBranch(host, {"input_ids": PROMPT.repeat(2, 1)})])
    with pytest.raises(ValueError, match="encoder-decoder"):
        ContrastBranch(
            T5ForConditionalGeneration(T5Config(**{**TEXT, "d_model": 32, "d_ff": 32})), {"input_ids": PROMPT}
        )
    with pytest.raises(ValueError, match="without pixel_values, qformer_input_ids"):
        ContrastBranch(instruct_blip(), {"input_ids": PROMPT})
    sliding = language_model(sliding=True)
    unlike = [ContrastBranch(sliding, {"input_ids": PROMPT})]
    unlike += [ContrastBranch(sliding, {"input_ids": PROMPT, "token_type_ids": None, "position_bias": PROMPT})]
    share_passes(unlike)
    with pytest.raises(ValueError, match="passes of their own"):
        unlike[0].logits(said([]))
