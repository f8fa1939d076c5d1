import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from foveal.nn.steering import LayerSteering, decoder_blocks, hidden_after, offset_vector, sentence_embedding

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    sizes = {"vocab_size": 41, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=41, n_embd=16, n_layer=3, n_head=2, n_positions=64)).eval()


def ids(*shape, seed=0):
    return torch.randint(2, 41, shape, generator=torch.Generator().manual_seed(seed))


def vector(seed=0):
    return torch.randn(16, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model, tokens):
    return model(tokens).logits


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_steers_the_last_position_only_and_leaves_without_a_trace(name, request):
    model, tokens = request.getfixturevalue(name), ids(2, 7)
    plain = logits(model, tokens)
    for _ in range(2):  # nothing accumulates, neither in a call nor from one steering to the next
        with LayerSteering(model, 1, vector()):
            steered, again = logits(model, tokens), logits(model, tokens)
        assert torch.equal(steered[:, :-1], plain[:, :-1])
        assert (steered[:, -1] - plain[:, -1]).abs().max() > 1e-3
        assert torch.equal(steered, again)
    assert torch.equal(logits(model, tokens), plain)
    with LayerSteering(model, 1, torch.zeros(16)):
        assert torch.equal(logits(model, tokens), plain)


@torch.no_grad()
def test_hidden_states_are_told_as_steered(llama):
    tokens = ids(1, 5)
    plain = llama(tokens, output_hidden_states=True).hidden_states  # leaves hooks of transformers behind, which stay
    with LayerSteering(llama, 1, vector()):
        steered = llama(tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(steered[2][0, -1], plain[2][0, -1] + vector())
    assert torch.equal(steered[1], plain[1])


def test_is_removed_after_an_exception_and_adds_up_when_nested(llama):
    tokens = ids(1, 5)
    plain = logits(llama, tokens)
    with pytest.raises(KeyError), LayerSteering(llama, 0, vector()):
        raise KeyError
    assert torch.equal(logits(llama, tokens), plain)
    with LayerSteering(llama, 2, vector()), LayerSteering(llama, 2, vector()):
        twice = logits(llama, tokens)
    with LayerSteering(llama, 2, 2 * vector()):
        torch.testing.assert_close(logits(llama, tokens), twice)


def test_changes_what_is_generated_with_a_cache_and_without(llama):
    tokens = ids(1, 5)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = llama.generate(tokens, **options)
    with LayerSteering(llama, 2, 50 * vector()):
        cached = llama.generate(tokens, **options)
        # only the last block's output is steered here, so no cache ever holds a steered state
        assert torch.equal(llama.generate(tokens, **options, use_cache=False), cached)
    assert not torch.equal(cached, plain)


def test_left_padding_changes_nothing(llama):
    tokens = ids(1, 5)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), tokens], 1)
    mask = (padded != 0).long()
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad(), LayerSteering(llama, 1, vector()):
        alone = llama(tokens).logits[:, -1]
        together = llama(padded, attention_mask=mask, position_ids=positions).logits[:, -1]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_hidden_after_is_the_output_of_the_block(name, request):
    model, tokens = request.getfixturevalue(name), ids(6)
    with torch.no_grad():  # asked for hidden states, transformers leaves hooks of its own
        states = model(tokens[None], output_hidden_states=True).hidden_states
    hooks = [len(block._forward_hooks) for block in decoder_blocks(model)]
    for layer in range(2):  # the last of them is given after the final normalisation
        torch.testing.assert_close(hidden_after(model, tokens, layer), states[layer + 1][0])
    assert not torch.allclose(hidden_after(model, tokens, 2), states[3][0])
    assert [len(block._forward_hooks) for block in decoder_blocks(model)] == hooks


def test_finds_blocks_of_bare_decoders(llama, gpt2):
    assert decoder_blocks(llama.model) is llama.model.layers
    assert decoder_blocks(gpt2.transformer) is gpt2.transformer.h


@pytest.mark.parametrize("layer", [-1, 3])
def test_layers_that_are_not_there(llama, layer):
    with pytest.raises(ValueError, match=f"layer={layer}.*3 blocks"):
        LayerSteering(llama, layer, vector())


@pytest.mark.parametrize(
    "bad", [torch.zeros(15), torch.zeros(1, 16), torch.full((16,), torch.nan), torch.full((16,), torch.inf)]
)
def test_vectors_that_do_not_fit(llama, bad):
    with pytest.raises(ValueError, match="vector"):
        LayerSteering(llama, 1, bad)


def test_a_model_without_blocks():
    with pytest.raises(ValueError, match="model=Linear"):
        LayerSteering(torch.nn.Linear(2, 2), 0, torch.zeros(2))


def test_embedding_reads_its_own_tokens_alone():
    hidden = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    expected = torch.stack([hidden[0, :2].mean(0), hidden[1, 1:].mean(0)])
    hidden[0, 2:] = torch.nan
    torch.testing.assert_close(sentence_embedding(hidden, mask), expected)
    torch.testing.assert_close(sentence_embedding(hidden, mask.bool()), expected)
    with pytest.raises(ValueError, match="row 1"):
        sentence_embedding(hidden, torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]))
    with pytest.raises(ValueError, match="mask"):
        sentence_embedding(hidden, mask[:, :3])


def test_offset_of_texts_of_different_lengths():
    positive, negative = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    np.testing.assert_allclose(offset_vector(positive, negative, alpha=0.5), [1.0, -0.5])
    np.testing.assert_allclose(offset_vector(positive, negative, pos_mask=torch.tensor([1, 0])), [1.0, -1.0])
    assert torch.equal(offset_vector(positive, positive), torch.zeros(2))
    with pytest.raises(ValueError, match="width"):
        offset_vector(positive, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="alpha"):
        offset_vector(positive, negative, alpha=float("nan"))
    for name, texts, masks in (
        ("positive", (positive[:0], negative), {}),
        ("negative", (positive, negative[:0]), {}),
        ("positive", (positive, negative), {"pos_mask": torch.zeros(2)}),
    ):
        with pytest.raises(ValueError, match=rf"{name} .*no token"):
            offset_vector(*texts, **masks)


def test_half_precision_does_not_overflow():
    hidden = torch.full((1, 300, 2), 300.0)  # whose sum is beyond float16
    for dtype in (torch.float16, torch.bfloat16):
        found = sentence_embedding(hidden.to(dtype), torch.ones(1, 300))
        assert torch.equal(found, torch.full((1, 2), 300.0))
        offset = offset_vector(hidden[0].to(dtype), hidden[0, :9].to(dtype) - 50)
        assert torch.equal(offset, torch.full((2,), 50.0))
    assert sentence_embedding(hidden.double(), torch.ones(1, 300)).dtype == torch.float64
