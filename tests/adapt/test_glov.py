import math
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from foveal import zoo
from foveal.adapt import glov
from foveal.adapt.glov import GLOVOptimizer, LayerSteering, build_meta_prompt, parse_template, rank_prompts
from foveal.data import world
from foveal.llm import ScriptedLM
from foveal.zoo.dual_encoder import DualEncoder

torch.set_num_threads(1)
GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden/glov.npz"))
FIRST = "a photo of a <category>."


# Steering -------------------------------------------------------------------------------------------------------------


def golden_llama():
    config = LlamaConfig(
        vocab_size=41, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, rms_norm_eps=1e-6, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    start = "steer__w:"
    state = {name[len(start) :]: torch.from_numpy(x) for name, x in GOLDEN.items() if name.startswith(start)}
    model.load_state_dict(state)
    return model.double().eval()


def test_golden_steering():
    model, layer = golden_llama(), int(GOLDEN["steer__layer"])
    hidden = []
    for side in ("positive", "negative"):
        ids = torch.from_numpy(GOLDEN[f"steer__{side}_ids"])
        with torch.no_grad():
            states = model(ids[None], output_hidden_states=True).hidden_states[layer + 1][0]
        np.testing.assert_allclose(states, GOLDEN[f"steer__{side}_hidden"], atol=1e-6)
        hidden.append(states)
    offset = glov.offset_vector(*hidden, alpha=float(GOLDEN["steer__alpha"]))
    np.testing.assert_allclose(offset, GOLDEN["steer__offset"], atol=1e-6)
    tokens = torch.from_numpy(GOLDEN["steer__input_ids"])
    with torch.no_grad():
        np.testing.assert_allclose(model(tokens).logits, GOLDEN["steer__logits_plain"], atol=1e-5)
        with LayerSteering(model, layer, offset):
            np.testing.assert_allclose(model(tokens).logits, GOLDEN["steer__logits_steered"], atol=1e-5)


def test_golden_embedding():
    hidden, mask = torch.from_numpy(GOLDEN["embed__hidden"]), torch.from_numpy(GOLDEN["embed__mask"])
    np.testing.assert_allclose(glov.sentence_embedding(hidden, mask), GOLDEN["embed__expected"], atol=1e-6)
    masks = {"pos_mask": mask[0], "neg_mask": mask[1]}
    offset = glov.offset_vector(hidden[0], hidden[1], alpha=float(GOLDEN["embed__alpha"]), **masks)
    np.testing.assert_allclose(offset, GOLDEN["embed__offset01"], atol=1e-6)


# Prompts --------------------------------------------------------------------------------------------------------------


def test_ranks_ascend_and_keep_the_order_of_equals():
    top, bottom = rank_prompts(list("abcdef"), [3, 1, 2, 1, 3, 2], k=2)
    assert top == [("a", 3), ("e", 3)]
    assert bottom == [("b", 1), ("d", 1)]
    assert rank_prompts(list("abc"), [1, 2, 3]) == ([("c", 3)], [("a", 1)])  # k is half of the pool at most
    assert rank_prompts(["a"], [1]) == ([], [])
    assert rank_prompts(list("ab"), [1, 2], k=0) == ([], [])


@given(st.lists(st.integers(0, 5), max_size=12), st.integers(0, 6))
def test_ranks_of_any_pool(scores, k):
    prompts = [str(i) for i in range(len(scores))]
    top, bottom = rank_prompts(prompts, scores, k)
    assert len(top) == len(bottom) == min(k, len(scores) // 2)
    assert [score for _, score in top] == sorted(scores)[len(scores) - len(top) :]
    assert [score for _, score in bottom] == sorted(scores)[: len(top)]
    assert not {prompt for prompt, _ in top} & {prompt for prompt, _ in bottom}


def test_the_contrast_is_with_the_second_best():
    assert glov.contrast_pair(list("abcdef"), [1, 5, 3, 5, 3, 0]) == ("b", "e")
    assert glov.contrast_pair(["a", "b"], [2, 2]) is None
    assert glov.contrast_pair([], []) is None


@pytest.mark.parametrize("function", [rank_prompts, glov.contrast_pair])
def test_pools_that_cannot_be_ranked(function):
    with pytest.raises(ValueError, match=r"prompts \(2\) and scores \(1\)"):
        function(["a", "b"], [1.0])
    with pytest.raises(ValueError, match="'b' is nan"):
        function(["a", "b"], [1.0, math.nan])


@pytest.mark.parametrize(
    ("reply", "template"),
    [
        ("a photo of a <category>.", "a photo of a <category>."),
        ("Here you are:\n\n  - a drawing of <category>\n\nEnjoy!", "a drawing of <category>"),
        ("1. one <category>\n2) two <category>", "two <category>"),
        ("• `a <category>: a bird`", "a <category>: a bird"),
        ('3. New template: "a <category> on grass"', "a <category> on grass"),
        ("* Note: the best: the <category>", "the <category>"),
        ("accuracy 45: a <category>", "a <category>"),
        ("1.5 metres of <category>", "1.5 metres of <category>"),
        ("“<category>”", "<category>"),
        ("a photo of a {}", None),
        ("", None),
    ],
)
def test_parses(reply, template):
    assert parse_template(reply) == template


def test_parses_another_placeholder():
    assert parse_template("Use: a {} here", "{}") == "a {} here"


PIECES = st.sampled_from(
    ["<category>", ":", "\n", "- ", "*", "1.", '"', "`", "\r", "\x85", "\u2028", "é", "{}", "<|im_end|>"]
)


@settings(max_examples=300)
@given(st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join))
def test_parsing_survives_anything(reply):
    template = parse_template(reply)
    assert (template is None) == ("<category>" not in reply)
    if template is not None:
        assert "<category>" in template
        assert template == template.strip()
        assert "\n" not in template


def test_the_meta_prompt_of_the_first_step():
    messages = build_meta_prompt("sketches", "Pencil drawings.", 0, initial=(FIRST, 31.9))
    assert [message["role"] for message in messages] == ["system", "user"]
    text = messages[1]["content"]
    for said in ("sketches", "Pencil drawings.", FIRST, "31"):
        assert said in text
    assert "31.9" not in text
    assert "32" not in text


def test_later_meta_prompts_show_both_ends_in_the_given_order():
    top, bottom = [("b <category>", 40.6), ("a <category>", 50.2)], [("d <category>", 1.9), ("c <category>", 3.0)]
    text = build_meta_prompt("x", "y", 4, initial=(FIRST, 31.9), top=top, bottom=bottom)[1]["content"]
    places = [text.index(said) for said in ("40: b <", "50: a <", "1: d <", "3: c <")]
    assert places == sorted(places)
    assert FIRST not in text
    first = {"initial": (FIRST, 31.9)}
    assert build_meta_prompt("x", "y", 4, **first) == build_meta_prompt("x", "y", 0, **first)  # nothing to show yet


def test_meta_prompts_that_cannot_be():
    with pytest.raises(ValueError, match="initial=None"):
        build_meta_prompt("x", "y", 0)
    with pytest.raises(ValueError, match="step=-1"):
        build_meta_prompt("x", "y", -1, initial=(FIRST, 1.0))


# Worth ----------------------------------------------------------------------------------------------------------------


def letters(texts):
    """Features of a text: how often it has each letter."""
    return torch.tensor([[float(text.count(chr(97 + i))) for i in range(26)] + [1.0] for text in texts])


def test_weights_are_means_of_unit_rows():
    names, templates = ["polar_bear", "cat"], ["a <category>", "<category> <category>", "no placeholder"]
    weights = glov.template_weights(letters, names, templates)
    unit = torch.nn.functional.normalize
    filled = [["a polar bear", "polar bear polar bear"], ["a cat", "cat cat"]]
    expected = unit(torch.stack([unit(letters(texts)).mean(0) for texts in filled]))
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(glov.template_weights(letters, ["cat"], ["<category>"]), unit(letters(["cat"])))
    with pytest.raises(ValueError, match="none contains '<category>'"):
        glov.template_weights(letters, names, ["a {}"])


def test_accuracies_are_percent():
    labels = torch.tensor([0, 1, 1, 1])
    images = torch.tensor([[3.0, 0.1], [0.1, 2.0], [5.0, 1.0], [0.0, 1.0]])
    assert glov.top1_accuracy(images, labels, torch.eye(2)) == 75.0
    answers = ["a cat", "the zoo", "cat", "zzz"]
    assert glov.caption_accuracy(answers, torch.tensor([0, 1, 1, 1]), ["cat", "zoo"], letters) == 75.0
    for bad in (labels[:3], labels[:, None], labels[0]):
        with pytest.raises(ValueError, match="labels"):
            glov.top1_accuracy(images, bad, torch.eye(2))
        with pytest.raises(ValueError, match="labels"):
            glov.caption_accuracy(answers, bad, ["cat", "zoo"], letters)
    with pytest.raises(ValueError, match="labels"):
        glov.caption_accuracy([], labels[:0], ["cat"], letters)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", ["cat", "zoo", "a cat"])
def test_features_that_are_not_finite_have_no_accuracy(side, bad):
    def broken(texts):
        return letters(texts).masked_fill(torch.tensor([[text == side] for text in texts]), bad)

    with pytest.raises(ValueError, match="weights holds NaN"):
        glov.top1_accuracy(torch.eye(2), torch.tensor([0, 1]), torch.tensor([[1.0, 0.0], [0.0, bad]]))
    with pytest.raises(ValueError, match="embed gave NaN"):
        glov.caption_accuracy(["a cat", "the zoo"], torch.tensor([0, 1]), ["cat", "zoo"], broken)


# The search -----------------------------------------------------------------------------------------------------------


class Steerable(ScriptedLM):
    """Notes under which steering it was asked."""

    def __init__(self, replies):
        super().__init__(replies)
        self.steered, self.now, self.asked, self.room = [], None, [], []

    @contextmanager
    def steer(self, positive, negative, *, alpha=1.0, layer=None):
        self.now = (positive, negative, alpha, layer)
        self.steered.append(self.now)
        yield
        self.now = None

    def complete(self, messages, *, max_new_tokens=128, temperature=0.0, seed=None):
        self.asked.append((seed, temperature, self.now))
        self.room.append(max_new_tokens)
        return super().complete(messages, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)


REPLIES = [
    "nothing", "one <category>",  # step 0: worse than the first
    "two <category>", "two <category>",  # 1: better
    "one <category>", "three <category>",  # 2: no better
    "- four <category>", FIRST,  # 3: better still
    "five <category>", "",  # 4
]  # fmt: skip
SCORES = {FIRST: 20.0} | {
    f"{word} <category>": score
    for word, score in {"one": 10.0, "two": 40.0, "three": 40.0, "four": 60.0, "five": 60.0}.items()
}


def search(lm, **options):
    evaluated = []

    def fitness(prompt):
        evaluated.append(prompt)
        return SCORES[prompt]

    optimizer = GLOVOptimizer(lm, fitness, "x", "y", steps=5, per_step=2, **options)
    result = optimizer.run()
    assert sorted(evaluated) == sorted({prompt for _, prompt, _ in result.history})
    return result


def test_the_loop():
    lm = Steerable(REPLIES)
    result = search(lm, seed=7, alpha=0.5, layer=3)
    assert result.history == [
        (-1, FIRST, 20.0),
        (0, "one <category>", 10.0),
        (1, "two <category>", 40.0),
        (2, "three <category>", 40.0),
        (3, "four <category>", 60.0),
        (4, "five <category>", 60.0),
    ]
    assert (result.best, result.best_score) == ("four <category>", 60.0)
    assert result.ensemble == ["four <category>", "five <category>", "two <category>"]
    assert result.steered_steps == [2, 3, 4]
    early, late = ("two <category>", FIRST, 0.5, 3), ("four <category>", "three <category>", 0.5, 3)
    assert lm.steered == [early, early, late]  # refreshed only when the best is beaten; entered once a step
    assert [under for _, _, under in lm.asked] == [None] * 4 + [early] * 4 + [late] * 2
    assert [seed for seed, _, _ in lm.asked] == list(range(7, 17))
    assert {temperature for _, temperature, _ in lm.asked} == {1.0}
    assert lm.room == [50] * 4 + [75] * 6  # as the release: a steered model may write more


def test_what_the_language_model_sees():
    lm = ScriptedLM(REPLIES)
    search(lm, k=1)
    texts = [call[1]["content"] for call in lm.calls]
    assert FIRST in texts[0]
    assert "20: " + FIRST in texts[2]  # the best of two
    assert "10: one" in texts[2]
    assert "40: two" in texts[4]
    assert "10: one" in texts[4]
    assert texts[0] == texts[1]


def test_no_steering_without_alpha_or_without_a_model_that_can():
    lm = Steerable(REPLIES)
    assert search(lm, alpha=0.0).steered_steps == []
    assert not lm.steered
    plain = search(ScriptedLM(REPLIES))
    assert plain.steered_steps == []
    assert plain.best == "four <category>"


def test_k_0_asks_as_in_the_first_step():
    lm = ScriptedLM(REPLIES)
    search(lm, k=0)
    assert all(call == lm.calls[0] for call in lm.calls)


def test_nothing_useful_is_survived():
    result = GLOVOptimizer(ScriptedLM(lambda prompt: "I cannot."), len, "x", "y", steps=3, per_step=2).run()
    assert result.history == [(-1, FIRST, float(len(FIRST)))]
    assert result.ensemble == [FIRST]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(PIECES | st.text(max_size=3), max_size=6).map("".join), min_size=12, max_size=12))
def test_any_replies(replies):
    result = GLOVOptimizer(ScriptedLM(replies), lambda prompt: len(prompt) % 7, "x", "y", steps=4, per_step=3).run()
    prompts = [prompt for _, prompt, _ in result.history]
    assert len(set(prompts)) == len(prompts)
    assert result.best_score == max(score for _, _, score in result.history)
    assert result.ensemble[0] == result.best


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"per_step": 0}, {"k": -1}, {"ensemble": 0}, {"alpha": math.nan}, {"initial": "a {}"}]
)
def test_bad_options_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        GLOVOptimizer(ScriptedLM([]), len, "x", "y", **bad)


def test_a_fitness_that_is_no_number():
    with pytest.raises(ValueError, match=r"photo.*nan"):
        GLOVOptimizer(ScriptedLM([]), lambda prompt: math.nan, "x", "y").run()


def test_on_nano_clip():
    nano = zoo.load("nano-clip")
    encoder = DualEncoder(nano.model, nano.processor)
    nouns = ("dog", "apple", "bus", "guitar", "tree")
    shown = world.classify(5, 40, nouns, world.WorldConfig(size=96, tint=0.0))
    features, labels = encoder.image_features(shown.images), torch.from_numpy(shown.labels)

    def fitness(prompt):
        return glov.top1_accuracy(features, labels, glov.template_weights(encoder.text_features, nouns, [prompt]))

    lm = ScriptedLM(["- a picture of a <category>", "two red <category>", "none"])
    result = GLOVOptimizer(lm, fitness, "drawings", "Drawn things.", steps=1, per_step=3).run()
    assert [prompt for _, prompt, _ in result.history] == [FIRST, "a picture of a <category>", "two red <category>"]
    assert fitness("a picture of a <category>") > 60.0  # chance is 20
    ensemble = glov.template_weights(encoder.text_features, nouns, result.ensemble)
    assert glov.top1_accuracy(features, labels, ensemble) > 60.0
