import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    BeitConfig,
    BeitModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetModel,
)

from foveal.connect.limber import (
    Limber,
    LimberConnector,
    caption_category,
    caption_labels,
    caption_loss,
    project_prompt,
    property_agreement,
    wu_palmer,
)

torch.set_num_threads(1)
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "golden/limber.npz").items()}
EOS, VOCABULARY, WIDTH = 3, 23, 16


def seeded(build):
    """Build a module under seed 0 and leave the global generator as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def llama():
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes["initializer_range"] = 0.5  # lively enough for greedy captions to differ
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **sizes))


def gpt2():
    sizes = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "initializer_range": 0.5}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, **sizes))


class BagOfWords(nn.Module):
    """The least that counts as a language model; with dropout, to see whether it is switched off."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.dropout = nn.Dropout(0.5)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, inputs_embeds, attention_mask):
        weight = attention_mask[..., None].to(inputs_embeds)
        mean = (inputs_embeds * weight).cumsum(1) / weight.cumsum(1).clamp_min(1)
        return SimpleNamespace(logits=self.head(self.dropout(mean)))


LANGUAGES = {"llama": llama, "gpt2": gpt2, "stub": BagOfWords}


@pytest.fixture(params=LANGUAGES)
def model(request) -> Limber:
    return seeded(lambda: Limber(LimberConnector(6, WIDTH), LANGUAGES[request.param](), EOS))


def features(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


CAPTIONS = torch.tensor([[7, 8, 9, EOS, 0], [10, EOS, 0, 0, 0]])


def test_golden_projection():
    out = project_prompt(GOLDEN["tok_features"], GOLDEN["tok_weight"], GOLDEN["tok_bias"])
    torch.testing.assert_close(out, GOLDEN["tok_out"])
    pooled = [GOLDEN[f"pool_{name}"] for name in ("features", "weight", "bias")]
    out = project_prompt(*pooled, seq_len=int(GOLDEN["pool_seq_len"]))
    torch.testing.assert_close(out, GOLDEN["pool_out"])


def test_golden_labels_and_loss():
    labels = caption_labels(int(GOLDEN["cap_prompt_len"]), GOLDEN["cap_ids"], int(GOLDEN["cap_eos"]))
    assert torch.equal(labels, GOLDEN["cap_labels"])
    loss = caption_loss(GOLDEN["loss_logits"], labels)
    torch.testing.assert_close(loss.double(), GOLDEN["loss_value"])


@given(st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=1, max_size=4), st.integers(0, 3))
def test_labels_against_a_slow_loop(rows, prompt_len):
    labels = caption_labels(prompt_len, torch.tensor(rows), eos_id=0)
    for label, row in zip(labels.tolist(), rows, strict=True):
        kept = row.index(0) + 1 if 0 in row else len(row)
        assert label == [-100] * prompt_len + row[:kept] + [-100] * (len(row) - kept)


def test_loss_is_a_token_mean_and_says_when_there_is_no_target():
    logits = features(2, 5, 7)
    labels = torch.tensor([[-100, 1, 2, 3, 4], [-100, 5, -100, -100, -100]])
    terms = [
        -logits[b, t - 1].log_softmax(-1)[labels[b, t]] for b in range(2) for t in range(1, 5) if labels[b, t] >= 0
    ]
    torch.testing.assert_close(caption_loss(logits, labels), torch.stack(terms).mean())
    with pytest.raises(ValueError, match="no target"):
        caption_loss(logits, torch.full((2, 5), -100))


def test_only_the_map_is_trained(model):
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names == ["connector.proj.weight", "connector.proj.bias"]
    assert sum(p.numel() for p in model.trainable_parameters()) == 6 * WIDTH + WIDTH
    out = model.train()(features(2, 3, 6), CAPTIONS)
    out.loss.backward()
    assert model.connector.proj.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.language.parameters())
    assert model.connector.training
    assert not any(module.training for module in model.language.modules())


def test_forward_is_the_language_model_on_prompt_and_caption(model):
    model.eval()
    out = model(features(2, 3, 6), CAPTIONS, (CAPTIONS != 0).long())
    words = model.language.get_input_embeddings()(CAPTIONS)
    mask = torch.cat([torch.ones(2, 3).long(), (CAPTIONS != 0).long()], 1)
    inputs = torch.cat([model.connector(features(2, 3, 6)), words], 1)
    torch.testing.assert_close(out.logits, model.language(inputs_embeds=inputs, attention_mask=mask).logits)
    assert torch.equal(out.labels, caption_labels(3, CAPTIONS, EOS))
    torch.testing.assert_close(out.loss, caption_loss(out.logits, out.labels))


def test_what_follows_the_end_token_does_not_matter(model):
    model.eval()
    other = CAPTIONS.clone()
    other[1, 2:] = torch.tensor([20, EOS, 21])
    a, b = model(features(2, 3, 6), CAPTIONS), model(features(2, 3, 6), other)
    assert torch.equal(a.labels, b.labels)
    torch.testing.assert_close(a.loss, b.loss)


def uncached_greedy(model, inputs, prompt_ids, steps):
    """Full forward for every token, one image at a time."""
    rows = []
    for one in inputs:
        sequence = model.soft_prompt(one[None])
        if prompt_ids is not None:
            sequence = torch.cat([sequence, model.language.get_input_embeddings()(prompt_ids)[None]], 1)
        row: list[int] = []
        while len(row) < steps and model.eos_id not in row:
            mask = torch.ones(sequence.shape[:2], dtype=torch.long)
            row.append(int(model.language(inputs_embeds=sequence, attention_mask=mask).logits[0, -1].argmax()))
            word = model.language.get_input_embeddings()(torch.tensor([[row[-1]]]))
            sequence = torch.cat([sequence, word], 1)
        rows.append(row)
    longest = max(map(len, rows))
    return torch.tensor([row + [model.eos_id] * (longest - len(row)) for row in rows])


@pytest.mark.parametrize("prompt_ids", [None, torch.tensor([4, 5])])
def test_generate_equals_uncached_greedy(model, prompt_ids):
    inputs = 3 * features(6, 3, 6)
    with torch.no_grad():
        expected = uncached_greedy(model.eval(), inputs, prompt_ids, 8)
    model.train()
    got = model.generate(inputs, prompt_ids, max_new_tokens=8)
    assert torch.equal(got, expected)
    assert len(set(map(tuple, got.tolist()))) > 1
    assert model.connector.training


def test_generate_stops_each_row_at_its_end_token(model):
    inputs = 3 * features(6, 3, 6)
    free = model.generate(inputs, max_new_tokens=8)
    model.eos_id = int(free[:, 1].mode().values)  # a token that some rows write early
    got = model.generate(inputs, max_new_tokens=8)
    with torch.no_grad():
        assert torch.equal(got, uncached_greedy(model.eval(), inputs, None, 8))
    for row in got.tolist():
        if model.eos_id in row:
            assert set(row[row.index(model.eos_id) :]) == {model.eos_id}
    assert (got == model.eos_id).any()


@pytest.mark.parametrize(
    "defaults",
    [
        {"do_sample": True, "temperature": 5.0, "repetition_penalty": 8.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(4, 12))},
        {"forced_eos_token_id": EOS},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0},
        {"max_time": 1e-9},
        {"return_dict_in_generate": True, "output_scores": True},
    ],
    ids=lambda defaults: next(iter(defaults)),
)
def test_generate_ignores_the_checkpoints_own_defaults(defaults):
    model = seeded(lambda: Limber(LimberConnector(6, WIDTH), llama(), EOS))
    plain = model.generate(features(4, 3, 6))
    own = model.language.generation_config
    own.update(**defaults)
    before = own.to_dict()
    assert torch.equal(model.generate(features(4, 3, 6)), plain)
    assert model.language.generation_config is own
    assert own.to_dict() == before
    with pytest.raises(RuntimeError):
        Limber(LimberConnector(6, WIDTH + 1), model.language, EOS).generate(features(4, 3, 6))
    assert own.to_dict() == before


def test_generate_leaves_every_part_in_its_mode():
    model = seeded(lambda: Limber(LimberConnector(6, WIDTH), llama(), EOS)).train()
    model.connector.eval()
    model.generate(features(2, 3, 6), max_new_tokens=2)
    assert model.training
    assert not model.connector.training
    model.eval().connector.dropout.train()
    model.generate(features(2, 3, 6), max_new_tokens=2)
    assert [name for name, module in model.named_modules() if module.training] == ["connector.dropout"]


VISION = {
    "clip": lambda: CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=6, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4
        )
    ),
    "beit": lambda: BeitModel(
        BeitConfig(
            hidden_size=6, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4
        )
    ),
    "pair": lambda: BeitModel(
        BeitConfig(
            hidden_size=6,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=(4, 4),
        )
    ),
    "resnet": lambda: ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[6], depths=[1], layer_type="basic")),
    "plain": lambda: nn.Conv2d(3, 6, 4, 4),
}


@pytest.mark.parametrize("tower", VISION)
@pytest.mark.parametrize("seq_len", [None, 2])
def test_vision_towers_of_hugging_face(tower, seq_len):
    vision = seeded(VISION[tower])
    model = seeded(lambda: Limber(LimberConnector(6, WIDTH, seq_len), llama(), EOS, vision)).train()
    images = features(2, 3, 16, 16)
    out = model(images, CAPTIONS)
    assert out.soft_prompt.shape == (2, 16 if seq_len is None else seq_len, WIDTH)
    out.loss.backward()
    assert all(parameter.grad is None for parameter in vision.parameters())
    assert not vision.training
    if tower in ("clip", "beit", "pair") and seq_len is None:  # the class token comes first and is left out
        tokens = vision(images).last_hidden_state[:, 1:]
        torch.testing.assert_close(model.eval().soft_prompt(images), model.connector(tokens))


def test_language_in_bfloat16_with_a_float32_map():
    model = seeded(lambda: Limber(LimberConnector(6, WIDTH), llama().bfloat16(), EOS))
    out = model(features(2, 3, 6), CAPTIONS)
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert model.connector.proj.weight.grad.dtype == torch.float32
    assert model.generate(features(2, 3, 6), max_new_tokens=3).dtype == torch.int64


def test_permuting_image_tokens_permutes_the_prompt():
    connector, order = seeded(lambda: LimberConnector(6, WIDTH)).eval(), torch.tensor([2, 0, 1])
    x = features(2, 3, 6)
    torch.testing.assert_close(connector(x[:, order]), connector(x)[:, order])


def test_state_dict_keys_are_those_of_the_released_files():
    assert list(LimberConnector(6, 8).state_dict()) == ["proj.weight", "proj.bias"]
    assert set(LimberConnector(6, 8, layernorm=True).state_dict()) >= {"ln.weight", "ln.bias"}
    assert LimberConnector(6, 8, seq_len=3).proj.weight.shape == (24, 6)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A small CAT sits", 0),
        ("the catalogue of cats", -1),
        ("a dog beside a cat", 1),
        ("a hot  dog on a plate", 2),
        ("a hot day", -1),
        ("", -1),
        ("bobcat, then cat.", 0),
    ],
)
def test_caption_category(caption, expected):
    assert caption_category(caption, ["cat", "dog", "hot dog"]) == expected


def test_caption_category_prefers_the_longest_at_one_place_and_needs_names():
    assert caption_category("a hot dog", ["hot", "hot dog"]) == 1
    assert caption_category("anything", []) == -1
    assert caption_category("costs $5 (new)", ["$5"]) == 0
    with pytest.raises(ValueError, match="blank"):
        caption_category("a", ["cat", " "])


HIERARCHY = {"animal": None, "mammal": "animal", "bird": "animal", "cat": "mammal", "dog": "mammal", "rock": None}


def test_wu_palmer():
    assert wu_palmer(HIERARCHY, "cat", "dog") == pytest.approx(2 * 2 / 6)
    assert wu_palmer(HIERARCHY, "cat", "bird") == pytest.approx(2 * 1 / 5)
    assert wu_palmer(HIERARCHY, "cat", "mammal") == pytest.approx(2 * 2 / 5)
    assert wu_palmer(HIERARCHY, "cat", "cat") == 1
    assert wu_palmer(HIERARCHY, "cat", "rock") == 0
    with pytest.raises(ValueError, match="unicorn"):
        wu_palmer(HIERARCHY, "cat", "unicorn")
    with pytest.raises(ValueError, match="cycle"):
        wu_palmer({"a": "b", "b": "a"}, "a", "b")


def test_property_agreement_looks_at_errors_only():
    attributes = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 0], [0, 1, 0, 1]], dtype=torch.bool)
    true, predicted = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 2, 2])
    assert property_agreement(attributes, true, predicted) == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert math.isnan(property_agreement(attributes, true, true))
    with pytest.raises(ValueError, match="predicted"):
        property_agreement(attributes, true, torch.tensor([0, -1, 2, 2]))
    with pytest.raises(ValueError, match="alike"):
        property_agreement(attributes, true, predicted[:2])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: project_prompt(torch.zeros(2, 6), torch.zeros(4, 6)), "features"),
        (lambda: project_prompt(torch.zeros(2, 3, 6), torch.zeros(4, 6), seq_len=2), "features"),
        (lambda: project_prompt(torch.zeros(2, 3, 6), torch.zeros(4, 5)), "weight"),
        (lambda: project_prompt(torch.zeros(2, 6), torch.zeros(5, 6), seq_len=2), "seq_len"),
        (lambda: project_prompt(torch.zeros(2, 6), torch.zeros(4, 6), seq_len=0), "seq_len"),
        (lambda: project_prompt(torch.zeros(2, 3, 6), torch.zeros(4, 6), torch.zeros(6)), "bias"),
        (lambda: caption_labels(-1, CAPTIONS, EOS), "prompt_len"),
        (lambda: caption_labels(2, CAPTIONS[0], EOS), "caption_ids"),
        (lambda: caption_loss(torch.zeros(2, 4, 7), torch.zeros(2, 5).long()), "logits"),
        (lambda: LimberConnector(0, 4), "dim_vision"),
        (lambda: LimberConnector(4, 4, seq_len=0), "seq_len"),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_bad_batches_are_named(model):
    with pytest.raises(ValueError, match="caption_ids"):
        model(features(3, 3, 6), CAPTIONS)
    with pytest.raises(ValueError, match="caption_mask"):
        model(features(2, 3, 6), CAPTIONS, torch.ones(2, 4))
    with pytest.raises(ValueError, match="prompt_ids"):
        model.generate(features(3, 3, 6), CAPTIONS)
    with pytest.raises(ValueError, match="max_new_tokens"):
        model.generate(features(3, 3, 6), max_new_tokens=0)
