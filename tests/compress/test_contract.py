import copy
import inspect
import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from foveal.compress.runtime import PrefillReducer

from . import reference
from .contract import CASES, Case
from .tiny import BY_NAME, IMAGE, KINDS, LAYERS, VIDEO, Kind, extend, join

torch.set_num_threads(1)
PAIRS = [(case, kind) for case in CASES for kind in KINDS if kind.name in case.kinds]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # of float64 models, whose rotary angles are float32


def named(pair) -> str:
    return f"{pair[0].name}-{pair[1].name}"


@pytest.fixture(params=PAIRS, ids=named)
def pair(request) -> tuple[Case, Kind]:
    return request.param


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


@pytest.fixture
def llava() -> Kind:
    return BY_NAME["llava"]


def generate(model, inputs, new=4, **options):
    """Greedy unless told otherwise; every row makes ``new`` tokens."""
    asked = {"max_new_tokens": new, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    asked |= {"suppress_tokens": [IMAGE, VIDEO], "eos_token_id": VIDEO}
    return model.generate(**inputs, **{**asked, **options})


def cache_of(output):
    return output["cache"] if "cache" in output else output["past_key_values"]


def skip_where_plain_caching_is_off(model, kind):
    """transformers 5.3 loses the positions of Qwen2.5-VL after a cached prompt, with or without a reducer."""
    prompt, words = kind.single(model, 3, kind.sizes[0], 5), later((1, 2))
    with torch.no_grad():
        whole = model(**extend(prompt, words)).logits[:, -2:]
    if not torch.allclose(continued(model, prefilled(model, prompt), words), whole, atol=1e-4):
        pytest.skip("this version of transformers loses positions after a cached prompt")


@torch.no_grad()
def prefilled(model, inputs):
    """A cache with that prompt."""
    return cache_of(model(**inputs, use_cache=True))


@torch.no_grad()
def continued(model, cache, words, **more):
    """Logits of later tokens on a cache."""
    return model(input_ids=words, past_key_values=cache, use_cache=True, **more).logits


def lengths(cache):
    return [layer.get_seq_length() for layer in cache.layers]


def renumbers(case, kind):
    """Does a drop at that layer give the tokens new positions?"""
    return (lambda layer: False) if kind.multi_axis else case.renumbers


def later(shape, seed=9):
    return torch.randint(3, IMAGE, shape, generator=torch.Generator().manual_seed(seed))


# Keep everything ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_keeping_everything_changes_no_bit(pair, attention):
    case, kind = pair
    model = kind.model(attention=attention)
    inputs = join(kind, *kind.singles(model))
    several = join(kind, *searchable(model, kind))
    plain, reducer = generate(model, inputs), case.keep_all(kind)
    with reducer.attached(model):
        kept = generate(model, inputs)
        assert set(reducer.layer_lengths) == {inputs["input_ids"].shape[1]}
        beams = generate(model, several, num_beams=2)
    assert torch.equal(plain.sequences, kept.sequences)
    assert all(torch.equal(*both) for both in zip(plain.logits, kept.logits, strict=True))
    assert torch.equal(generate(model, several, num_beams=2).sequences, beams.sequences)
    for one, other in zip(cache_of(plain).layers, cache_of(kept).layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


# Really shorter -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_generation_is_that_of_the_kept_columns_alone(pair, attention):
    """Batch with left padding, several images of several sizes, a row of text: each row as a slow loop computes it."""
    case, kind = pair
    if case.merges:
        pytest.skip("its tokens are not columns of the prompt")
    model = kind.model(attention=attention)  # in float64 transformers' own eager attention to padding is NaN
    singles = kind.singles(model)
    inputs = join(kind, *singles)
    with case.build(kind).attached(model) as reducer:
        output = generate(model, inputs)
    width = inputs["input_ids"].shape[1]
    for row, single in enumerate(singles):
        prompt = single["input_ids"].shape[1]
        kept = [columns - (width - prompt) for columns in reducer.kept[row]]
        new = output.sequences[row : row + 1, width:]
        whole = extend(single, new[:, :-1])
        logits, _ = reference.run(model, whole, prompt, reference.as_kept(kept), renumbers(case, kind))
        torch.testing.assert_close(torch.stack([step[row] for step in output.logits]), logits, atol=1e-3, rtol=1e-3)


def test_padded_batch_equals_singles(pair):
    case, kind = pair
    model, reducer = kind.model(dtype=torch.float64), case.build(kind)
    singles = kind.singles(model)
    with reducer.attached(model):
        batch = generate(model, join(kind, *singles))
        kept, images = reducer.kept, reducer.image_tokens
        for row, single in enumerate(singles):
            alone = generate(model, single)
            gap = batch.sequences.shape[1] - alone.sequences.shape[1]
            assert torch.equal(batch.sequences[row, gap:], alone.sequences[0])
            assert all(torch.equal(a, b + gap) for a, b in zip(kept[row], reducer.kept[0], strict=True))
            assert torch.equal(images[row], reducer.image_tokens[0])
            for step, own in zip(batch.logits, alone.logits, strict=True):
                torch.testing.assert_close(step[row], own[0], atol=1e-4, rtol=1e-4)


def test_dropped_tokens_are_gone(pair):
    """From the hidden states, the cache and the FLOPs; the books agree with what happened."""
    case, kind = pair
    model, reducer = kind.model(), case.build(kind)
    inputs = join(kind, *kind.singles(model))
    ids = inputs["input_ids"]
    seen = []
    layers = model.get_decoder().layers
    handles = [
        layer.mlp.register_forward_hook(lambda m, args, out: seen.append(tuple(out.shape[:2]))) for layer in layers
    ]
    with reducer.attached(model):
        output = model(**inputs, use_cache=True)
    for handle in handles:
        handle.remove()
    assert seen == [(len(ids), length) for length in reducer.layer_lengths]
    assert lengths(cache_of(output)) == reducer.layer_lengths
    assert output.logits.shape[1] == reducer.layer_lengths[-1] < ids.shape[1]
    is_image = ids == IMAGE
    for row in range(len(ids)):
        texts = ((~is_image) & inputs["attention_mask"].bool())[row].nonzero()[:, 0]
        before = None
        for layer, columns in enumerate(reducer.kept[row]):
            assert torch.equal(columns, columns.unique())
            assert torch.equal(columns[~is_image[row, columns]], texts)  # text stays
            assert int(is_image[row, columns].sum()) == reducer.image_tokens[row, layer]
            assert before is None or set(columns.tolist()) <= set(before.tolist())  # what is gone stays gone
            before = columns
        assert (reducer.image_tokens[row, -1] < is_image[row].sum()) == bool(is_image[row].any())


def counted(model, inputs):
    """FLOPs of the decoder layers in a real prefill, and the bytes of its cache."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = model(**inputs, use_cache=True)
    flops = [
        sum(counts.values())
        for name, counts in counter.get_flop_counts().items()
        if re.search(r"(language|text)_model\.layers\.\d+$", name)
    ]
    assert len(flops) == LAYERS
    return sum(flops), sum(layer.keys.nbytes + layer.values.nbytes for layer in cache_of(output).layers)


def test_report_counts_what_torch_counts(pair):
    case, kind = pair
    model, reducer = kind.model(), case.build(kind)
    inputs = join(kind, *kind.singles(model))
    with pytest.raises(ValueError, match="run the model"):
        reducer.report()
    full, full_bytes = counted(model, inputs)
    with reducer.attached(model):
        reduced, stored = counted(model, inputs)
    report = reducer.report()  # also after the reducer has gone
    assert report.flops_full == full
    assert report.flops + report.flops_selection == pytest.approx(reduced, rel=0.01)
    assert report.flops_selection > 0
    assert report.flops_saved == pytest.approx(1 - reduced / full, abs=0.01)
    assert (report.kv_bytes, report.kv_bytes_full) == (stored, full_bytes)
    assert report.kv_saved == 1 - stored / full_bytes
    assert report.layer_lengths == reducer.layer_lengths
    assert report.image_tokens == reducer.image_tokens.double().mean(0).tolist()
    assert "saved" in str(report)


# Caches ---------------------------------------------------------------------------------------------------------------


def test_cached_turns_equal_a_slow_loop(pair):
    """Three turns on one cache: all at once, in pieces, and by generate() with the whole conversation each time."""
    case, kind = pair
    if case.merges:
        pytest.skip("its tokens are not columns of the prompt")
    model, reducer = kind.model(dtype=torch.float64), case.build(kind)
    skip_where_plain_caching_is_off(model, kind)
    prompt = kind.single(model, 3, kind.sizes[-1], 5)
    length = prompt["input_ids"].shape[1]
    words = later((1, 7))
    with reducer.attached(model):
        cache = prefilled(model, prompt)
        kept = reducer.kept[0]
        branch = copy.deepcopy(cache)
        pieces = [continued(model, cache, words[:, a:b]) for a, b in ((0, 1), (1, 4), (4, 7))]
        mask = {} if kind.multi_axis else {"attention_mask": torch.ones(1, length + 7)}
        at_once = continued(model, branch, words, **mask)
        assert [*reducer.kept[0]] == kept  # later tokens are no prefill
    want, _ = reference.run(model, extend(prompt, words), length, reference.as_kept(kept), renumbers(case, kind))
    torch.testing.assert_close(torch.cat(pieces, 1)[0], want[1:], **CLOSE)
    torch.testing.assert_close(at_once[0], want[1:], **CLOSE)


def test_chat_with_generate_on_a_cache_of_ones_own(pair):
    case, kind = pair
    model, reducer = kind.model(dtype=torch.float64), case.build(kind)
    skip_where_plain_caching_is_off(model, kind)
    prompt = kind.single(model, 3, kind.sizes[-1], 5)
    cache, other = DynamicCache(), DynamicCache()
    with reducer.attached(model):
        first = generate(model, prompt, past_key_values=cache)
        if not kind.multi_axis:  # these models keep the position of one chat only
            generate(model, kind.single(model, 2, kind.sizes[0], 4, seed=5), past_key_values=other)
        stored = lengths(cache)
        turn = torch.cat([first.sequences[:, prompt["input_ids"].shape[1] :], later((1, 3))], 1)
        whole = extend(prompt, turn)
        text = {name: whole[name] for name in ("input_ids", "attention_mask")}
        second = generate(model, text, past_key_values=cache)
        slow = copy.deepcopy(text["input_ids"])
        fresh = prefilled(model, prompt)
        at = prompt["input_ids"].shape[1]
        for _ in range(4):  # the same conversation, every token by hand
            logits = continued(model, fresh, slow[:, at:])
            at = slow.shape[1]
            logits[..., [IMAGE, VIDEO]] = -torch.inf
            slow = torch.cat([slow, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(second.sequences, slow)
    grown = second.sequences.shape[1] - 1 - (first.sequences.shape[1] - 1)
    assert lengths(cache) == [length + grown for length in stored]


def test_chat_in_a_left_padded_batch(pair):
    case, kind = pair
    model = kind.model(dtype=torch.float64)
    singles = kind.singles(model)
    words = later((len(singles), 3))
    with case.build(kind).attached(model):
        inputs = join(kind, *singles)
        cache = prefilled(model, inputs)
        mask = extend(inputs, words)["attention_mask"]
        places = {"position_ids": positions(model, mask)[..., -3:]} if kind.multi_axis else {}
        batch = continued(model, cache, words, attention_mask=mask, **places)
        for row, single in enumerate(singles):
            if kind.multi_axis and "pixel_values" not in single:
                continue  # after a text these models go on with the offset of the last image that they saw
            own = prefilled(model, single)
            torch.testing.assert_close(batch[row], continued(model, own, words[row : row + 1])[0], **CLOSE)


def positions(model, mask):
    """Of text after the last prompt, for models that leave this to generate()."""
    return (mask.cumsum(1) - 1 + model.model.rope_deltas).expand(3, -1, -1)


def searchable(model, kind):
    """Prompts for beam search; before transformers 5.24 it mixes up several images of a prompt."""
    ordered = "mm_encoder_outputs" in inspect.signature(type(model).forward).parameters
    return kind.singles(model) if ordered else kind.singles(model)[::2]


def test_sampling_beams_and_lookup(pair):
    case, kind = pair
    model = kind.model(dtype=torch.float64)
    inputs = kind.singles(model)[1]
    with case.build(kind).attached(model):
        greedy = generate(model, inputs, new=6).sequences
        if "tokens_to_remove" in inspect.signature(DynamicLayer.crop).parameters:  # or it crops to a length
            assert torch.equal(generate(model, inputs, new=6, prompt_lookup_num_tokens=2).sequences, greedy)
        torch.manual_seed(0)
        singles = searchable(model, kind)
        assert len(generate(model, singles[0], do_sample=True, num_return_sequences=3).sequences) == 3
        beams = [generate(model, single, num_beams=3).sequences for single in singles]
        batch = generate(model, join(kind, *singles), num_beams=3).sequences
        for row, alone in zip(batch, beams, strict=True):
            assert torch.equal(row[-4:], alone[0, -4:])


def test_nothing_is_left_of_the_last_prompt(pair):
    case, kind = pair
    model = kind.model()
    image, text = kind.singles(model)[1], kind.singles(model)[2]
    plain = generate(model, text)
    with case.build(kind).attached(model) as reducer:
        first = generate(model, image)
        again = generate(model, text)
        assert torch.equal(plain.sequences, again.sequences)
        assert all(torch.equal(*both) for both in zip(plain.logits, again.logits, strict=True))
        assert not reducer.image_tokens.any()
        assert torch.equal(generate(model, image).sequences, first.sequences)


# Attaching ------------------------------------------------------------------------------------------------------------


def trace(model):
    """Everything that a hook or a patch leaves on a module."""
    return {
        name: (
            {
                key: list(value) if hasattr(value, "__len__") else value
                for key, value in vars(module).items()
                if "hook" in key
            },
            sorted(vars(module)),
        )
        for name, module in model.named_modules()
    }


def test_detaching_leaves_no_trace(pair):
    case, kind = pair
    model, reducer = kind.model(), case.build(kind)
    inputs = join(kind, *kind.singles(model))
    generate(model, inputs)  # transformers installs hooks of its own in the first run
    plain, before = generate(model, inputs), trace(model)
    with reducer.attached(model):
        assert trace(model) != before
        generate(model, inputs)
    assert trace(model) == before
    assert torch.equal(generate(model, inputs).sequences, plain.sequences)
    reducer.detach()
    assert reducer.attach(model) is reducer
    reducer.detach()
    assert trace(model) == before


def test_an_exception_in_the_middle_leaves_no_trace(case, llava):
    model, reducer = llava.model(), case.build(llava)
    inputs = join(llava, *llava.singles(model))
    generate(model, inputs)
    plain, before = generate(model, inputs), trace(model)

    def fail(module, args, output):
        raise RuntimeError("in the middle")

    handle = model.get_decoder().layers[3].mlp.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"), reducer.attached(model):
        model(**inputs, labels=inputs["input_ids"])
    handle.remove()
    assert trace(model) == before
    assert torch.equal(generate(model, inputs).sequences, plain.sequences)
    with reducer.attached(model):  # and while attached, the next run starts afresh
        want = generate(model, inputs)
        handle = model.get_decoder().layers[3].mlp.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            model(**inputs, labels=inputs["input_ids"])
        handle.remove()
        assert torch.equal(generate(model, inputs).sequences, want.sequences)
        assert model(**inputs).loss is None


def test_one_reducer_on_one_model(case, llava):
    model, reducer = llava.model(), case.build(llava)
    with reducer.attached(model):
        with pytest.raises(ValueError, match=r"attached already.*detach\(\)"):
            reducer.attach(llava.model())
        with pytest.raises(ValueError, match=rf"{type(reducer).__name__} attached.*detach\(\)"):
            case.build(llava).attach(model)
    case.build(llava).attach(model).detach()


def test_models_that_do_not_fit(case):
    """The error says which of our methods can."""
    for name in case.refused:
        before = trace(model := BY_NAME[name].model())
        with pytest.raises(ValueError, match=r"cannot work on .*: .*; here take (PyramidDrop|LayerwiseKeep)"):
            case.build(BY_NAME[name]).attach(model)
        assert trace(model) == before


# Training, types, compilers -------------------------------------------------------------------------------------------


def with_labels(inputs, answer=3):
    """The last ``answer`` tokens of every row are to be learned."""
    labels = inputs["input_ids"].clone()
    labels[:, :-answer] = -100
    return inputs | {"labels": labels}


def gradients(model, inputs):
    model.zero_grad()
    model(**inputs, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_training(pair):
    """The gradient arrives at the vision tower; gradient checkpointing gives the same; a batch is the mean."""
    case, kind = pair
    if not case.trains:
        pytest.skip("for inference")
    model = kind.model(dtype=torch.float64).train()
    rows = [with_labels(single) for single in kind.singles(model)]
    inputs = join(kind, *rows, side="right")
    with case.build(kind).attached(model) as reducer:
        plain = gradients(model, inputs)
        assert reducer.layer_lengths[-1] < inputs["input_ids"].shape[1]
        assert any(float(g.abs().sum()) > 0 for name, g in plain.items() if "vision" in name or "visual" in name)
        losses = [model(**row).loss for row in rows]
        torch.testing.assert_close(model(**inputs).loss, torch.stack(losses).mean(), **CLOSE)
        model.gradient_checkpointing_enable()
        for name, gradient in gradients(model, inputs).items():
            torch.testing.assert_close(gradient, plain[name], **CLOSE)
        summed = model(**inputs, return_dict=False)
        assert summed[0].shape == ()
        torch.testing.assert_close(summed[0], torch.stack(losses).mean(), **CLOSE)


def test_bfloat16(pair):
    case, kind = pair
    model, reducer = kind.model(dtype=torch.bfloat16), case.build(kind)
    inputs = join(kind, *kind.singles(model))
    with reducer.attached(model):
        output = generate(model, inputs)
    assert {step.isfinite().all().item() for step in output.logits} == {True}
    assert cache_of(output).layers[-1].keys.dtype == torch.bfloat16
    assert reducer.layer_lengths[-1] < inputs["input_ids"].shape[1]


@pytest.mark.parametrize("way", ["in place", "wrapped"])
def test_compiled_layers(case, llava, way):
    model = llava.model()
    inputs = llava.singles(model)[1]
    with case.build(llava).attached(model) as reducer:
        want = generate(model, inputs, new=2)
    kept, layers = reducer.kept[0], model.get_decoder().layers
    torch.compiler.reset()
    for number in (1, 3):
        layer = layers[number]
        if way == "in place":
            layer.compile(backend="eager")
        else:
            layers[number] = torch.compile(layer, backend="eager")
    with case.build(llava).attached(model) as reducer:
        got = generate(model, inputs, new=2)
        assert reducer.report().flops > 0
    assert torch.equal(want.sequences, got.sequences)
    assert all(torch.equal(*both) for both in zip(kept, reducer.kept[0], strict=True))


def test_a_model_compiled_as_a_whole_is_refused(case, llava):
    for compiled in (lambda m: m.compile(backend="eager"), lambda m: m.get_decoder().compile(backend="eager")):
        model = llava.model()
        compiled(model)
        with pytest.raises(ValueError, match="compile its decoder layers instead"):
            case.build(llava).attach(model)
    with pytest.raises(ValueError, match="compile its decoder layers instead"):
        case.build(llava).attach(torch.compile(llava.model(), backend="eager"))


# Bad input ------------------------------------------------------------------------------------------------------------


def test_bad_input_says_what_to_do(case, llava):
    model = llava.model()
    inputs = llava.singles(model)[0]
    ids = inputs["input_ids"]
    embeds = {"inputs_embeds": model.get_input_embeddings()(ids), "attention_mask": inputs["attention_mask"]}
    static = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
    text = {"input_ids": later((1, 5)), "attention_mask": torch.ones(1, 5)}
    bad = [
        (inputs | {"past_key_values": static}, "static cache.*DynamicCache"),
        (embeds, "input_ids=None.*pass input_ids"),
        (inputs | {"attention_mask": torch.ones(1, 1, ids.shape[1], ids.shape[1])}, "attention_mask.*2-D"),
        (text | {"pixel_values": inputs["pixel_values"]}, f"no image token {IMAGE}.*processor"),
        ({"input_ids": ids, "attention_mask": inputs["attention_mask"]}, "no picture.*pixel_values"),
        (inputs | {"logits_to_keep": torch.tensor([1])}, "logits_to_keep.*number"),
    ]
    with case.build(llava).attached(model):
        for arguments, match in bad:
            with pytest.raises(ValueError, match=match):
                model(**arguments)
        with pytest.raises(ValueError, match=r"static cache.*DynamicCache"):
            generate(model, inputs, cache_implementation="static")
        cache = prefilled(model, inputs)
        with pytest.raises(ValueError, match=r"attention_mask \(1, 2\) must be"):
            model(input_ids=later((1, 2)), attention_mask=torch.ones(1, 2), past_key_values=cache)
        two = prefilled(model, join(llava, inputs, inputs))
        with pytest.raises(ValueError, match=r"2 rows.*3"):
            model(input_ids=later((3, 1)), past_key_values=two)


def test_a_cache_of_one_prompt_serves_several_answers(case, llava):
    model = llava.model(dtype=torch.float64)
    inputs = llava.singles(model)[0]
    with case.build(llava).attached(model):
        cache = prefilled(model, inputs)
        words = later((3, 2))
        singles = [continued(model, copy.deepcopy(cache), row[None])[0] for row in words]
        cache.batch_repeat_interleave(3)
        torch.testing.assert_close(continued(model, cache, words), torch.stack(singles), **CLOSE)


# The contract can be broken -------------------------------------------------------------------------------------------


class Careless(PrefillReducer):
    """Drops by place in the batch, whatever the padding, and the first text token too."""

    positions = "compact"

    def select(self, step):
        if step.layer != 1:
            return None
        images = [flags.nonzero()[:, 0] for flags in step.tokens.is_image]
        step.tokens.is_image[:, 0] = True
        return [places[places % 2 == 0] for places in images]


def test_the_contract_sees_a_careless_reducer(llava):
    careless = Case("careless", lambda kind: Careless(), lambda kind: Careless())
    for check in (
        test_padded_batch_equals_singles,
        test_dropped_tokens_are_gone,
        lambda pair: test_keeping_everything_changes_no_bit(pair, "sdpa"),
    ):
        with pytest.raises((AssertionError, RuntimeError)):
            check((careless, llava))
