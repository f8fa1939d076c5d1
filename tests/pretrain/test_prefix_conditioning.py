import math
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from foveal.nn.attention import padding_mask
from foveal.nn.transformer import Transformer
from foveal.pretrain.base import ContrastiveOutput
from foveal.pretrain.clip import build_zero_shot_classifier, clip_loss
from foveal.pretrain.prefix_conditioning import (
    CAPTION,
    LABEL,
    CLIPTextBody,
    PrefixConditioningObjective,
    PrefixTextEncoder,
    debiased_batches,
    extend_mask,
    labels_to_prompts,
    prepend_prefix,
    unicl_loss,
    unicl_targets,
)

from .contract import pairs

torch.set_num_threads(1)
PATH = Path(__file__).parents[1] / "golden/prefix_conditioning.npz"
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(PATH).items()}


def golden(case):
    return {name.split(".", 1)[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}.")}


def close(actual, expected):
    """Within 1e-4 + 1e-4 · max|expected|."""
    expected = torch.as_tensor(expected).double()
    assert float((actual.detach().double() - expected).abs().max()) <= 1e-4 + 1e-4 * float(expected.abs().max())


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# Prefix and encoder ---------------------------------------------------------------------------------------------------


class Running(nn.Module):
    """The stub of the golden numbers: later positions weigh more in a running mean of what the mask shows."""

    def forward(self, embeddings, mask):
        weights = mask * (1 + 0.1 * torch.arange(mask.shape[1]))
        return (weights[..., None] * embeddings).cumsum(1) / mask.cumsum(1)[..., None]


def test_golden_prefix():
    ref = golden("prefix")
    close(prepend_prefix(ref["token_embeddings"], ref["prefix"], ref["source"]), ref["output"])
    assert torch.equal(extend_mask(ref["attention_mask"], 1), ref["mask"])
    assert extend_mask(ref["attention_mask"].long(), 1).dtype == torch.bool


@pytest.mark.parametrize("pool", ["eot", "cls", "mean"])
def test_golden_encoder(pool):
    ref = golden("encoder")
    encoder = PrefixTextEncoder(nn.Embedding(11, 4), Running(), pool=pool, projection=nn.Linear(4, 3, bias=False))
    encoder.load_state_dict({k.removeprefix("weights."): v for k, v in ref.items() if k.startswith("weights.")})
    close(encoder(ref["input_ids"], ref["attention_mask"], ref["source"]), ref[f"{pool}.given"])
    close(encoder(ref["input_ids"], ref["attention_mask"]), ref[f"{pool}.default"])


class Body(nn.Module):
    """A small causal transformer with a table of positions."""

    def __init__(self, width, longest, causal=True):
        super().__init__()
        self.positions, self.net, self.causal = nn.Parameter(torch.randn(longest, width)), None, causal
        self.net = Transformer(width, 1, 2)

    def forward(self, embeddings, mask):
        x = embeddings + self.positions[: embeddings.shape[1]]
        return self.net(x, mask=padding_mask(mask), causal=self.causal)


def small(pool="eot", p=3, sources=4):
    make = seeded(lambda: PrefixTextEncoder(nn.Embedding(9, 8), Body(8, 12), prefix_length=p, num_sources=sources))
    make.pool = pool
    return make


IDS = torch.tensor([[1, 3, 4, 2], [1, 5, 2, 0], [1, 2, 0, 0]])
MASK = IDS > 0


@pytest.mark.parametrize("pool", ["eot", "cls", "mean"])
def test_against_one_text_at_a_time(pool):
    """Row by row, without padding: the prefix before the start token, positions from the first prefix vector."""
    encoder, source = small(pool), torch.tensor([3, 0, 2])
    out = encoder(IDS, MASK, source)
    for row, (ids, c) in enumerate(zip(IDS, source, strict=True)):
        tokens = encoder.token_embedding(ids[ids > 0])
        x = torch.cat([encoder.prefix[c], tokens]) + encoder.encoder.positions[: 3 + len(tokens)]
        states = encoder.encoder.net(x[None], causal=True)[0, 3:]
        expected = {"eot": states[-1], "cls": states[0], "mean": states.mean(0)}[pool]
        torch.testing.assert_close(out[row], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pool", ["eot", "cls", "mean"])
def test_padding_never_matters(pool):
    encoder, other = small(pool), torch.where(MASK, IDS, 7)
    torch.testing.assert_close(encoder(other, MASK, 1), encoder(IDS, MASK, 1))
    torch.testing.assert_close(encoder(IDS[2:, :2], MASK[2:, :2], 1), encoder(IDS, MASK, 1)[2:], atol=1e-5, rtol=1e-4)


def test_sources_differ_by_their_prefix_alone():
    encoder = small()
    assert not torch.allclose(encoder(IDS, MASK, 0), encoder(IDS, MASK, 1))
    torch.testing.assert_close(encoder(IDS, MASK), encoder(IDS, MASK, CAPTION))
    encoder(IDS, MASK, torch.tensor([2, 0, 2])).square().sum().backward()
    used = encoder.prefix.grad.abs().sum((1, 2)) > 0
    assert used.tolist() == [True, False, True, False]
    with torch.no_grad():
        encoder.prefix.copy_(encoder.prefix[:1].expand(4, -1, -1))
    torch.testing.assert_close(encoder(IDS, MASK, torch.tensor([0, 1, 3])), encoder(IDS, MASK, LABEL))


def test_prefixes_start_small():
    prefix = seeded(lambda: PrefixTextEncoder(nn.Embedding(2, 200), Body(200, 4), num_sources=50)).prefix
    assert prefix.shape == (50, 1, 200)
    assert prefix.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda e: e(IDS, MASK, 4), r"source=4.*\[0, 4\)"),
        (lambda e: e(IDS, MASK, -1), "source=-1"),
        (lambda e: e(IDS, MASK, torch.tensor([0, 1, 9])), r"source=\[0, 1, 9\]"),
        (lambda e: e(IDS, MASK, torch.tensor([0, 1])), r"source \(2,\).*3 rows"),
        (lambda e: e(IDS, MASK, torch.tensor([0.0, 1.0, 1.0])), "float32"),
        (lambda e: e(IDS, MASK.flip(1)), "row 1 is not padded on the right"),
        (lambda e: e(IDS, MASK & (IDS != 3)), "row 0 is not padded"),
        (lambda e: e(IDS, torch.zeros_like(MASK)), "row 0 has no real token"),
        (lambda e: e(IDS, MASK[:2]), r"attention_mask \(2, 4\)"),
        (lambda e: e(IDS[0], MASK[0]), r"input_ids \(4,\)"),
        (lambda _: prepend_prefix(torch.ones(2, 3, 4), torch.ones(2, 1, 5), 0), r"\(2, 1, 5\).*one width"),
        (lambda _: prepend_prefix(torch.ones(3, 4), torch.ones(2, 1, 4), 0), r"token_embeddings \(3, 4\)"),
        (lambda _: extend_mask(torch.ones(3), 1), r"attention_mask \(3,\)"),
        (lambda _: extend_mask(torch.ones(3, 2), -1), "prefix_length=-1"),
        (lambda _: PrefixTextEncoder(nn.Embedding(2, 4), Running(), pool="max"), "pool='max'"),
        (lambda _: PrefixTextEncoder(nn.Embedding(2, 4), Running(), prefix_length=0), "prefix_length=0"),
        (lambda _: PrefixTextEncoder(nn.Embedding(2, 4), Running(), num_sources=0), "num_sources=0"),
    ],
)
def test_bad_texts(call, match):
    with pytest.raises(ValueError, match=match):
        call(small())


# transformers ---------------------------------------------------------------------------------------------------------


def clip(attention="sdpa") -> transformers.CLIPModel:
    text = {
        "vocab_size": 30,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 6,
        "bos_token_id": 28,
        "eos_token_id": 29,
        "pad_token_id": 29,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)
    config._attn_implementation = attention
    return seeded(lambda: transformers.CLIPModel(config)).eval()


CLIP_IDS = torch.tensor([[28, 3, 4, 5, 29], [28, 6, 29, 29, 29]])
CLIP_MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_body_is_the_text_tower_of_transformers(attention):
    """Fed with embeddings; its layers cut off from the prefix, the text's states are those of the tower itself."""
    model = clip(attention)
    body = CLIPTextBody(model.text_model, 1)
    with torch.no_grad():
        body.prefix_positions.copy_(model.text_model.embeddings.position_embedding.weight[:1])
        body.position_embedding = nn.Embedding.from_pretrained(body.position_embedding.weight[1:])
        embedded = model.text_model.embeddings.token_embedding(CLIP_IDS)
        ours = body(embedded, CLIP_MASK.bool())
        theirs = model.text_model(CLIP_IDS, attention_mask=CLIP_MASK).last_hidden_state
    torch.testing.assert_close(ours[CLIP_MASK.bool()], theirs[CLIP_MASK.bool()], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_class_of_transformers(attention):
    """Trains CLIP's own weights on a mixed batch; zero-shot classes in caption mode."""
    model = clip(attention)
    encoder, objective = seeded(lambda: PrefixTextEncoder.from_clip(model, 2, 3)), PrefixConditioningObjective()
    pixels = torch.randn(2, 3, 16, 16, generator=rng())
    images = model.get_image_features(pixels).pooler_output
    out = objective(images, encoder(CLIP_IDS, CLIP_MASK, torch.tensor([CAPTION, LABEL])), torch.tensor([-1, 4]))
    out.loss.backward()
    text = model.text_model
    for part in (text.embeddings, text.encoder, text.final_layer_norm, model.text_projection, model.vision_model):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert encoder.prefix.grad.abs().sum((1, 2)).gt(0).tolist() == [True, True, False]
    assert encoder.encoder.prefix_positions.grad.abs().sum() > 0

    def encode(prompts):
        ids = torch.tensor([[28, *(1 + ord(letter) % 20 for letter in prompt[:3]), 29] for prompt in prompts])
        return encoder(ids, torch.ones_like(ids))

    assert build_zero_shot_classifier(encode, ["sea", "sky"], ["{}"]).shape == (2, 10)
    with pytest.raises(ValueError, match="texts of 7 tokens: the text tower reads 6"):
        encoder(torch.ones(1, 7, dtype=torch.long), torch.ones(1, 7))
    encoder(torch.ones(1, 6, dtype=torch.long), torch.ones(1, 6))  # the prefix takes no token's place
    with pytest.raises(ValueError, match="prefix_length=0"):
        CLIPTextBody(model.text_model, 0)


class BertBody(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, embeddings, mask):
        return self.model(inputs_embeds=embeddings, attention_mask=mask.long()).last_hidden_state


def test_bert():
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    bert = seeded(lambda: transformers.BertModel(config, add_pooling_layer=False)).eval()
    encoder = seeded(lambda: PrefixTextEncoder(bert.embeddings.word_embeddings, BertBody(bert), pool="cls"))
    out = encoder(IDS, MASK, torch.tensor([0, 1, 1]))
    assert out.shape == (3, 8)
    torch.testing.assert_close(encoder(IDS[1:2, :3], MASK[1:2, :3], 1)[0], out[1], atol=1e-5, rtol=1e-4)


# Loss -----------------------------------------------------------------------------------------------------------------


def test_golden_unicl():
    ref = golden("unicl")
    assert torch.equal(unicl_targets(ref["labels"]), ref["targets"])
    leaves = [ref[name].clone().requires_grad_() for name in ("image_features", "text_features")]
    out = unicl_loss(*leaves, ref["labels"], ref["scale"])
    for name in ("loss", "image_to_text", "text_to_image", "logits_per_image"):
        close(getattr(out, name), ref[name])
    close(out.logits_per_text, ref["logits_per_image"].T)
    out.loss.backward()
    for leaf, name in zip(leaves, ("grad_image", "grad_text"), strict=True):
        close(leaf.grad, ref[name])
    objective = PrefixConditioningObjective("clip", init_scale=float(ref["scale"]))
    close(objective(*leaves, ref["labels"]).loss, ref["clip_loss"])


@pytest.mark.parametrize("labels", [[0, 2, -1, 0, -1, 2], [3] * 6, [-1] * 6, list(range(6))])
def test_unicl_against_a_slow_loop(labels):
    image, text = (x.double() for x in pairs(6, 0))
    scores = 7 * F.normalize(image) @ F.normalize(text).T
    directions = []
    for rows in (scores.log_softmax(1), scores.T.log_softmax(1)):
        total = 0.0
        for i, own in enumerate(labels):
            positives = [j for j, other in enumerate(labels) if j == i or (own >= 0 and other == own)]
            total -= sum(float(rows[i, j]) for j in positives) / len(positives) / 6
        directions.append(total)
    out = unicl_loss(image, text, torch.tensor(labels), 7.0)
    assert float(out.image_to_text) == pytest.approx(directions[0], abs=1e-9)
    assert float(out.text_to_image) == pytest.approx(directions[1], abs=1e-9)
    assert float(out.loss) == pytest.approx(sum(directions) / 2, abs=1e-9)
    assert isinstance(out, ContrastiveOutput)


def test_invariants_of_unicl():
    image, text = pairs(5, 0)
    torch.testing.assert_close(
        unicl_loss(image, text, torch.full((5,), -1), 9.0).loss, clip_loss(image, text, 9.0).loss
    )
    torch.testing.assert_close(PrefixConditioningObjective()(image, text).loss, clip_loss(image, text, 1 / 0.07).loss)
    same = unicl_loss(image, text, torch.zeros(5, dtype=torch.long), 9.0)
    assert min(float(same.image_to_text), float(same.text_to_image)) > math.log(5)
    constant = unicl_loss(torch.ones(5, 8), torch.ones(5, 8), torch.zeros(5, dtype=torch.long), 9.0)
    assert float(constant.loss) == pytest.approx(math.log(5), abs=1e-5)
    targets = unicl_targets(torch.tensor([-1, 4, -1, 4, 0]))
    assert torch.equal(targets, targets.T)
    assert bool(targets.diagonal().all())
    assert targets.sum(1).tolist() == [1, 2, 1, 2, 1]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda v, t: unicl_loss(v, t, torch.zeros(3, dtype=torch.long), 1.0), r"labels \(3,\).*\(4,\)"),
        (lambda v, t: unicl_loss(v, t, torch.zeros(4), 1.0), "float32"),
        (lambda v, t: unicl_loss(v, t, torch.zeros(4, 1, dtype=torch.long), 1.0), r"labels \(4, 1\)"),
        (lambda v, t: unicl_loss(v, t[:3], torch.zeros(4, dtype=torch.long), 1.0), "text_features"),
        (lambda v, t: unicl_loss(v, t, torch.zeros(4, dtype=torch.long), 0.0), "scale=0.0"),
        (lambda v, t: unicl_loss(v * math.nan, t, torch.zeros(4, dtype=torch.long), 1.0), "NaN"),
        (lambda *_: unicl_targets(torch.zeros(2, 2, dtype=torch.long)), r"labels \(2, 2\)"),
        (lambda *_: unicl_targets(torch.tensor(1)), r"labels \(\)"),
        (lambda v, t: PrefixConditioningObjective("clip")(v, t, torch.zeros(3, dtype=torch.long)), r"labels \(3,\)"),
        (lambda v, t: PrefixConditioningObjective("clip")(v, t, torch.zeros(4)), "float32"),
        (lambda *_: PrefixConditioningObjective("siglip"), "objective='siglip'.*unicl, clip"),
    ],
)
def test_bad_losses(call, match):
    with pytest.raises(ValueError, match=match):
        call(*pairs(4, 0))


# Data -----------------------------------------------------------------------------------------------------------------


def test_an_epoch_is_one_source_a_batch_and_every_sample_once():
    batches = list(debiased_batches([10, 3, 25], 4, rng()))
    assert Counter(source for source, _ in batches) == {0: 2, 2: 6}  # source 1 has no full batch
    for source, size in ((0, 10), (2, 25)):
        seen = torch.cat([batch for c, batch in batches if c == source]).tolist()
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(range(size))
    assert all(batch.dtype == torch.int64 and len(batch) == 4 for _, batch in batches)
    everything = list(debiased_batches([10, 3, 25], 4, rng(), drop_last=False))
    assert sorted((c, i) for c, batch in everything for i in batch.tolist()) == [
        (c, i) for c, size in enumerate((10, 3, 25)) for i in range(size)
    ]
    assert list(debiased_batches([3, 0], 4, rng())) == []  # no full batch: all of it is the rest


def test_sources_are_mixed_over_the_epoch_and_the_seed_decides():
    def order(seed):
        return [(c, batch.tolist()) for c, batch in debiased_batches([40, 40], 2, rng(seed))]

    sources = [source for source, _ in order(0)]
    assert sources != sorted(sources)
    assert 5 <= sum(sources[:20]) <= 15
    assert order(0) == order(0) != order(1)


def test_weighted_batches_walk_through_permutations():
    batches = list(debiased_batches([10, 7], 3, rng(), weights=[1, 3], num_batches=400))
    assert len(batches) == 400
    share = sum(source for source, _ in batches) / 400
    assert 0.65 < share < 0.85
    for c, size in ((0, 10), (1, 7)):
        seen = torch.cat([batch for source, batch in batches if source == c])
        for part in seen.split(size)[:-1]:
            assert sorted(part.tolist()) == list(range(size))
    never = debiased_batches([0, 4], 8, rng(), weights=[0.0, 1.0], num_batches=3)
    assert [(c, len(batch)) for c, batch in never] == [(1, 8)] * 3


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"sizes": []}, r"sizes=\(\)"),
        ({"sizes": [3, -1]}, r"sizes=\(3, -1\)"),
        ({"weights": [1, 1]}, "num_batches=None"),
        ({"num_batches": 3}, "weights=None"),
        ({"weights": [1], "num_batches": 3}, "one for each of 2"),
        ({"weights": [1, -1], "num_batches": 3}, "none negative"),
        ({"weights": [0, 0], "num_batches": 3}, "not all 0"),
        ({"weights": [math.nan, 1], "num_batches": 3}, "weights"),
        ({"sizes": [4, 0], "weights": [1, 1], "num_batches": 3}, r"sizes\[1\]=0"),
        ({"weights": [1, 1], "num_batches": -1}, "num_batches=-1"),
    ],
)
def test_bad_batches(change, match):
    with pytest.raises(ValueError, match=match):
        next(debiased_batches(**{"sizes": [4, 4], "batch_size": 2, "generator": rng()} | change))


def test_labels_become_sentences():
    templates = ["a photo of a {}.", "a {} here", lambda name: f"an {name}"]
    labels = torch.arange(3).repeat(100)
    said = labels_to_prompts(labels, ["ant", "owl", "eel {x}"], templates, rng())
    assert len(said) == 300
    assert set(said[0::3]) == {"a photo of a ant.", "a ant here", "an ant"}
    assert set(said[2::3]) == {"a photo of a eel {x}.", "a eel {x} here", "an eel {x}"}
    assert min(Counter(said[0::3]).values()) > 20
    assert said == labels_to_prompts(labels.tolist(), ["ant", "owl", "eel {x}"], templates, rng())
    assert list(islice(said, 5)) != labels_to_prompts(labels[:5], ["ant", "owl", "eel {x}"], templates, rng(5))
    assert labels_to_prompts([], ["ant"], ["{}"], rng()) == []


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": [0, 2]}, r"labels hold 2.*\[0, 2\)"),
        ({"labels": torch.tensor([-1])}, "labels hold -1"),
        ({"templates": []}, r"templates=\[\]"),
        ({"templates": "{}"}, "must be a list"),
        ({"templates": ["a photo"]}, "'a photo', which has no"),
    ],
)
def test_bad_prompts(change, match):
    given = {"labels": [0, 1], "class_names": ["ant", "owl"], "templates": ["{}"], "generator": rng()}
    with pytest.raises(ValueError, match=match):
        labels_to_prompts(**given | change)
