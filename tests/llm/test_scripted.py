"""The language model that says what it is told to."""

import pytest

from foveal.llm import ScriptedLM

CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


def test_the_scripted_model_answers_in_order_and_remembers():
    scripted = ScriptedLM(["a cat. And more", " a dog "])
    assert scripted.generate(["first"], stop=["."]) == ["a cat"]
    assert scripted.complete(CAPITAL) == "a dog"
    assert scripted.calls == ["first", CAPITAL]
    with pytest.raises(ValueError, match="all 2 were given"):
        scripted.generate(["third"])


def test_the_scripted_model_answers_by_function():
    scripted = ScriptedLM(lambda prompt: prompt.upper())
    assert scripted.generate(["a", "b"]) == ["A", "B"]
    with pytest.raises(ValueError, match="replies"):
        ScriptedLM("one answer")
    with pytest.raises(ValueError, match="max_new_tokens"):
        scripted.generate(["a"], max_new_tokens=0)
