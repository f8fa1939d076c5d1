"""Small models as writers of templates: the lists that they are given, and SmolLM2 going on with one."""

import pytest
import torch

from foveal import llm
from foveal.adapt import glov_list, llm_bbo_list
from foveal.adapt.base_continue import LONGEST, ListContinuer
from foveal.adapt.glov import build_meta_prompt, parse_template
from foveal.adapt.llm_bbo import feedback_messages, parse_templates

torch.set_num_threads(1)
TOP = [("a drawing of a <category>", 52.5), ("a sketch of a <category>", 55.0)]
BOTTOM = [("two <category>", 2.5), ("my <category>: red", 30.0)]


def test_glovs_list_ascends_to_a_better_one():
    lines = glov_list.as_list(build_meta_prompt("x", "y", 3, top=TOP, bottom=BOTTOM)).splitlines()
    assert lines[3:] == [
        "accuracy 2: two <category>",
        "accuracy 30: my <category>: red",
        "accuracy 52: a drawing of a <category>",
        "accuracy 55: a sketch of a <category>",
        "accuracy 60:",
    ]
    first = glov_list.as_list(build_meta_prompt("x", "y", 0, initial=TOP[0])).splitlines()
    assert first[-2:] == ["accuracy 52: a drawing of a <category>", "accuracy 57:"]


def test_the_list_of_the_hill_climber_ends_with_the_best():
    good, bad = ["a {}", "the {}"], ["{} x", "{} y"]
    for mode, seen in (("both", (good, bad)), ("positive", (good, [])), ("none", ([], []))):
        messages = feedback_messages(good, bad, mode=mode)
        assert llm_bbo_list.sections(messages) == seen
        text = llm_bbo_list.as_list(messages)
        assert text.endswith("- the {}\n- a {}\n-" if seen[0] else "Good templates:\n-")
        assert ("- {} x\n- {} y\n" in text) == bool(seen[1])


@pytest.fixture(scope="module")
def smollm2():
    return llm.smollm2()


def test_smollm2_goes_on_in_the_form(smollm2):
    lm = ListContinuer(smollm2, glov_list.as_list)
    messages = build_meta_prompt("x", "y", 3, top=TOP, bottom=BOTTOM)
    replies = [lm.complete(messages, temperature=1.0, seed=seed) for seed in (0, 1, 2, 0)]
    assert replies[0] == replies[3]
    assert lm.replies == replies
    assert any(parse_template(reply) for reply in replies)
    for reply in replies:
        assert "\n" not in reply
        assert len(lm.tokenizer(reply)["input_ids"]) <= LONGEST + 1
    with lm.steer(TOP[1][0], TOP[0][0], alpha=4.0):
        assert lm.complete(messages, temperature=1.0, seed=0) != replies[0]


def test_smollm2_answers_the_hill_climber(smollm2):
    lm = ListContinuer(smollm2, llm_bbo_list.as_list, "- ")
    messages = feedback_messages(["a drawing of a {} on paper", "a sketch of a {}"], ["two {}", "{} at night"])
    replies = [lm.complete(messages, temperature=1.0, seed=seed) for seed in range(4)]
    assert any(parse_templates(reply) for reply in replies)
    assert all(reply.startswith("- ") for reply in replies)
