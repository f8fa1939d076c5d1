import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal import zoo
from foveal.adapt import llm_bbo
from foveal.adapt.llm_bbo import (
    DEFAULT_POOL,
    ImagePromptRefiner,
    PromptHillClimber,
    feedback_messages,
    parse_templates,
    top_bottom,
)
from foveal.data import world
from foveal.llm import ScriptedLM
from foveal.zoo.dual_encoder import DualEncoder

torch.set_num_threads(1)
GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden/llm_bbo.npz"))
POOL = [f"{letter} {{}}" for letter in "abcdefghij"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_golden_ranks():
    pool = list(zip(GOLDEN["rank__templates"].tolist(), GOLDEN["rank__scores"].tolist(), strict=True))
    good, bad = top_bottom(pool, int(GOLDEN["rank__k"]))
    assert good == GOLDEN["rank__good"].tolist()
    assert bad == GOLDEN["rank__bad"].tolist()


def test_golden_accuracy():
    images, labels, texts = (
        torch.from_numpy(GOLDEN[f"accuracy__{name}"]) for name in ("image_features", "labels", "text_features")
    )
    expected = pytest.approx(float(GOLDEN["accuracy__expected"]))
    assert llm_bbo.template_accuracy(images, labels, texts) == expected
    scales = torch.tensor([1.0, 30.0, 0.01, 5.0])[:, None]
    assert llm_bbo.template_accuracy(images, labels, texts * scales) == expected
    for bad in (labels[:-1], labels[:, None], labels[0]):
        with pytest.raises(ValueError, match="labels"):
            llm_bbo.template_accuracy(images, bad, texts)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="text_features holds NaN"):
            llm_bbo.template_accuracy(images, labels, texts.index_fill(0, torch.tensor([1]), bad))


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.data())
def test_ranks_under_ties(scores, data):
    k = data.draw(st.integers(1, len(scores) // 2))
    good, bad = top_bottom([(str(i), score) for i, score in enumerate(scores)], k)
    assert good == [str(i) for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]]
    assert bad == [str(i) for i in sorted(range(len(scores)), key=lambda i: (scores[i], -i))[:k]]


@pytest.mark.parametrize("k", [0, -1, 2])
def test_ranks_that_would_overlap(k):
    with pytest.raises(ValueError, match=f"k={k}"):
        top_bottom([("a", 1.0), ("b", 2.0), ("c", 3.0)], k)


@pytest.mark.parametrize(
    ("reply", "templates"),
    [
        ("- a {}", ["a {}"]),
        ("Sure:\n- a {} \n-  the {}\n- a {}\nBye", ["a {}", "the {}"]),
        ("- {} and {}", ["{} and {}"]),
        ("- a {}\n- no blank", None),
        ("- a {}\n- {} {name}", None),
        ("- a {} }", None),
        ("- {a}", None),
        ("- a {{}}", None),
        ("- {} {{}}", None),
        (" - a {}", None),
        ("-a {}", None),
        ("a {}", None),
        ("- ", None),
        ("", None),
    ],
)
def test_parses(reply, templates):
    assert parse_templates(reply) == templates


def test_parses_another_placeholder():
    assert parse_templates("- a {name}", "{name}") == ["a {name}"]
    assert parse_templates("- a {}", "<category>") is None
    assert parse_templates("- {<category>}", "<category>") is None


PIECES = st.sampled_from(["- ", "{}", "{", "}", "\n", "\r", "\x85", "\u2028", "a", "{0}", "{x!r}"])


@settings(max_examples=300)
@given(st.lists(PIECES | st.text(max_size=4), max_size=12).map("".join))
def test_parsing_survives_anything(reply):
    for template in parse_templates(reply) or ():
        assert "dog" in template.format("dog")


def test_both_ends_are_shown_in_their_order():
    messages = feedback_messages(["g1 {}", "g2 {}"], ["b1 {}", "b2 {}"], n=3, max_words=9)
    assert [message["role"] for message in messages] == ["user"]
    text = messages[0]["content"]
    places = [text.index(said) for said in ("g1", "g2", "b1", "b2")]
    assert places == sorted(places)
    for said in ("3 ", "9 words", '"- "', "{}"):
        assert said in text


def test_what_the_other_modes_show():
    positive, none = (feedback_messages(["g1"], ["b1"], mode=mode)[0]["content"] for mode in ("positive", "none"))
    assert "g1" in positive
    assert "b1" not in positive
    assert "bad" not in positive
    assert "g1" not in none
    assert "b1" not in none
    for text in (positive, none):
        assert '"- "' in text
        assert "15 words" in text
    with pytest.raises(ValueError, match="mode='worst'"):
        feedback_messages([], [], mode="worst")
    with pytest.raises(ValueError, match="n=0"):
        feedback_messages([], [], n=0)


def climb(lm, seed=0, pool=POOL, score=None, **options):
    scored = []

    def counted(template):
        scored.append(template)
        return len(template) / 100 if score is None else score(template)

    defaults = {"n_restart": 1, "n_reset": 1, "n_iter": 3, "sample_size": 4, "k": 1}
    result = PromptHillClimber(counted, lm, **{**defaults, **options}).run(pool, generator(seed))
    assert sorted(scored) == sorted(set(scored))
    assert result.n_evaluations == len(scored)
    assert all(a["best"] <= b["best"] for a, b in pairwise(result.trace))
    assert result.n_evaluations <= options.get("n_restart", 1) * 10 + result.n_lm_calls * options.get("n_new", 1)
    return result


def subset(seed, count=1):
    draws = generator(seed)
    return [[POOL[i] for i in torch.randperm(10, generator=draws)[:4]] for _ in range(count)]


def test_climbs_on_what_it_was_given():
    lm = ScriptedLM(["- better {}", "- much better {}", "- worse", "- x{}"])
    result = climb(lm)
    first = subset(0)[0]
    assert result.trace == [
        {"restart": 0, "reset": 0, "iteration": 0, "new": ["better {}"], "best": 0.09},
        {"restart": 0, "reset": 0, "iteration": 1, "new": ["much better {}"], "best": 0.14},
        {"restart": 0, "reset": 0, "iteration": 2, "new": ["x{}"], "best": 0.14},
    ]
    assert (result.best, result.best_score) == ("much better {}", 0.14)
    assert (result.n_lm_calls, result.n_evaluations) == (4, 7)
    texts = [call[0]["content"].splitlines() for call in lm.calls]
    good, bad = (texts[0][texts[0].index(f"These templates are {kind}:") + 1] for kind in ("good", "bad"))
    assert (good, bad) == (first[0], first[-1])  # all are equal: the earliest is the best
    assert texts[1][texts[1].index("These templates are good:") + 1] == "better {}"
    assert texts[2] == texts[3]  # a retry asks the same


def test_a_reset_forgets_what_was_added_and_a_restart_draws_anew():
    lm = ScriptedLM(lambda prompt: "- added {}")
    result = climb(lm, n_restart=2, n_reset=2, n_iter=2, seed=3)
    sets = subset(3, count=2)
    assert [entry["new"] for entry in result.trace] == [["added {}"], []] * 4
    assert result.n_evaluations == len({*sets[0], *sets[1]}) + 1
    shown = [call[0]["content"] for call in lm.calls]
    assert ["added {}" in text for text in shown] == [False, True] * 4
    assert all(sets[0][0] in text for text in shown[::2][:2])
    assert all(sets[1][0] in text for text in shown[::2][2:])
    assert shown[0] == shown[2] != shown[4] == shown[6]


def test_of_equal_scores_the_earliest_is_best():
    result = climb(ScriptedLM(lambda prompt: "- added {}"), score=lambda template: 0.5)
    assert result.best == subset(0)[0][0]


def test_retries_are_counted_and_a_lost_request_costs_its_iteration():
    lm = ScriptedLM(["no", "- {", f"- {subset(0)[0][0]}", "no", "no", "no", "- b{}"])
    result = climb(lm, max_retries=3)
    assert [entry["new"] for entry in result.trace] == [[], [], ["b{}"]]  # the first is there already
    assert result.n_lm_calls == 7
    silent = climb(ScriptedLM(lambda prompt: ""), max_retries=2)
    assert (silent.n_lm_calls, silent.n_evaluations) == (6, 4)


def test_max_calls_ends_the_search():
    result = climb(ScriptedLM(lambda prompt: ""), max_calls=5, max_retries=2, n_reset=9)
    assert result.n_lm_calls == 5
    assert len(result.trace) == 3


def test_a_reply_counts_for_what_was_asked():
    reply = "- one more {}\n- two more {}\n- three more {}"
    assert climb(ScriptedLM([reply]), n_iter=1).trace[0]["new"] == ["one more {}"]
    assert climb(ScriptedLM([reply]), n_iter=1, n_new=2).trace[0]["new"] == ["one more {}", "two more {}"]


def test_the_generator_decides_sets_and_seeds():
    class Seeds(ScriptedLM):
        def complete(self, messages, *, max_new_tokens=128, temperature=0.0, seed=None):
            self.seeds = [*getattr(self, "seeds", ()), (seed, temperature)]
            return f"- {seed} {{}}"

    models = [Seeds([]) for _ in range(3)]
    results = [climb(lm, seed=seed, temperature=0.7) for lm, seed in zip(models, (0, 0, 1), strict=True)]
    assert results[0] == results[1] != results[2]
    assert models[0].seeds == models[1].seeds != models[2].seeds
    assert len({seed for seed, _ in models[0].seeds}) == 3
    assert {temperature for _, temperature in models[0].seeds} == {0.7}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(PIECES | st.text(max_size=3), max_size=6).map("".join), min_size=9, max_size=9))
def test_any_replies(replies):
    result = climb(ScriptedLM(replies), max_retries=3, score=lambda template: len(template) % 5)
    assert 3 <= result.n_lm_calls <= 9


def test_pools_and_options_that_do_not_fit():
    lm = ScriptedLM([])
    with pytest.raises(ValueError, match="initial_pool has 2"):
        PromptHillClimber(len, lm, sample_size=3, k=1).run(["a {}", "a {}", "b {}"], generator())
    with pytest.raises(ValueError, match="k=2"):
        PromptHillClimber(len, lm, sample_size=3, k=2).run(POOL, generator())
    for bad in ({"n_iter": 0}, {"max_retries": 0}, {"mode": "worst"}, {"max_calls": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            PromptHillClimber(len, lm, **bad)
    with pytest.raises(ValueError, match="is nan"):
        climb(lm, score=lambda template: math.nan)


def test_the_default_pool():
    assert len(set(DEFAULT_POOL)) == len(DEFAULT_POOL) >= 200
    for template in DEFAULT_POOL:
        assert parse_templates(f"- {template}") == [template]
        assert template.count("{}") == 1
        assert len(template.split()) <= 12


def refined(replies, scores, steps=3):
    asked = iter(scores)
    lm = ScriptedLM(replies)
    refiner = ImagePromptRefiner(
        lambda prompt: f"<{prompt}>", lambda image: f"shows {image}", lm, score=lambda image: next(asked)
    )
    return refiner.run("a red dog", initial_prompt="dog", steps=steps), lm


def test_refines_the_prompt_of_an_image():
    result, lm = refined([" a red dog, big \n", "  "], [0.2, 0.7, 0.7])
    assert result.prompts == ["dog", "a red dog, big", "a red dog, big"]  # an empty reply keeps the prompt
    assert result.images == ["<dog>", "<a red dog, big>", "<a red dog, big>"]
    assert result.scores == [0.2, 0.7, 0.7]
    assert (result.best, result.best_step) == ("a red dog, big", 1)
    assert len(lm.calls) == 2  # none after the last image
    for said in ("a red dog", "dog", "shows <dog>"):
        assert said in lm.calls[0][-1]["content"]
    assert "shows <a red dog, big>" in lm.calls[1][-1]["content"]
    single, lm = refined([], [0.1], steps=1)
    assert (single.best, single.prompts, lm.calls) == ("dog", ["dog"], [])
    with pytest.raises(ValueError, match="steps=0"):
        refined([], [], steps=0)


def test_on_nano_clip():
    nano = zoo.load("nano-clip")
    encoder = DualEncoder(nano.model, nano.processor)
    nouns = ("dog", "apple", "bus", "guitar", "tree")
    shown = world.classify(5, 40, nouns, world.WorldConfig(size=96, tint=0.0))
    features, labels = encoder.image_features(shown.images), torch.from_numpy(shown.labels)

    def score(template):
        texts = encoder.text_features([template.format(noun) for noun in nouns])
        return llm_bbo.template_accuracy(features, labels, texts)

    lm = ScriptedLM(lambda prompt: "- a drawing of a {}")
    options = {"n_restart": 1, "n_reset": 1, "n_iter": 2, "sample_size": 6, "k": 3}
    result = PromptHillClimber(score, lm, **options).run(DEFAULT_POOL, generator())
    assert result.best_score > 0.6  # chance is 0.2
    assert result.n_evaluations in (6, 7)
