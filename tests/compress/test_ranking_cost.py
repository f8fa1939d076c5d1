"""Choosing tokens costs less than 3 % of the prefill, in FLOPs as torch counts them.

A decoder of SmolLM2-135M's widths reads 576 image tokens and a short question. It has 4 of the 30 layers, so that the
test is quick: the FLOPs of a prefill are those of 30 such layers, and what one ranked layer costs is multiplied by the
number of layers that each method ranks in 30.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as hf
from torch.utils.flop_counter import FlopCounterMode

from foveal.compress.aim import AIM
from foveal.compress.baselines import FastV
from foveal.compress.fopru import FoPru
from foveal.compress.gsearch import LayerwiseKeep
from foveal.compress.pyramiddrop import PyramidDrop
from foveal.compress.runtime import PrefillReducer

torch.set_num_threads(1)
LAYERS, DEPTH, TOKENS, WORDS, IMAGE = 4, 30, 576, 32, 511
TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1}
CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 1, "num_attention_heads": 16}
"""Widths of the tower of LLaVA-1.5, with one block."""


@dataclass(frozen=True)
class Ranking:
    """A method on the short decoder."""

    name: str
    build: Callable[[], PrefillReducer]
    ranked: int
    """Layers whose attention it reads here."""
    at_depth: int
    """And in a decoder of 30 layers."""
    most: float
    """Percent of a prefill of 30 layers that one of them may cost, with the keys in the cache."""


RANKINGS = [
    Ranking("FastV", lambda: FastV(2, 0.25), 1, 1, 0.002),
    Ranking("PyramidDrop", lambda: PyramidDrop((1,), (0.5,)), 1, 3, 0.09),
    Ranking("LayerwiseKeep", lambda: LayerwiseKeep((1, 1, 0.9, 0.8)), 2, 28, 0.03),
    Ranking("AIM", lambda: AIM(0.25, 1), 2, 7, 0.14),
    Ranking("AIM without merging", lambda: AIM(1.0, 1), 2, 7, 0.42),
]


def build(layers: int, tower: dict[str, int], layer: int) -> tuple[Any, dict[str, Any]]:
    """A LLaVA and one prompt; ``layer`` of the tower gives the features."""
    vision = hf.CLIPVisionConfig(**tower, image_size=96, patch_size=4)
    text = hf.LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=IMAGE + 1,
    )
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=layer)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.LlavaForConditionalGeneration(config).eval()
    rng = torch.Generator().manual_seed(0)
    words = torch.randint(3, IMAGE, (WORDS,), generator=rng).tolist()
    ids = torch.tensor([[1, *[IMAGE] * TOKENS, *words]])
    return model, {"input_ids": ids, "pixel_values": torch.randn(1, 3, 96, 96, generator=rng)}


@pytest.fixture(scope="module")
def llava():
    return build(LAYERS, TOWER, -2)


def cost(llava, reducer, **options):
    """FLOPs of the choice, those of a prefill of 30 layers; the report's number is torch's."""
    model, inputs = llava
    spent = 0

    def counted(function):
        def call(*args):
            nonlocal spent
            with FlopCounterMode(display=False) as counter:
                found = function(*args)
            spent += counter.get_total_flops()
            return found

        return call

    reducer.select = counted(reducer.select)
    if isinstance(reducer, FoPru):
        reducer._read = counted(reducer._read)
    with torch.no_grad(), reducer.attached(model):
        model(**inputs, **options, logits_to_keep=1)
    report = reducer.report()
    assert report.flops_selection == spent > 0
    assert min(report.image_tokens) < TOKENS
    return spent, report.flops_full / len(report.image_tokens) * DEPTH


@pytest.mark.parametrize("ranking", RANKINGS, ids=lambda ranking: ranking.name)
def test_ranking_costs_little(llava, ranking):
    flops, prefill = cost(llava, ranking.build(), use_cache=True)
    share = flops / ranking.ranked / prefill
    assert 100 * share < ranking.most
    assert share * ranking.at_depth < 0.03


@pytest.mark.parametrize("ranking", [r for r in RANKINGS if r.build().looks_back], ids=lambda ranking: ranking.name)
def test_without_a_cache_the_keys_come_on_top(llava, ranking):
    flops, prefill = cost(llava, ranking.build(), use_cache=False)
    assert flops / ranking.ranked < 0.03 * prefill
    keys = 2 * (1 + TOKENS + WORDS) * 576 * 3 * 64
    assert flops - cost(llava, ranking.build(), use_cache=True)[0] <= ranking.ranked * keys


@pytest.mark.parametrize(("aggregate", "most"), [("cls", 0.008), ("mean", 0.025)])
def test_reading_the_vision_encoder_costs_little(aggregate, most):
    """One block of CLIP ViT-L against the decoder alone."""
    flops, prefill = cost(build(1, CLIP_L, -1), FoPru(0.25, aggregate=aggregate))
    assert flops < most * prefill
