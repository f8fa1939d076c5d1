"""The plug-in of `gsearch` on whole models, against a slow loop."""

import pytest
import torch

import foveal
from foveal.compress.base import keep_count
from foveal.compress.gsearch import LayerwiseKeep

from . import reference
from .tiny import BY_NAME, IMAGE, join

torch.set_num_threads(1)
RATES = (1, 1, 0.8, 0.45, 0.45, 0.1)


def layerwise(rates, last_image):
    """The choice written out; ``last_image``: column of the prompt's last image token."""
    processed = []

    def choose(at):
        chosen = list(range(len(at.columns)))
        keep = int(at.n_image * rates[at.number] + 1e-9)
        if keep < len(at.images):
            asking = [place for place in at.texts if at.columns[place] > last_image] or [len(at.columns) - 1]
            layer, hidden = processed[-1]
            scores = reference.attention(layer, hidden, at.rope)[:, asking].mean((0, 1)).tolist()
            best = sorted(at.images, key=lambda place: -scores[place])[:keep]
            chosen = sorted([*at.texts, *best])
        processed.append((at.layer, at.hidden[:, chosen]))
        return chosen

    return choose


def prompts(kind, model):
    """Images in front, two images with text between, an image at the very end."""
    first, last = kind.sizes[0], kind.sizes[-1]
    parts = [(3, first, 6), (2, last, 3, first, 5), (4, last)]
    return [kind.single(model, *part, seed=seed) for seed, part in enumerate(parts)]


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_vl"])
def test_choice_against_a_slow_loop(name, positions):
    """Three left-padded prompts: layer l − 1 ranks, with what it really processed; the instruction asks."""
    kind = BY_NAME[name]
    if kind.multi_axis and positions == "compact":
        pytest.skip("refused")
    model = kind.model(dtype=torch.float64)
    singles = prompts(kind, model)
    inputs = join(kind, *singles)
    with torch.no_grad(), LayerwiseKeep(RATES, positions).attached(model) as reducer:
        logits = model(**inputs).logits
    width = inputs["input_ids"].shape[1]
    for row, single in enumerate(singles):
        prompt = single["input_ids"].shape[1]
        images = (single["input_ids"][0] == IMAGE).nonzero()[:, 0].tolist()
        assert reducer.image_tokens[row].tolist() == [keep_count(len(images), rate) for rate in RATES]
        kept = [(columns - (width - prompt)).tolist() for columns in reducer.kept[row]]
        choose = layerwise(RATES, images[-1])
        want, choices = reference.run(model, single, prompt, choose, lambda layer: positions == "compact")
        assert kept == choices
        torch.testing.assert_close(logits[row, -1:], want, atol=1e-5, rtol=1e-5)


def test_answers_do_not_ask():
    """With labels the choice is that of the question, whatever the answer says."""
    kind = BY_NAME["llava"]
    model = kind.model()
    chosen = []
    for words in (5, 11):
        single = kind.single(model, 3, kind.sizes[0], 7)
        single["input_ids"][:, -3:] = words
        labels = single["input_ids"].clone()
        labels[:, :-3] = -100
        with torch.no_grad(), LayerwiseKeep((1, 1, 0.5, 0.5, 0.2, 0.2)).attached(model) as reducer:
            assert model(**single, labels=labels).loss > 0
        chosen.append(reducer.kept[0])
        with torch.no_grad(), reducer.attached(model):
            assert model(**single, labels=single["input_ids"]).loss > 0  # all of it an answer: nothing to ask with
    assert all(torch.equal(*both) for both in zip(*chosen, strict=True))


def test_ranking_costs_little():
    """Layers whose rate is that of the layer before rank nothing."""
    kind = BY_NAME["llava_next"]
    model = kind.model()
    single = kind.single(model, 3, kind.sizes[-1], 6)
    costs = []
    for rates in ((1, 1, 0.5, 0.5, 0.5, 0.5), (1, 1, 0.5, 0.4, 0.3, 0.2)):
        with LayerwiseKeep(rates).attached(model) as reducer:
            model(**single)
        costs.append(reducer.report().flops_selection)
    assert costs[0] < 0.5 * costs[1]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: LayerwiseKeep((1, 1, 0.2, 0.5)), r"rates=\(1.0, 1.0, 0.2, 0.5\).*not rise"),
        (lambda: LayerwiseKeep((1, 1, -0.1)), r"\[0, 1\]"),
        (lambda: LayerwiseKeep((1.2, 1, 1)), r"\[0, 1\]"),
        (lambda: LayerwiseKeep((1, 1, float("nan"))), r"\[0, 1\]"),
        (lambda: LayerwiseKeep((1, 0.9, 0.5)), "layers 0 and 1 must keep all"),
        (lambda: LayerwiseKeep((0.9, 0.9)), "layers 0 and 1 must keep all"),
        (lambda: LayerwiseKeep(()), "layers 0 and 1"),
        (lambda: LayerwiseKeep((1, 1), "new"), 'positions=.new.*"compact" or "original"'),
        (lambda: LayerwiseKeep((1, 1, 0.5)).attach(BY_NAME["llava"].model()), "3 entries.*6 decoder layers"),
        (lambda: LayerwiseKeep(RATES, "compact").attach(BY_NAME["qwen2_vl"].model()), 'three axes.*"original"'),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_found_by_name():
    assert foveal.compress.LayerwiseKeep is LayerwiseKeep
