"""The fitted connectors on a language model of a few hundred words."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from foveal.connect.sitta import SittaMapper, standardize
from foveal.data import twemoji
from foveal.data.text import singular
from foveal.demo import connectors
from foveal.demo.connectors import (
    Drawings,
    caption_ids,
    fit_names,
    name_embeddings,
    name_tokens,
    plainest,
    sitta_captioner,
    train_limber,
)

VOCABULARY, WIDTH, EOS = 300, 16, 2


class Words:
    """One token for each word, numbered as they come."""

    eos_token_id = EOS

    def __init__(self):
        self.ids = {}

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [self.ids.setdefault(word, 3 + len(self.ids)) for word in text.split()]}

    def text(self, row):
        names = {index: word for word, index in self.ids.items()}
        return " ".join(names.get(int(index), "?") for index in row)

    def batch_decode(self, rows):
        return [self.text(row) for row in rows]

    def decode(self, token):
        return self.text([token])

    def __len__(self):
        return VOCABULARY


@pytest.fixture
def eyes():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=EOS,
        pad_token_id=EOS,
        initializer_range=0.3,  # a model that says one thing rather than another
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    embeddings = model.get_input_embeddings().weight.detach()
    targets = standardize(embeddings)[0]
    language = SimpleNamespace(model=model, tokenizer=Words())
    return SimpleNamespace(language=language, embeddings=embeddings, mapper=SimpleNamespace(targets=targets))


@pytest.fixture
def drawings(eyes):
    """Sixty emoji whose features are an exact rotation of their names' embeddings, with a little noise."""
    emojis = tuple(plainest("train")[100:160])
    names = name_embeddings(eyes, [emoji.name for emoji in emojis])
    generator = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(24, WIDTH, generator=generator))[0].mT
    return Drawings(emojis, names @ rotation + 0.02 * torch.randn(60, 24, generator=generator))


def test_one_drawing_of_each_family_and_no_family_on_both_sides():
    train, held_out = plainest("train"), plainest("held_out")
    bases = [emoji.base for emoji in train + held_out]
    assert len(bases) == len(set(bases)) == len({emoji.base for emoji in twemoji.emojis()})
    assert {twemoji.split(emoji) for emoji in held_out} == {"held_out"}
    assert not [emoji.name for emoji in held_out if "skin tone" in emoji.name]


def test_map_on_names_finds_what_it_was_not_fitted_on(eyes, drawings):
    mapper, scores = fit_names(eyes, drawings, np.random.default_rng(0), lambda *_: None)
    assert set(scores) == set(connectors.METHODS)
    assert mapper.method == max(scores, key=scores.get)
    assert max(scores.values()) > 0.5  # 12 names: a guess gets about 0.26
    again, same = fit_names(eyes, drawings, np.random.default_rng(0), lambda *_: None)
    assert same == scores
    assert torch.equal(again.W, mapper.W)


def test_a_name_without_letters_has_no_direction(eyes):
    vectors = name_embeddings(eyes, ["123", "red apple"])
    assert not vectors[0].any()
    assert vectors[1].any()


def test_a_captioner_takes_no_word_twice_in_another_number(eyes):
    words = ["door", "doors", "doorway", "doorways", "bus", "buses", "geese", "goose"]
    ids = name_tokens(eyes, words)
    eyes.whole = torch.zeros(VOCABULARY, dtype=torch.bool)
    eyes.whole[[token for (token,) in ids]] = True
    mapper = SittaMapper("procrustes").fit(torch.randn(8, 24), ids, eyes.embeddings)
    found = sitta_captioner(eyes, mapper, orders=1).words(torch.randn(24))
    assert sorted(map(singular, found)) == ["bus", "door", "doorway", "goose"]


def test_captions_end_and_long_names_are_left_out():
    kept, ids, end = caption_ids(words := Words(), ["Red apple", "a b c d e", "dog"])
    assert kept == [0, 2]
    assert [words.text(row) for row in ids] == [": a picture of a red apple . .", ": a picture of a dog . . ."]
    assert words.text([end]) == "."


def test_limber_trains_the_map_only(eyes, drawings, monkeypatch):
    monkeypatch.setattr(connectors, "LEARNING_RATE", 3e-2)
    start = fit_names(eyes, drawings, np.random.default_rng(0), lambda *_: None)[0]
    before = {name: value.clone() for name, value in eyes.language.model.state_dict().items()}
    steps = []
    told = train_limber(eyes, drawings, start, lambda what, done, total: steps.append((done, total)), steps=40, seed=0)
    assert steps == [(step, 40) for step in range(41)]
    assert all(torch.equal(value, before[name]) for name, value in eyes.language.model.state_dict().items())
    said = told.captions(drawings.features[:5])
    assert len(said) == 5
    assert not [text for text in said if "." in text]

    def loss(captioner):
        z = standardize(drawings.features, captioner.mean, captioner.std)[0]
        kept, ids, _ = caption_ids(eyes.language.tokenizer, drawings.names)
        with torch.no_grad():
            return captioner.limber.eval()(z[kept], ids).loss.item()

    short = train_limber(eyes, drawings, start, lambda *_: None, steps=1, seed=0)
    assert loss(told) < loss(short) - 0.1
    again = train_limber(eyes, drawings, start, lambda *_: None, steps=1, seed=0)
    assert torch.equal(again.limber.connector.connector.proj.weight, short.limber.connector.connector.proj.weight)
