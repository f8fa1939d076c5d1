"""How ways of dropping tokens are compared: marks by kind, and peers at the same mean rate."""

from types import SimpleNamespace

import pytest
import torch
from compress.tiny import BY_NAME

from foveal.compress.pyramiddrop import PyramidDrop
from foveal.recipes._lvlm_search import KINDS, Prompts
from foveal.recipes._peers import fastv, randomdrop


def test_marks_by_kind():
    """Two questions of each kind, in batches that do not end where a kind does."""
    said = torch.tensor([1, 1, 2, 9, 9, 9, 4, 4])
    beginnings = [{1}, {1}, {2}, {2}, {3}, {3}, {4}, {4, 5}]
    cuts = [slice(0, 3), slice(3, 8)]
    model = lambda tokens, logits_to_keep: SimpleNamespace(logits=torch.eye(10)[tokens][:, None])  # noqa: E731
    asked = Prompts(
        SimpleNamespace(model=model), [{"tokens": said[cut]} for cut in cuts], [beginnings[cut] for cut in cuts]
    )
    assert asked.by_kind(None) == dict(zip(KINDS, (100.0, 50.0, 0.0, 100.0), strict=True))
    assert asked.right(None) == 62.5


def test_a_reducer_is_gone_afterwards():
    model = BY_NAME["llava"].model()
    prompt = BY_NAME["llava"].singles(model)[0]
    asked = Prompts(SimpleNamespace(model=model), [prompt] * len(KINDS), [[set()]] * len(KINDS))
    for how in (PyramidDrop((2,), (0.5,)), [1.0, 1.0, 0.5, 0.5, 0.5, 0.5]):
        assert asked.right(how) == 0
        assert not hasattr(model.model, "_foveal_reducer")


@pytest.mark.parametrize("build", [lambda budget: fastv(6, budget), randomdrop])
def test_peers_meet_the_budget(build):
    model = BY_NAME["llava"].model()
    with torch.no_grad(), build(0.5).attached(model) as reducer:
        model(**BY_NAME["llava"].singles(model)[0])
    assert reducer.image_tokens.float().mean() / 16 == 0.5
    assert reducer.positions == "original"
