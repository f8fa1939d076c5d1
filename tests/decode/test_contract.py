import copy
from types import SimpleNamespace

import pytest
import torch

from foveal.compress.pyramiddrop import PyramidDrop
from foveal.decode.base import together

from .contract import CASES, Case, Slow
from .tiny import EOS, IMAGE, PROMPTS, VIDEO, batch, model

torch.set_num_threads(1)
FEW = ("llava", "qwen2-vl")
"""One class with one axis of positions and one with three, for what does not depend on the class."""
STEPS = 5
OPTIONS = {
    "max_new_tokens": STEPS,
    "do_sample": False,
    "eos_token_id": None,
    "pad_token_id": 0,
    "suppress_tokens": [IMAGE, VIDEO],  # said by the model they would be pictures to the slow reference
}
SCORES = {"output_scores": True, "return_dict_in_generate": True}


def on(kinds=None):
    """Every case with every class that it works on."""
    pairs = [(case, kind) for case in CASES for kind in kinds or case.kinds if kind in case.kinds]
    return pytest.mark.parametrize(("case", "kind"), pairs, ids=[f"{case.name}-{kind}" for case, kind in pairs])


def generate(host, inputs, *processors, **options):
    """ids of the answer (R, steps) and scores (steps, R, V)."""
    out = host.generate(**inputs, logits_processor=list(processors), **{**OPTIONS, **SCORES, **options})
    return SimpleNamespace(ids=out.sequences[:, inputs["input_ids"].shape[1] :], scores=torch.stack(out.scores))


def slow(case, kind, host):
    length = batch(kind)["input_ids"].shape[1]
    return Slow(case, host, [batch(kind, (prompt,)) for prompt in PROMPTS], length)


def same_scores(left, right, tolerance=1e-3):
    """Equal numbers, and −∞ in the same places but for tokens on the very edge."""
    both = left.isfinite() & right.isfinite()
    torch.testing.assert_close(left[both], right[both], atol=tolerance, rtol=tolerance)
    assert (left.isfinite() ^ right.isfinite()).float().mean() < 0.002


@on()
def test_padded_batch_equals_the_slow_reference(case: Case, kind):
    host, inputs = model(kind), batch(kind)
    fast = generate(host, inputs, case.build(host, inputs))
    reference = generate(host, inputs, slow(case, kind, host))
    assert torch.equal(fast.ids, reference.ids)
    same_scores(fast.scores, reference.scores)
    assert not torch.equal(fast.scores, generate(host, inputs).scores), "the decoder does nothing"


@on()
def test_no_weight_is_plain_generation_bit_by_bit(case: Case, kind):
    host, inputs = model(kind), batch(kind)
    plain = generate(host, inputs)
    off = generate(host, inputs, case.build(host, inputs, alpha=0.0, beta=1e-30))
    assert torch.equal(off.scores, plain.scores)
    assert torch.equal(off.ids, plain.ids)


@on(FEW)
def test_beams(case: Case, kind):
    host, inputs = model(kind), batch(kind)
    options = {"num_beams": 3, "num_return_sequences": 2, "renormalize_logits": True}
    processor = case.build(host, inputs)
    fast = generate(host, inputs, processor, **options)
    assert torch.equal(fast.ids, generate(host, inputs, slow(case, kind, host), **options).ids)
    assert len(fast.ids) == 2 * len(PROMPTS)
    assert processor.forwards == case.passes(STEPS)  # changed places cost no pass


@on(FEW)
def test_sampling_several_sequences(case: Case, kind):
    host, inputs = model(kind), batch(kind)
    ids = []
    for processor in (case.build(host, inputs), slow(case, kind, host)):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            options = {"do_sample": True, "temperature": 2.0, "top_k": 0, "num_return_sequences": 3}
            ids.append(generate(host, inputs, processor, **options).ids)
    assert torch.equal(*ids)
    assert len(ids[0].unique(dim=0)) > 2


@on(FEW[:1])
def test_assisted_decoding_takes_tokens_back(case: Case, kind):
    """Guessed tokens are heard before they are refused."""
    host, prompt = model(kind), batch(kind, PROMPTS[:1])
    ids = [generate(host, prompt, case.build(host, prompt), eos_token_id=EOS).ids]
    guess = {"prompt_lookup_num_tokens": 3, "eos_token_id": EOS}
    ids.append(generate(host, prompt, case.build(host, prompt), **guess).ids)
    assert torch.equal(*ids)


@on(FEW)
def test_rows_that_finish_early(case: Case, kind):
    host, inputs = model(kind), batch(kind)
    first = generate(host, inputs, case.build(host, inputs)).ids[0, 1]
    early = generate(host, inputs, case.build(host, inputs), eos_token_id=int(first))
    reference = generate(host, inputs, slow(case, kind, host), eos_token_id=int(first))
    assert torch.equal(early.ids, reference.ids)
    assert (early.ids[0, 2:] == 0).all()


@on(FEW)
def test_second_generation_and_reset(case: Case, kind):
    host, inputs = model(kind), batch(kind)
    processor = case.build(host, inputs)
    first = generate(host, inputs, processor)
    generate(host, inputs, processor, max_new_tokens=2, num_return_sequences=2, do_sample=True)
    again = generate(host, inputs, processor)
    processor.reset()
    assert torch.equal(first.scores, again.scores)
    assert torch.equal(first.scores, generate(host, inputs, processor).scores)


@on(FEW)
def test_bfloat16(case: Case, kind):
    host, inputs = model(kind, torch.bfloat16), batch(kind)
    found = generate(host, inputs, case.build(host, inputs), max_new_tokens=2)
    reference = generate(host, inputs, slow(case, kind, host), max_new_tokens=2)
    both = found.scores[0].isfinite() & reference.scores[0].isfinite()
    assert both.any()
    difference = (found.scores[0][both] - reference.scores[0][both]).abs()
    assert float(difference.mean()) < 0.05 * float(found.scores[0][both].abs().max())


@on()
def test_nothing_stays_on_the_model(case: Case, kind):
    host, inputs = model(kind), batch(kind)
    generate(host, inputs, max_new_tokens=1)  # transformers hooks the vision tower when it is first used
    before = {name: value.clone() for name, value in host.state_dict().items()}
    state = traces(host)
    processor = case.build(host, inputs)
    length = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], torch.full((2, 3), 7)], 1)
    for end in range(length, length + 3):
        scores = processor(ids[:, :end], torch.zeros(2, 64))
        assert not scores.requires_grad
    assert traces(host) == state
    assert all(torch.equal(before[name], value) for name, value in host.state_dict().items())
    assert all(parameter.grad is None for parameter in host.parameters())


def traces(host):
    """Hooks, attributes of the instance, and attention kernels."""
    hooks = [len(getattr(m, kind)) for m in host.modules() for kind in ("_forward_hooks", "_forward_pre_hooks")]
    own = [sorted(vars(m)) for m in (host, host.model)]
    deltas = getattr(host.model, "rope_deltas", None)
    kernels = [m.config._attn_implementation for m in host.modules() if hasattr(m, "config")]
    return hooks, own, None if deltas is None else deltas.tolist(), kernels


@on(FEW)
def test_passes_are_counted(case: Case, kind):
    host, inputs = model(kind), batch(kind)
    processor = case.build(host, inputs)
    calls = []
    hook = host.register_forward_pre_hook(lambda module, args: calls.append(1))
    generate(host, inputs, processor)
    hook.remove()
    assert processor.forwards == case.passes(STEPS)
    assert len(calls) == STEPS + processor.forwards


@on()
def test_memory_of_a_step_is_one_token(case: Case, kind):
    """After the prefill a branch reads only what was said last."""
    host, inputs = model(kind), batch(kind)
    processor, read = case.build(host, inputs), []
    ids = torch.cat([inputs["input_ids"], torch.full((2, 3), 7)], 1)
    processor(ids[:, :-2], torch.zeros(2, 64))
    hook = host.model.language_model if hasattr(host.model, "language_model") else host.model.text_model
    hook = hook.layers[0].register_forward_pre_hook(lambda module, args: read.append(args[0].shape[1]))
    for end in (-1, None):
        processor(ids[:, :end], torch.zeros(2, 64))
    hook.remove()
    assert read == [1, 1]


@on(FEW)
@pytest.mark.parametrize("options", [{}, {"num_beams": 2, "renormalize_logits": True}], ids=["greedy", "beams"])
def test_with_a_token_reducer_attached(case: Case, kind, options):
    """The main pass is shortened, the branch is not, and the reducer's notes are those of generate."""
    host, whole, inputs = copy.deepcopy(model(kind)), model(kind), batch(kind)
    generate(host, inputs, max_new_tokens=1)  # transformers hooks the vision tower when it is first used
    before = traces(host)
    with PyramidDrop((1, 2), (0.5, 0.25), positions="original").attached(host) as reducer:
        plain = generate(host, inputs, **options)
        kept = [[layer.tolist() for layer in sample] for sample in reducer.kept]
        state = traces(host)
        found = generate(host, inputs, case.build(host, inputs), **options)
        assert traces(host) == state
        assert [[layer.tolist() for layer in sample] for sample in reducer.kept] == kept
        assert torch.equal(found.ids, generate(host, inputs, slow(case, kind, whole), **options).ids)
        assert torch.equal(plain.scores, generate(host, inputs, **options).scores)
    assert traces(host) == before
    assert len(set(reducer.layer_lengths)) == 3


@on(FEW[:1])
def test_with_a_reducer_of_features_attached(case: Case, kind):
    """It wraps get_image_features, and a branch that encodes pictures must not see that."""
    host, whole, inputs = copy.deepcopy(model(kind)), model(kind), batch(kind)
    calls = []

    class Reading(PyramidDrop):
        reads_features = True

        def annotate(self, features, arguments):
            calls.append(len(features))

    with Reading((1, 2), (0.5, 0.25)).attached(host):
        found = generate(host, inputs, case.build(host, inputs))
        assert calls == [3]
        assert torch.equal(found.ids, generate(host, inputs, slow(case, kind, whole)).ids)


@on(FEW)
def test_other_hooks_stay(case: Case, kind):
    host, inputs = copy.deepcopy(model(kind)), batch(kind)
    calls = []
    host.lm_head.register_forward_pre_hook(lambda module, args: calls.append(1))
    processor = case.build(host, inputs)
    processor(inputs["input_ids"], torch.zeros(2, 64))
    assert len(calls) == processor.forwards


class Adapted(torch.nn.Module):
    """A model in the manner of PEFT: around it, with attributes that reach through."""

    peft_config = "anything"

    def __init__(self, host):
        super().__init__()
        self.base_model = host

    def get_base_model(self):
        return self.base_model

    def __getattr__(self, name):
        return self._modules["base_model"] if name in ("base_model", "model") else getattr(self.base_model, name)

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)


@on(FEW)
def test_a_wrapped_model(case: Case, kind):
    host, inputs = model(kind), batch(kind)
    scores = torch.zeros(2, 64)
    wrapped = case.build(Adapted(host), inputs)(inputs["input_ids"], scores)
    assert torch.equal(wrapped, case.build(host, inputs)(inputs["input_ids"], scores))


@pytest.mark.parametrize("kind", FEW)
def test_decoders_compose(kind):
    """In one list they apply in turn; together they share their passes and say the same."""
    host, inputs = model(kind), batch(kind)
    cases = [case for case in CASES if kind in case.kinds]
    apart = [case.build(host, inputs) for case in cases]
    one_by_one = generate(host, inputs, *apart)
    joined = together(*(case.build(host, inputs) for case in cases))
    at_once = generate(host, inputs, *joined)
    assert torch.equal(one_by_one.ids, at_once.ids)
    same_scores(one_by_one.scores, at_once.scores)
    reference = generate(host, inputs, *(slow(case, kind, host) for case in cases))
    assert torch.equal(at_once.ids, reference.ids)
    same_scores(at_once.scores, reference.scores)
    prefills = {processor.forwards for processor in joined}
    assert len(prefills) == 1
    assert prefills.pop() <= len(cases) + STEPS - 1
    assert sum(processor.forwards for processor in apart) == sum(case.passes(STEPS) for case in cases)


@pytest.mark.parametrize("kind", FEW)
def test_decoders_compose_with_beams(kind):
    host, inputs = model(kind), batch(kind)
    cases = [case for case in CASES if kind in case.kinds]
    options = {"num_beams": 2, "renormalize_logits": True}
    joined = generate(host, inputs, *together(*(case.build(host, inputs) for case in cases)), **options)
    reference = generate(host, inputs, *(slow(case, kind, host) for case in cases), **options)
    assert torch.equal(joined.ids, reference.ids)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_settings_are_refused(case: Case):
    host, inputs = model("llava"), batch("llava")
    common = (
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"beta": 0.0}, "beta=0.0"),
        ({"beta": 1.5}, "beta=1.5"),
    )
    for settings, message in (*common, *case.bad):
        with pytest.raises(ValueError, match=message):
            case.build(host, inputs, **settings)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_inputs_are_refused(case: Case):
    host, inputs = model("llava"), batch("llava")
    wordless = {**inputs, "input_ids": inputs["input_ids"].clamp(max=EOS - 10)}
    with pytest.raises(ValueError, match="no image token"):
        case.build(host, wordless)
    right = {**inputs, "input_ids": inputs["input_ids"].flip(1), "attention_mask": inputs["attention_mask"].flip(1)}
    if not case.rewrites:
        with pytest.raises(ValueError, match="left"):
            case.build(host, right)
    with pytest.raises(ValueError, match="attention_mask"):
        case.build(host, {**inputs, "attention_mask": inputs["attention_mask"][:, 1:]})
    processor = case.build(host, inputs)
    with pytest.raises(ValueError, match="multiple of the 2 prompts"):
        processor(inputs["input_ids"][:1], torch.zeros(1, 64))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_model_where_it_cannot_work_is_told(case: Case):
    from transformers import LlamaConfig, LlamaForCausalLM

    from .tiny import CONFIGS, TEXT

    for kind in set(CONFIGS) - set(case.kinds):
        with pytest.raises(ValueError, match=r"DebiasLogitsProcessor|AglaLogitsProcessor"):
            case.build(model(kind), batch(kind))
    with pytest.raises(ValueError, match=r"LlamaForCausalLM.*image_token_id"):
        case.build(LlamaForCausalLM(LlamaConfig(**TEXT)), batch("llava"))


@pytest.mark.parametrize("name", ["weights", "beta"])
def test_the_contract_can_be_broken(name):
    case, kind = CASES[0], FEW[0]
    wrong = copy.copy(case)
    object.__setattr__(wrong, name, (2.0, -0.9) if name == "weights" else 0.5)
    with pytest.raises(AssertionError):
        test_padded_batch_equals_the_slow_reference(wrong, kind)
