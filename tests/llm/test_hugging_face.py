"""The real small language model."""

import pytest
import torch

from foveal import zoo
from foveal.llm import HFLM

CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


@pytest.fixture(scope="module")
def smollm2():
    part = zoo.load("smollm2")
    return HFLM(part.model, part.tokenizer)


def test_answers_a_conversation_and_continues_a_text(smollm2):
    answer, text = smollm2.generate([CAPITAL, "One, two, three, four,"], max_new_tokens=8)
    assert "Paris" in answer
    assert text.startswith(" five")


def test_padding_changes_nothing(smollm2):
    prompts = ["The sky is", "Once upon a time, in a small village by the sea, there lived an old", "Two plus two is"]
    together = smollm2.generate(prompts, max_new_tokens=8)
    assert together == [smollm2.generate([prompt], max_new_tokens=8)[0] for prompt in prompts]


def test_stops_before_the_first_stop_string_even_within_a_token(smollm2):
    whole = smollm2.generate(["One, two, three,"], max_new_tokens=12)[0]
    assert "si" in whole
    assert smollm2.generate(["One, two, three,"], max_new_tokens=12, stop=["zzz", "si"])[0] == whole.split("si")[0]


def test_sampling_draws_from_the_generator_alone(smollm2):
    def draw(seed: int) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        return smollm2.generate(
            ["My favourite animal is the"] * 2, max_new_tokens=8, temperature=1.0, generator=generator
        )

    before = torch.get_rng_state()
    first = draw(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert draw(0) == first
    assert draw(1) != first
    generator = torch.Generator().manual_seed(0)
    options = {"max_new_tokens": 8, "temperature": 1.0, "generator": generator}
    assert smollm2.generate(["The"], **options) != smollm2.generate(["The"], **options)  # the generator moves on


def test_complete_is_one_answer(smollm2):
    assert smollm2.complete(CAPITAL, max_new_tokens=8) == smollm2.generate([CAPITAL], max_new_tokens=8)[0].strip()
    drawn = [smollm2.complete(CAPITAL, max_new_tokens=6, temperature=2.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ("one text", {}, "list of prompts"),
        (CAPITAL, {}, "list of prompts"),
        ([""], {}, "no token"),
        (["x " * 9000], {}, "context"),
        (["x"], {"temperature": 1.0}, "generator"),
        (["x"], {"temperature": float("nan")}, "temperature"),
        (["x"], {"temperature": -1.0}, "temperature"),
        (["x"], {"max_new_tokens": 0}, "max_new_tokens"),
        (["x"], {"stop": "."}, "stop"),
        (["x"], {"stop": [""]}, "stop"),
    ],
)
def test_bad_input(smollm2, prompts, options, words):
    with pytest.raises(ValueError, match=words):
        smollm2.generate(prompts, **options)


def test_no_prompts_no_texts(smollm2):
    assert smollm2.generate([]) == []
