"""Steering of a local model: SmolLM2 itself."""

import pytest
import torch

from foveal.llm import HFLM
from foveal.nn.steering import LayerSteering, hidden_after

ASKED = [{"role": "user", "content": "Write one short caption of a picture."}]
BEST, NEXT = "a pencil sketch of a <category> on white paper", "a photo of a <category>."


@pytest.fixture(scope="module")
def lm():
    from foveal import zoo

    part = zoo.load("smollm2")
    return HFLM(part.model, part.tokenizer)


def test_steers_block_16_of_30_and_leaves_no_trace(lm):
    options = {"max_new_tokens": 4, "temperature": 1.0, "seed": 0}
    before = [len(block._forward_hooks) for block in lm.model.model.layers]
    plain = lm.complete(ASKED, **options)
    with lm.steer(BEST, NEXT):
        steered = lm.complete(ASKED, **options)
        now = [len(block._forward_hooks) for block in lm.model.model.layers]
        assert [i for i in range(30) if now[i] != before[i]] == [16]
    assert steered != plain
    assert lm.complete(ASKED, **options) == plain
    with lm.steer(BEST, BEST):
        assert lm.complete(ASKED, **options) == plain
    ends = [hidden_after(lm.model, torch.tensor(lm.tokenizer(text)["input_ids"]), 16).mean(0) for text in (BEST, NEXT)]
    with LayerSteering(lm.model, 16, ends[0] - ends[1]):
        assert lm.complete(ASKED, **options) == steered


def test_layers_that_are_not_there(lm):
    with pytest.raises(ValueError, match="layer=30"), lm.steer(BEST, NEXT, layer=30):
        pass
