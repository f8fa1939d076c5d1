import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    ViTConfig,
    ViTModel,
)

from foveal.curate.tldr import CodebookCaptioner, caption_ids, load_captioner, save_captioner, vector_quantize
from foveal.curate.tldr_train import Reseeding, small_captioner
from foveal.zoo.nano.bpe import clip_tokenizer

torch.set_num_threads(1)
TEXTS = ["a red cat", "a dog on blue grass"]


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


@pytest.fixture(scope="module")
def tokenizer():
    return clip_tokenizer(TEXTS, 520, 30)


@pytest.fixture
def captioner(tokenizer):
    return seeded(lambda: small_captioner(tokenizer, image_size=16, width=48, layers=2, num_codes=9))


def pictures(n=2):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_ids_of_captions(tokenizer):
    ids, mask = caption_ids(TEXTS, tokenizer)
    assert ids[:, 0].tolist() == [tokenizer.bos_token_id] * 2
    assert mask.sum(1).tolist() == [int((row[1:] == tokenizer.eos_token_id).int().argmax()) + 2 for row in ids]
    assert tokenizer.decode(ids[0], skip_special_tokens=True).strip() == "a red cat"
    short, _ = caption_ids(TEXTS, tokenizer, 4)
    assert short.shape == (2, 4)
    assert short[:, -1].tolist() == [tokenizer.eos_token_id] * 2  # the end is never cut off
    with pytest.raises(ValueError, match="longest=2"):
        caption_ids(TEXTS, tokenizer, 2)
    bert = SimpleNamespace(bos_token_id=None, eos_token_id=None, cls_token_id=7, sep_token_id=None)
    with pytest.raises(ValueError, match="no start or no end token"):
        caption_ids(TEXTS, bert)


def test_losses_by_hand(captioner, tokenizer):
    """Next-word cross-entropy over real words, from a decoder that sees the codes and nothing else of the picture."""
    ids, mask = caption_ids(TEXTS, tokenizer)
    captioner.eval()
    out = captioner(pictures(), ids, mask)
    z = captioner.vision(pictures()).last_hidden_state
    quantized = vector_quantize(z, captioner.codebook)
    logits = captioner.decoder(ids, mask, encoder_hidden_states=captioner.codebook[quantized.indices]).logits
    words = [(b, t) for b in range(2) for t in range(ids.shape[1] - 1) if mask[b, t + 1]]
    expected = torch.stack([-logits[b, t].log_softmax(0)[ids[b, t + 1]] for b, t in words]).mean()
    torch.testing.assert_close(out.lm, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.vq, quantized.loss)
    torch.testing.assert_close(out.loss, out.lm + out.vq)
    assert torch.equal(out.indices, captioner.codes(pictures()))
    assert out.indices.shape == (2, 5)  # the class token and four patches


def test_the_language_loss_reaches_the_vision_tower_and_not_the_codebook(captioner, tokenizer):
    out = captioner(pictures(), *caption_ids(TEXTS, tokenizer))
    embedding = captioner.vision.embeddings.patch_embeddings.projection.weight
    grads = torch.autograd.grad(out.lm, [embedding, captioner.codebook], retain_graph=True, allow_unused=True)
    assert grads[0].abs().sum() > 0
    assert grads[1] is None
    assert torch.autograd.grad(out.vq, captioner.codebook)[0].abs().sum() > 0


def test_padding_never_matters(captioner, tokenizer):
    ids, mask = caption_ids(TEXTS, tokenizer)
    captioner.eval()
    other = ids.masked_fill(mask == 0, 3)
    torch.testing.assert_close(captioner(pictures(), other, mask).loss, captioner(pictures(), ids, mask).loss)


def test_plain_modules_are_parts_too():
    class Decoder(nn.Module):
        def forward(self, ids, mask, memory):
            return F.one_hot(ids, 6).float() + memory.mean() + 0 * mask[..., None]

    model = seeded(lambda: CodebookCaptioner(nn.Identity(), Decoder(), num_codes=4, dim=3))
    assert model.codebook.abs().max().item() <= 1 / 4
    tokens, ids = torch.randn(2, 5, 3), torch.tensor([[1, 2, 0], [1, 3, 2]])
    assert model(tokens, ids, ids > 0).loss.isfinite()
    with pytest.raises(ValueError, match="decoder is a Decoder"):
        model.generate(tokens, None)


def test_captions_are_written(captioner, tokenizer):
    captioner.eval()
    batch = captioner.generate(pictures(3), tokenizer, prompt="a", min_length=4, max_length=9)
    alone = [captioner.generate(one[None], tokenizer, prompt="a", min_length=4, max_length=9)[0] for one in pictures(3)]
    assert batch == alone
    assert all(isinstance(text, str) for text in batch)


def test_codes_and_captions_are_those_of_evaluation_mode(captioner, tokenizer):
    """Dropout is off meanwhile, also of a part that alone was awake; afterwards every part is as it was."""
    captioner.vision.embeddings.dropout.p = captioner.decoder.bert.embeddings.dropout.p = 0.5
    captioner.codebook.data.normal_(generator=torch.Generator().manual_seed(0))

    def seen():
        return captioner.codes(pictures()), captioner.generate(pictures(), tokenizer, prompt="", max_length=12)

    codes, said = captioner.eval() and seen()
    captioner.vision.embeddings.train()
    modes = [module.training for module in captioner.modules()]
    for _ in range(3):
        assert torch.equal(seen()[0], codes)
        assert seen()[1] == said
    assert [module.training for module in captioner.modules()] == modes
    captioner.train()
    assert torch.equal(seen()[0], codes)
    assert all(module.training for module in captioner.modules())


def test_double_precision_stays(captioner, tokenizer):
    ids, mask = caption_ids(TEXTS, tokenizer)
    model = captioner.double().eval()
    out = model(pictures().double(), ids, mask)
    memory = model.codebook[out.indices]
    scores = model.decoder(ids, mask, encoder_hidden_states=memory).logits[:, :-1]
    wanted = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    assert out.lm.dtype == out.loss.dtype == torch.float64
    torch.testing.assert_close(out.lm, F.cross_entropy(scores.flatten(0, 1), wanted.flatten()))


def test_it_learns_and_keeps_its_codes_alive(captioner, tokenizer):
    ids, mask = caption_ids(TEXTS, tokenizer)
    optimizer, rng = torch.optim.Adam(captioner.parameters(), 3e-3), torch.Generator().manual_seed(0)
    captioner.train()
    for step in range(60):
        out = captioner(pictures(), ids, mask)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        if step == 5:
            captioner.reseed_dead_(rng, least=1.0)
    captioner.eval()
    said = captioner.generate(pictures(), tokenizer, prompt="", min_length=2, max_length=20)
    assert said == TEXTS


def test_dead_codes(captioner, tokenizer):
    rng = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="nothing was quantised"):
        captioner.reseed_dead_(rng)
    captioner.train()
    captioner(pictures(), *caption_ids(TEXTS, tokenizer))
    used = captioner.usage > 0
    before = captioner.codebook.detach().clone()
    assert captioner.reseed_dead_(rng, least=0.05) == 0  # more than 5 % of nine codes are in use
    captioner(pictures(), *caption_ids(TEXTS, tokenizer))
    assert captioner.reseed_dead_(rng, least=1.0) == int((~used).sum())
    assert torch.equal(captioner.codebook[used], before[used])
    tokens = captioner.tokens(pictures()).detach().flatten(0, 1)
    assert float(torch.cdist(captioner.codebook[~used].detach(), tokens).min(1).values.max()) < 1e-3
    assert int(captioner.usage.sum()) == 0


def test_codes_are_looked_after_in_the_first_half_of_training(captioner, tokenizer):
    captioner.train()
    captioner(pictures(), *caption_ids(TEXTS, tokenizer))
    captioner.usage[4:] = 0  # fewer than half of nine
    reseeding, before, changed = Reseeding(40, seed=0), captioner.codebook.detach().clone(), []
    for step in range(1, 81):
        reseeding(captioner)
        if not torch.equal(captioner.codebook, before):
            changed.append(step)
            before = captioner.codebook.detach().clone()
    assert changed == [20, 40]


def test_saved_and_loaded(captioner, tokenizer, tmp_path):
    captioner.legacy, captioner.beta = True, 0.5
    save_captioner(captioner.eval(), tokenizer, tmp_path / "c")
    model, words = load_captioner(tmp_path / "c")
    inputs = pictures(), *caption_ids(TEXTS, words)
    torch.testing.assert_close(model(*inputs).loss, captioner(*inputs).loss)
    assert not list((tmp_path / "c").rglob("*.bin"))
    with pytest.raises(FileNotFoundError, match=r"captioner\.json"):
        load_captioner(tmp_path)
    about = tmp_path / "c" / "captioner.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "vision": "AutoConfig"}))
    with pytest.raises(ValueError, match="vision='AutoConfig'"):
        load_captioner(tmp_path / "c")
    with pytest.raises(ValueError, match="vision is a Identity"):
        save_captioner(CodebookCaptioner(nn.Identity(), nn.Identity()), tokenizer, tmp_path / "d")


def test_bad_captioners(captioner, tokenizer):
    ids, mask = caption_ids(TEXTS, tokenizer)
    with pytest.raises(ValueError, match="num_codes=0"):
        CodebookCaptioner(nn.Identity(), nn.Identity(), num_codes=0)
    with pytest.raises(ValueError, match=r"images \(1,"):
        captioner(pictures(1), ids, mask)
    with pytest.raises(ValueError, match="with a word after the start"):
        captioner(pictures(), ids[:, :1], mask[:, :1])
    vision = seeded(
        lambda: ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=16))
    )
    with pytest.raises(ValueError, match=r"gives \(2, 2, 8\).*dim=48"):
        CodebookCaptioner(vision, captioner.decoder, dim=48)(pictures(), ids, mask)


BLIND = {
    "add_cross_attention=True": lambda **size: BertLMHeadModel(BertConfig(is_decoder=True, **size)),
    "LlamaForCausalLM": lambda **size: LlamaForCausalLM(LlamaConfig(intermediate_size=8, **size)),
    "OPTForCausalLM": lambda **size: OPTForCausalLM(OPTConfig(ffn_dim=8, word_embed_proj_dim=48, **size)),
    "Qwen2ForCausalLM": lambda **size: Qwen2ForCausalLM(
        Qwen2Config(intermediate_size=8, num_key_value_heads=2, **size)
    ),
}


@pytest.mark.parametrize("named", BLIND)
def test_decoders_that_cannot_see_are_refused(named, captioner, tokenizer):
    """Some take the codes of the picture and do not look at them."""
    size = {"vocab_size": len(tokenizer), "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CodebookCaptioner(captioner.vision, BLIND[named](**size), dim=48).eval()
    with pytest.raises(ValueError, match=rf"no cross-attention.*{named}|{named}.*no cross-attention"):
        model(pictures(), *caption_ids(TEXTS, tokenizer))
    with pytest.raises(ValueError, match=named):
        model.generate(pictures(), tokenizer)
