"""What of the runtime no method's contract shows: its pieces, its books, its errors."""

import copy
import inspect
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from transformers import DynamicCache

from foveal.compress import anatomy
from foveal.compress.base import LayerInput, Tokens, keep_count, visual_flops
from foveal.compress.fopru import FoPru
from foveal.compress.masks import causal_mask
from foveal.compress.pyramiddrop import PyramidDrop
from foveal.compress.runtime import PrefillReducer

from . import reference
from .contract import Thin
from .test_contract import cache_of, continued, generate, later, prefilled
from .tiny import BY_NAME, IMAGE, KINDS, TEXT, join

torch.set_num_threads(1)
LLAVA = BY_NAME["llava"]


# Pieces ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "ratio", "keep"),
    [(576, 0.5, 288), (577, 0.5, 288), (10, 0.3, 3), (10, 0.7, 7), (3, 1 / 3, 1), (5, 0, 0), (0, 1, 0)],
)
def test_keep_count(n, ratio, keep):
    assert keep_count(n, ratio) == keep


def test_bad_counts():
    for n, ratio, match in (
        (-1, 0.5, "n=-1"),
        (4, 1.1, "ratio=1.1"),
        (4, -0.1, "ratio=-0.1"),
        (4, float("nan"), "nan"),
    ):
        with pytest.raises(ValueError, match=match):
            keep_count(n, ratio)


def test_visual_flops_by_hand():
    assert visual_flops([2, 1], 3, 5) == (4 * 2 * 9 + 2 * 4 * 3 + 3 * 2 * 15) + (4 * 9 + 2 * 3 + 3 * 15)
    assert visual_flops([], 3, 5) == 0


def test_masks():
    valid = torch.tensor([[False, True, True, True], [True, True, True, True]])
    seen = causal_mask("sdpa", valid, 2, torch.float32)
    assert seen.shape == (2, 1, 2, 4)
    assert seen[0, 0].tolist() == [[False, True, True, False], [False, True, True, True]]
    added = causal_mask("eager", valid, 2, torch.float16)
    assert torch.equal(added == 0, seen)
    assert added.dtype == torch.float16
    assert torch.equal(causal_mask("flash_attention_2", valid, 2, torch.float32), valid)
    whole = valid[1:]
    assert causal_mask("sdpa", whole, 4, torch.float32) is None
    assert causal_mask("sdpa", whole, 1, torch.float32) is None
    assert causal_mask("eager", whole, 1, torch.float32) is None
    assert causal_mask("flash_attention_2", whole, 2, torch.float32) is None
    assert causal_mask("sdpa", whole, 2, torch.float32) is not None  # SDPA's own causal mask starts at the first key
    assert causal_mask("eager", whole, 4, torch.float32) is not None


def test_images_and_their_tokens():
    is_image = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]]).bool()
    tokens = Tokens(torch.arange(4).expand(2, 4), torch.ones(2, 4).bool(), is_image, None)
    features = [torch.zeros(1, 8), torch.zeros(2, 8), torch.zeros(2, 8)]
    step = LayerInput(0, None, torch.zeros(2, 4, 8), (), tokens, [3, 2], features)
    assert [(sample, places.tolist()) for sample, places in step.images()] == [(0, [1]), (0, [2, 3]), (1, [0, 1])]
    step.features = [torch.zeros(4, 8), torch.zeros(1, 8)]
    with pytest.raises(ValueError, match="other than its own number"):
        step.images()
    step.features = features[:2]
    with pytest.raises(ValueError, match=r"5 image tokens, the images have 3 features.*no video"):
        step.images()


# Anatomy --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_anatomy(kind):
    model = kind.model()
    parts = anatomy.find(model)
    assert parts.language is model.get_decoder()
    assert len(parts.layers) == TEXT["num_hidden_layers"]
    assert parts.placeholders[0] == IMAGE
    assert parts.multi_axis == kind.multi_axis
    wrapped = SimpleNamespace(peft_config={}, get_base_model=lambda: model)
    assert anatomy.find(wrapped).model is model
    for method in ("PyramidDrop", "FoPru"):
        with pytest.raises(
            ValueError, match=rf"^{method} cannot work on {type(model).__name__}: so; here take "
        ) as error:
            parts.refuse(method, "so")
        offered = str(error.value).split("take ")[1]
        assert "LayerwiseKeep" in offered
        assert method not in offered
        assert ("original" in offered) == kind.multi_axis
        assert ("AIM" in offered) == (parts.features == "image")


def test_other_models_are_refused():
    text = hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT))
    with pytest.raises(ValueError, match=r"LlamaForCausalLM \(llama\) is not supported; give .*llava.*smolvlm"):
        anatomy.find(text)
    with pytest.raises(ValueError, match="ForConditionalGeneration"):
        anatomy.find(LLAVA.model().model)  # without the head there is no loss
    with pytest.raises(ValueError, match="Linear"):
        anatomy.find(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"attn_implementation='flex_attention'.*sdpa"):
        anatomy.find(LLAVA.model(attention="flex_attention"))


def test_layers_of_limited_reach_are_refused():
    model = LLAVA.model()
    model.get_decoder().config.sliding_window = 8
    with pytest.raises(ValueError, match=r"sliding_window=8.*full attention"):
        anatomy.find(model)
    model = BY_NAME["internvl"].model()
    model.get_decoder().config.layer_types = ["sliding_attention"] * 6
    with pytest.raises(ValueError, match=r"sliding_attention.*full attention"):
        anatomy.find(model)


def test_unknown_layers_are_refused():
    model = LLAVA.model()
    attention = model.get_decoder().layers[2].self_attn
    attention.qkv_proj = attention.q_proj
    del attention.q_proj
    with pytest.raises(ValueError, match=r"layer 2 \(LlamaDecoderLayer\).*q_proj"):
        anatomy.find(model)


# Books ----------------------------------------------------------------------------------------------------------------


def test_empty_before_the_first_prompt():
    reducer = PyramidDrop((2,), (0.5,))
    assert reducer.kept == []
    assert reducer.layer_lengths == []
    assert reducer.image_tokens.shape == (0, 0)
    reducer.detach()


def test_a_method_must_choose():
    model = LLAVA.model()
    with PrefillReducer().attached(model), pytest.raises(TypeError, match="PrefillReducer must say in select"):
        model(**LLAVA.singles(model)[0])


def test_report_reads_well():
    model = LLAVA.model()
    with PyramidDrop((2, 4), (0.5, 0.25)).attached(model) as reducer:
        model(**LLAVA.singles(model)[0], use_cache=True)
        said = str(reducer.report())
        assert "16 per sample; by layer 16 ×2, 8 ×2, 4 ×2" in said
        assert said.count("saved") == 2
        model(**LLAVA.singles(model)[0], use_cache=False)
        assert "none was kept" in str(reducer.report())
        assert reducer.report().kv_saved is None


def test_report_leaves_the_kernel_alone():
    model = LLAVA.model()
    config = model.get_decoder().config
    with PyramidDrop((2,), (0.5,)).attached(model) as reducer:
        model(**LLAVA.singles(model)[0])
        want = reducer.report()
        config._attn_implementation = "flash_attention_2"  # its kernels cannot run on shapes alone
        assert reducer.report() == want
        assert config._attn_implementation == "flash_attention_2"


# Caches ---------------------------------------------------------------------------------------------------------------


def test_a_cache_cropped_into_its_prompt_is_refused():
    model = LLAVA.model()
    for reducer in (PyramidDrop((2,), (0.5,)), Thin(LLAVA)):
        with reducer.attached(model):
            cache = prefilled(model, LLAVA.singles(model)[0])
            first = continued(model, cache, later((1, 3)))
            cache.crop(-2)
            again = continued(model, cache, later((1, 3))[:, 1:])
            torch.testing.assert_close(first[:, 1:], again)
            cache.crop(-5)
            with pytest.raises(ValueError, match="cropped into its reduced prompt; run the prompt again"):
                continued(model, cache, later((1, 1)))


def test_a_cache_used_again_forgets():
    model = LLAVA.model()
    image, text = LLAVA.singles(model)[0], LLAVA.singles(model)[2]
    for reducer in (PyramidDrop((2,), (0.5,)), Thin(LLAVA)):
        cache = DynamicCache()
        with reducer.attached(model):
            generate(model, image, past_key_values=cache)
            cache.reset()
            if cache.get_seq_length():
                pytest.skip("this version of transformers resets a cache to zeros of the same length")
            again = generate(model, text, past_key_values=cache)
        assert torch.equal(again.sequences, generate(model, text).sequences)


def test_a_cache_from_before_stays_as_it_is():
    """Attached in the middle of a chat, a reducer leaves that chat alone."""
    model = LLAVA.model()
    cache = prefilled(model, LLAVA.singles(model)[0])
    want = continued(model, copy.deepcopy(cache), later((1, 3)))
    with PyramidDrop((2,), (0.5,)).attached(model):
        assert torch.equal(continued(model, cache, later((1, 3))), want)


def test_a_short_first_layer_still_counts_the_whole_prompt():
    model = LLAVA.model()
    prompt = LLAVA.singles(model)[0]
    with Thin(LLAVA).attached(model) as reducer:
        cache = prefilled(model, prompt)
        assert isinstance(cache, DynamicCache)
        assert cache.get_seq_length() == prompt["input_ids"].shape[1]
        assert [cache.get_seq_length(layer) for layer in range(6)] == reducer.layer_lengths  # short
        assert reducer.layer_lengths[0] < cache.get_seq_length()
        continued(model, cache, later((1, 2)))
        assert cache.get_seq_length() == prompt["input_ids"].shape[1] + 2


@torch.no_grad()
def in_pieces(model, prompt, *cuts):
    """A prompt of LLaVA's, with each image's pixels in the piece that holds its tokens."""
    cache, pixels, start = DynamicCache(), iter(prompt["pixel_values"]), 0
    for end in (*cuts, prompt["input_ids"].shape[1]):
        ids = prompt["input_ids"][:, start:end]
        own = [next(pixels) for _ in range(int((ids == IMAGE).sum()) // 16)]
        pictures = {"pixel_values": torch.stack(own)} if own else {}
        output = model(input_ids=ids, **pictures, past_key_values=cache, use_cache=True)
        start = end
    return output.logits


@pytest.mark.parametrize("reducer", [PyramidDrop((2,), (0.5,)), PyramidDrop((2,), (1.0,)), Thin(LLAVA)])
def test_a_prompt_in_pieces(reducer):
    """Nothing is dropped of the images that come second, and somebody should notice."""
    model = LLAVA.model()
    prompt = LLAVA.single(model, 3, (16, 16), 4, (16, 16), 5)
    for cuts, held in (((19,), 19), ((23,), 23), ((19, 23), 23), ((3,), 3), ((1, 3), 3)):
        plain = in_pieces(model, prompt, *cuts)
        told = f"images to past_key_values of {held} tokens.*one forward pass.*empty cache"
        with reducer.attached(model), pytest.warns(UserWarning, match=told):
            logits = in_pieces(model, prompt, *cuts)
        assert logits.shape == plain.shape
        if held == 3:  # the first piece had no image
            assert torch.equal(logits, plain)
    whole = generate(model, prompt)
    if "mm_encoder_outputs" in inspect.signature(type(model).forward).parameters:  # or it cannot do this by itself
        with reducer.attached(model), pytest.warns(UserWarning, match=r"12 tokens.*prefill_chunk_size=None"):
            generate(model, prompt, prefill_chunk_size=12)
    with reducer.attached(model):  # the question alone may follow: images cached once serve several
        in_pieces(model, prompt, 40)
        cache = prefilled(model, prompt)  # a model or a search may make up image tokens: no picture comes with them
        continued(model, cache, torch.tensor([[5, IMAGE, IMAGE]]))
    assert torch.equal(generate(model, prompt).sequences, whole.sequences)


def test_images_on_a_cache_from_elsewhere_all_stay():
    """Such as a system prompt that was cached before the reducer came."""
    model = LLAVA.model()
    text, image = LLAVA.singles(model)[2], LLAVA.singles(model)[0]
    cache = prefilled(model, text)
    pictures = {"input_ids": image["input_ids"], "pixel_values": image["pixel_values"]}
    plain = model(**pictures, past_key_values=copy.deepcopy(cache)).logits
    with PyramidDrop((2,), (0.5,)).attached(model), pytest.warns(UserWarning, match=r"4 tokens.*none of their tokens"):
        assert torch.equal(model(**pictures, past_key_values=cache).logits, plain)


def test_images_of_a_later_turn_are_never_dropped():
    model = LLAVA.model(dtype=torch.float64)
    whole = LLAVA.single(model, 3, (16, 16), 5, 1, 2, (16, 16), 4)
    ids, pixels = whole["input_ids"], whole["pixel_values"]
    prompt = {"input_ids": ids[:, :24], "pixel_values": pixels[:1]}
    for reducer, renumber in ((PyramidDrop((2,), (0.5,)), lambda layer: True), (Thin(LLAVA), lambda layer: layer == 0)):
        with torch.no_grad(), reducer.attached(model):
            cache = prefilled(model, prompt)
            answer = continued(model, cache, ids[:, 24:25])
            turn = continued(model, cache, ids[:, 25:], pixel_values=pixels[1:])
        kept = reference.as_kept(reducer.kept[0])
        want, _ = reference.run(model, whole, 24, kept, renumber)
        torch.testing.assert_close(torch.cat([answer, turn], 1)[0], want[1:], atol=1e-5, rtol=1e-5)


def test_outputs_keep_their_form():
    """Tuples and output classes, with the loss in front as ever."""
    model = LLAVA.model()
    inputs = LLAVA.singles(model)[0]
    inputs["labels"] = inputs["input_ids"].masked_fill(torch.arange(25) < 22, -100)
    plain = model(**inputs)
    with PyramidDrop((2,), (1.0,)).attached(model):
        kept = model(**inputs)
        assert torch.equal(kept.loss, plain.loss)
        assert list(kept) == list(plain)
        assert torch.equal(model(**inputs, return_dict=False)[0], plain.loss)
        base = model.model(inputs["input_ids"], inputs["pixel_values"])  # by place, without the head
        assert base.last_hidden_state.shape[1] == 25
    assert cache_of(kept).get_seq_length() == 25


def test_a_row_of_padding_alone_does_not_matter():
    """As batches have that were filled up to a size."""
    model = LLAVA.model()
    inputs = join(LLAVA, *LLAVA.singles(model)[:2])
    ids = inputs["input_ids"]
    filled = {
        "input_ids": torch.cat([ids, torch.zeros_like(ids[:1])]),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.zeros_like(ids[:1])]),
        "pixel_values": inputs["pixel_values"],
    }
    for reducer in (PyramidDrop((2,), (0.5,)), FoPru(0.5)):
        with torch.no_grad(), reducer.attached(model):
            want, got = model(**inputs).logits, model(**filled).logits
        torch.testing.assert_close(got[:2], want)


def test_a_padded_batch_loses_common_padding_at_the_first_drop():
    model = LLAVA.model()
    inputs = join(LLAVA, *LLAVA.singles(model)[:1])
    wide = {name: torch.nn.functional.pad(part, (5, 0)) if part.ndim == 2 else part for name, part in inputs.items()}
    with PyramidDrop((2,), (0.5,)).attached(model) as reducer:
        alone, padded = generate(model, inputs), generate(model, wide)
    assert reducer.layer_lengths == [30, 30, 17, 17, 17, 17]
    assert torch.equal(alone.sequences[0], padded.sequences[0, 5:])
