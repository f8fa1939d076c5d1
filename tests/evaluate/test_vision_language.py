"""The adapter for vision–language models, on a tiny LLaVA."""

import itertools

import numpy as np
import pytest
import torch

from foveal.evaluate.models import VisionLanguage, open_model

from .tiny import save_llava

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(4)]
REQUESTS = [
    ([PICTURES[0]], "What is it?"),
    ([PICTURES[1], PICTURES[2]], "Which of the two?"),
    ([PICTURES[3]], "Is there a dog in the image? Answer yes or no, and say why."),
    ([], "Hello"),
    ([PICTURES[2]], "What is it?"),
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return open_model(str(save_llava(tmp_path_factory.mktemp("models") / "llava")))


def test_answers_of_a_batch_are_those_of_singles(opened):
    assert (opened.kind, opened.class_name) == ("vision-language", "LlavaForConditionalGeneration")
    together = opened.model.answer(REQUESTS, 12)
    assert together == [opened.model.answer([request], 12)[0] for request in REQUESTS]
    assert len(set(together)) == len(REQUESTS)
    assert opened.model.answer(REQUESTS[::-1], 12) == together[::-1]


def test_options_may_be_made_from_the_inputs_of_each_batch(opened):
    sizes = []

    def stop_at_once(inputs):
        sizes.append(inputs["input_ids"].shape[0])
        return {"suppress_tokens": [i for i in range(len(opened.model.tokenizer)) if i != 7]}

    adapter = VisionLanguage(opened.model.model, opened.model.processor, 2, stop_at_once)
    same = adapter.answer(REQUESTS, 1)
    assert same == [opened.model.tokenizer.decode([7], skip_special_tokens=True).strip()] * len(REQUESTS)
    assert sum(sizes) == len(REQUESTS)


def test_answers_are_the_greedy_ones(opened):
    """Token by token through the model itself."""
    model, processor = opened.model.model, opened.model.processor
    from PIL import Image

    inputs = processor(
        text="USER: <image>\nWhat is it? ASSISTANT:", images=Image.fromarray(PICTURES[0]), return_tensors="pt"
    )
    ids, written = inputs.input_ids, []
    for _ in range(6):
        with torch.no_grad():
            logits = model(input_ids=ids, pixel_values=inputs.pixel_values).logits
        written.append(int(logits[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor([written[-1:]])], 1)
    expected = processor.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert opened.model.answer([([PICTURES[0]], "What is it?")], 6) == [expected]


def test_loglikelihood_is_the_sum_over_the_tokens(opened):
    model, processor = opened.model.model, opened.model.processor
    from PIL import Image

    prompt = "USER: <image>\nWhat is it? ASSISTANT:"
    picture = Image.fromarray(PICTURES[0])
    whole = processor(text=f"{prompt} yes red", images=picture, return_tensors="pt")
    start = processor(text=prompt, images=picture, return_tensors="pt").input_ids.shape[1]
    with torch.no_grad():
        scores = model(**whole).logits[0].log_softmax(-1)
    expected = sum(float(scores[i - 1, whole.input_ids[0, i]]) for i in range(start, whole.input_ids.shape[1]))
    ((found, greedy),) = opened.model.loglikelihood([("What is it?", " yes red", [PICTURES[0]])])
    assert found == pytest.approx(expected, abs=1e-4)
    assert not greedy
    with pytest.raises(ValueError, match="continuation=''"):
        opened.model.loglikelihood([("What is it?", "", [PICTURES[0]])])


def test_the_prompt_is_read_without_the_continuation(opened):
    """So that a reducer which is attached keeps the tokens that it keeps when the model writes."""
    texts = [" yes", " yes red", " yes red dog in the image"]
    tokens = [len(opened.model.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    lengths = []

    def note(model, args, kwargs):
        lengths.append(kwargs["input_ids"].shape[1])

    handle = opened.model.model.register_forward_pre_hook(note, with_kwargs=True)
    opened.model.loglikelihood([("What is it?", text, [PICTURES[0]]) for text in texts])
    handle.remove()
    prompt = lengths[0]
    assert lengths == [length for n in tokens for length in (prompt, n - 1) if length]


def test_the_greedy_continuation_is_told(opened, monkeypatch):
    target = opened.model.tokenizer(" yes red", add_special_tokens=False).input_ids
    parts = itertools.cycle([target[:1], target[1:]])  # after the prompt, and after the target's own first tokens

    def forced(inputs):
        """Logits that want " yes red"."""
        wanted = next(parts)
        logits = torch.zeros(1, inputs["input_ids"].shape[1], len(opened.model.tokenizer))
        logits[0, range(-len(wanted), 0), wanted] = 5.0
        return logits

    monkeypatch.setattr(opened.model, "_forward", forced)
    assert opened.model.loglikelihood([("What is it?", " yes red", [PICTURES[0]])])[0][1]
    assert not opened.model.loglikelihood([("What is it?", " yes no", [PICTURES[0]])])[0][1]


def test_yes_and_no(opened):
    scores = opened.model.yes_no(REQUESTS)
    assert len(scores) == len(REQUESTS)
    for request, (yes, no) in zip(REQUESTS, scores):
        assert yes < 0
        assert no < 0
        assert opened.model.yes_no([request])[0] == pytest.approx((yes, no), abs=1e-4)
    single = opened.model.loglikelihood([("What is it?", " yes", [PICTURES[0]])])[0][0]
    assert scores[0][0] >= single - 1e-4  # " yes" is one of its spellings


def test_lmms_evals_calls(opened):
    plain = opened.model.answer([REQUESTS[0]], 8)[0]
    assert opened.model.generate_until([("What is it?", {"max_new_tokens": 8}, [PICTURES[0]])]) == [plain]
    stop = plain[2]
    cut = opened.model.generate_until([("What is it?", {"until": [stop], "max_new_tokens": 8}, [PICTURES[0]])])
    assert cut == [plain.split(stop)[0].strip()]


def test_options_reach_generate(opened):
    """A logits processor that allows one token only, as a decoding method would be passed."""
    from transformers import LogitsProcessorList

    token = opened.model.tokenizer(" red", add_special_tokens=False).input_ids[0]

    def only(ids, scores):
        blocked = torch.full_like(scores, -torch.inf)
        blocked[:, token] = 0
        return blocked

    steered = VisionLanguage(
        opened.model.model, opened.model.processor, 4, {"logits_processor": LogitsProcessorList([only])}
    )
    word = opened.model.tokenizer.decode([token] * 3).strip()
    assert steered.answer(REQUESTS[:1], 3) == [word]
