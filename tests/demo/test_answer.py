"""Answers: the eyes decide yes and no, the language model puts everything else into words."""

import pytest

from foveal.demo.answer import answer, decide
from foveal.llm import HFLM, ScriptedLM


@pytest.mark.parametrize(
    ("question", "decided"),
    [
        ("Is there a cat in the picture?", "Yes"),
        ("are there any cats?", "Yes"),
        ("Can you see a truck?", "No"),
        ("Is it there?", ""),
        ("What animal is this?", ""),
    ],
)
def test_yes_and_no(zero_shot, cat, question, decided):
    assert decide(zero_shot, cat, question) == decided


def test_the_model_is_told_what_is_seen_and_goes_on_from_the_decision(eyes, zero_shot, cat):
    scripted = ScriptedLM([" there is a cat.\n\nPhoto: next"])
    found = answer(eyes, zero_shot, scripted, cat, "Is there\n a cat?")
    assert found.text == "Yes, there is a cat."
    assert "tabby cat" in found.seen
    assert scripted.calls[0].endswith(f"Photo: {', '.join(found.seen)}\nQuestion: Is there a cat?\nAnswer: Yes,")


def test_real_answers(eyes, zero_shot, cat, church):
    language = HFLM(eyes.language.model, eyes.language.tokenizer)
    assert "cat" in answer(eyes, zero_shot, language, cat, "What is this?").text
    assert "church" in answer(eyes, zero_shot, language, church, "What is in the picture?").text
    assert answer(eyes, zero_shot, language, church, "Is there a cat?").text.startswith("No, ")


def test_an_empty_question(eyes, zero_shot, cat):
    with pytest.raises(ValueError, match="question"):
        answer(eyes, zero_shot, ScriptedLM([]), cat, "  ")
