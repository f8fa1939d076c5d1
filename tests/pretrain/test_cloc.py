import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveal.data.record import Region, Sample
from foveal.pretrain.base import LogitScale
from foveal.pretrain.cloc import (
    ClocObjective,
    Prompter,
    encode_boxes,
    grounding_loss,
    region_batch,
    region_recall,
    region_text_contrastive,
    sample_regions,
)
from foveal.pretrain.cloc_towers import PatchTower, TextTower

from .cloc_inputs import REGIONS, at_the_prompt, batch, objective

torch.set_num_threads(1)
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "golden/cloc.npz").items()}


def golden(case):
    return {name.split("__", 1)[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}__")}


def close(actual, expected, tolerance=2e-4):
    expected = torch.as_tensor(expected).double()
    assert actual.shape == expected.shape
    assert float((actual.detach().double() - expected).abs().max()) <= tolerance


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def random_boxes(*shape, seed=0):
    corners = torch.rand(*shape, 2, 2, generator=torch.Generator().manual_seed(seed)).double()
    return corners.sort(-2).values.flatten(-2)


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


# Golden ---------------------------------------------------------------------------------------------------------------


def test_golden_boxes():
    ref = golden("enc")
    close(encode_boxes(ref["boxes"], int(ref["num_frequencies"])), ref["out"], 1e-3)


def test_golden_contrast():
    ref = golden("rtc")
    arguments = ref["region"], ref["text"], float(ref["scale"]), ref["mask"], float(ref["threshold"])
    out = region_text_contrastive(*arguments)
    for name in ("loss", "r2t", "t2r"):
        close(getattr(out, name), ref[name])


@pytest.mark.parametrize("pool", ["mean", "prompt"])
def test_golden_prompter(pool):
    ref = golden("prompter")
    model = Prompter(8, 6, int(ref["heads"]), int(ref["num_frequencies"]), pool=pool)
    weights = {name.removeprefix("w."): value for name, value in ref.items() if name.startswith("w.")}
    assert set(model.state_dict()) == set(weights)
    model.load_state_dict(weights)
    close(model(ref["tokens"], model.embed_boxes(ref["boxes"])), ref[f"out_box_{pool}"], 1e-3)
    close(model(ref["tokens"], model.embed_text(ref["text"])), ref[f"out_text_{pool}"], 1e-3)


@pytest.mark.parametrize("kind", ["l2", "l1", "l1_giou"])
def test_golden_grounding(kind):
    ref = golden("ground")
    close(grounding_loss(ref["pred"], ref["target"], ref["mask"], kind), ref[kind])


# Prompter -------------------------------------------------------------------------------------------------------------


def test_box_encoding():
    boxes = random_boxes(3, 2)
    found = encode_boxes(boxes, 3)
    assert found.shape == (3, 2, 24)
    for place, c in enumerate(boxes[1, 0].tolist()):
        expected = [f(2**k * math.pi * c) for f in (math.sin, math.cos) for k in range(3)]
        assert found[1, 0, 6 * place : 6 * place + 6].tolist() == pytest.approx(expected)
    left, right = encode_boxes(torch.tensor([0.3, 0.7, 0.3, 0.7])).chunk(2)
    assert torch.equal(left, right)  # a point
    assert encode_boxes(torch.tensor([0, 0, 1, 1])).isfinite().all()
    for bad in ([0, 0, 8, 8], [-0.1, 0, 1, 1], [0.5, 0, 0.4, 1], [0, 0.5, 1, 0.4], [0, 0, 1, math.nan]):
        with pytest.raises(ValueError, match="boxes hold numbers"):
            encode_boxes(torch.tensor(bad))
    with pytest.raises(ValueError, match=r"boxes \(3,\) must end in 4"):
        encode_boxes(torch.zeros(3))
    with pytest.raises(ValueError, match="num_frequencies=0"):
        encode_boxes(torch.zeros(4), 0)


def plain_layer(model, tokens, prompts):
    """The same layer by torch's own modules, one sequence for each prompt."""
    rows = []
    for m in range(prompts.shape[1]):
        x = torch.cat([prompts[:, m : m + 1], tokens], 1)
        normed = model.norm1(x)
        x = x + model.attn(normed, normed, normed, need_weights=False)[0]
        x = model.norm_out(x + model.fc2(F.gelu(model.fc1(model.norm2(x)))))
        rows.append(x.mean(1) if model.pool == "mean" else x[:, 0])
    return torch.stack(rows, 1)


@pytest.mark.parametrize("pool", ["mean", "prompt"])
@pytest.mark.parametrize("heads", [1, 2])
def test_prompter_is_a_transformer_layer_for_each_prompt(pool, heads):
    model = seeded(lambda: Prompter(8, 5, heads, pool=pool)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(parameter.numel()))
    tokens, prompts = 3 * random(2, 7, 8), 3 * random(2, 4, 8, seed=1)
    found, expected = model(tokens, prompts), plain_layer(model, tokens, prompts)
    torch.testing.assert_close(found, expected)
    weights = random(2, 4, 8, seed=2)
    names = [name for name, _ in model.named_parameters() if "proj" not in name or name.startswith("attn")]
    used = [model.get_parameter(name) for name in names]
    for left, right in zip(*(torch.autograd.grad((x * weights).sum(), used) for x in (found, expected)), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("pool", ["mean", "prompt"])
def test_prompts_do_not_see_each_other(pool):
    model, tokens, boxes = (
        seeded(lambda: Prompter(8, 5, pool=pool)),
        random(2, 7, 8).float(),
        random_boxes(2, 5).float(),
    )
    together = model(tokens, model.embed_boxes(boxes))
    alone = model(tokens, model.embed_boxes(boxes[:, 2:3]))
    torch.testing.assert_close(together[:, 2:3], alone)
    assert (together[:, 0] - together[:, 1]).abs().max() > 1e-3
    assert model(tokens, model.embed_boxes(boxes[:, :0])).shape == (2, 0, 8)


def test_bad_prompter():
    for options, match in (
        ({"pool": "max"}, "pool='max'"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"num_frequencies": 0}, "num_frequencies=0"),
    ):
        with pytest.raises(ValueError, match=match):
            Prompter(8, 5, **options)
    model, tokens = Prompter(8, 5), torch.ones(2, 7, 8)
    for prompts in (torch.ones(2, 8), torch.ones(3, 1, 8), torch.ones(2, 1, 7)):
        with pytest.raises(ValueError, match="prompts"):
            model(tokens, prompts)
    with pytest.raises(ValueError, match="tokens"):
        model(torch.ones(2, 7, 7), torch.ones(2, 1, 8))
    with pytest.raises(ValueError, match="text_dim=5"):
        model.embed_text(torch.ones(2, 1, 6))
    with pytest.raises(ValueError, match=r"\(B, M, 4\)"):
        model.embed_boxes(torch.zeros(2, 4))


# Regions --------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(0, 99), st.sampled_from([None, 0.9, 0.3]))
def test_contrast_against_a_slow_loop(count, seed, ignore_above):
    region, text = random(count, 3, seed=seed), random(count, 3, seed=seed + 1)
    mask = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.7
    z, t = F.normalize(region, dim=-1), F.normalize(text, dim=-1)
    totals = [0.0, 0.0]
    for i in range(count):
        for way, (left, right) in enumerate(((z, t), (t, z))):
            if not mask[i]:
                continue
            terms = []
            for j in range(count):
                repeated = ignore_above is not None and float(t[i] @ t[j]) > ignore_above
                if j == i or (mask[j] and not repeated):
                    terms.append(math.exp(4.0 * float(left[i] @ right[j])))
            totals[way] += math.log(sum(terms)) - 4.0 * float(left[i] @ right[i])
    real = max(int(mask.sum()), 1)
    out = region_text_contrastive(region, text, 4.0, mask, ignore_above)
    assert [float(out.r2t), float(out.t2r)] == pytest.approx([total / real for total in totals], abs=1e-9)
    assert float(out.loss) == pytest.approx(sum(totals) / 2 / real, abs=1e-9)


def test_contrast_invariants():
    region, text = random(6, 6), torch.eye(6).double()
    plain = 5.0 * F.normalize(region, dim=-1) @ text.T
    expected = (F.cross_entropy(plain, torch.arange(6)) + F.cross_entropy(plain.T, torch.arange(6))) / 2
    for ignore_above in (None, 0.9):
        torch.testing.assert_close(region_text_contrastive(region, text, 5.0, None, ignore_above).loss, expected)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(region_text_contrastive(region[order], text[order], 5.0).loss, expected)
    same = text[:1].expand(6, -1)  # nothing but repetitions: only the diagonal is left
    assert float(region_text_contrastive(region, same, 5.0).loss) == pytest.approx(0, abs=1e-9)
    assert float(region_text_contrastive(region, same, 5.0, ignore_above=None).r2t) == pytest.approx(math.log(6))


@pytest.mark.parametrize("hidden", [7.0, math.nan])
def test_masked_rows_do_not_matter(hidden):
    region, text = random(5, 4).requires_grad_(), random(5, 4, seed=1).requires_grad_()
    mask = torch.tensor([True, False, True, True, False])
    spoilt = [torch.where(mask[:, None], x.detach(), hidden).requires_grad_() for x in (region, text)]
    left, right = region_text_contrastive(region, text, 5.0, mask), region_text_contrastive(*spoilt, 5.0, mask)
    torch.testing.assert_close(left.loss, right.loss)
    right.loss.backward()
    assert all(x.grad.isfinite().all() and x.grad[~mask].abs().max() == 0 for x in spoilt)
    short = region_text_contrastive(region[mask], text[mask], 5.0)
    torch.testing.assert_close(left.loss, short.loss)


def test_no_regions_at_all():
    region, text = random(3, 4).requires_grad_(), random(3, 4, seed=1).requires_grad_()
    nothing = torch.zeros(3, dtype=torch.bool)
    out = region_text_contrastive(region, text, 5.0, nothing)
    assert out.loss == out.r2t == out.t2r == 0
    boxes = random_boxes(3).requires_grad_()
    lost = grounding_loss(boxes, random_boxes(3, seed=1), nothing)
    assert lost == 0
    for gradient in torch.autograd.grad(out.loss + lost, (region, text, boxes)):
        assert gradient.abs().max() == 0
    assert region_text_contrastive(region[:1], text[:1], 5.0).loss == 0  # nobody to be told from
    empty = [x[:0].detach().requires_grad_() for x in (region, text)]
    out = region_text_contrastive(*empty, 5.0)
    assert out.loss == out.r2t == out.t2r == 0
    assert all(gradient.shape == (0, 4) for gradient in torch.autograd.grad(out.loss, empty))


@pytest.mark.parametrize("wide", [0, 1])
def test_sides_of_different_dtypes(wide):
    double = random(5, 4), random(5, 4, seed=1)
    mixed = [x if side == wide else x.float() for side, x in enumerate(double)]
    loss = region_text_contrastive(*mixed, 5.0).loss
    assert loss.dtype == torch.double
    torch.testing.assert_close(loss, region_text_contrastive(*double, 5.0).loss, atol=1e-6, rtol=1e-6)


def test_no_cosine_is_above_one():
    """That of equal texts may come out as 1.0000001: they stay negatives all the same."""
    region, text = random(6, 8, seed=1).float(), random(1, 8).float().expand(6, -1)
    for ignore_above in (None, 1.0):
        found = region_text_contrastive(region, text, 5.0, ignore_above=ignore_above)
        assert float(found.r2t) == pytest.approx(math.log(6))


def test_the_choice_of_negatives_carries_no_gradient():
    """At the threshold itself the loss is still smooth in the texts."""
    region, text = random(5, 4).requires_grad_(), random(5, 4, seed=1).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda z, t, s: region_text_contrastive(z, t, s, None, 0.2).loss, (region, text, scale)
    )


def test_bad_regions():
    region, text = random(3, 4), random(3, 4, seed=1)
    for change, match in (
        ({"text": random(3, 5)}, "alike"),
        ({"region": random(3)}, "alike"),
        ({"logit_scale": 0.0}, "logit_scale=0.0"),
        ({"mask": torch.ones(3)}, "mask"),
        ({"mask": torch.ones(2, dtype=torch.bool)}, "mask"),
        ({"ignore_above": 2.0}, "ignore_above=2.0"),
        ({"region": region * math.nan}, "region holds NaN"),
        ({"text": text * math.inf}, "text holds NaN"),
    ):
        with pytest.raises(ValueError, match=match):
            region_text_contrastive(**{"region": region, "text": text, "logit_scale": 1.0, **change})
    boxes = random_boxes(3)
    for arguments, match in (
        ((boxes, boxes, None, "l3"), "kind='l3'"),
        ((boxes, boxes[:2]), "alike"),
        ((boxes[:, :3], boxes[:, :3]), "alike"),
        ((boxes * math.nan, boxes), "pred holds NaN"),
    ):
        with pytest.raises(ValueError, match=match):
            grounding_loss(*arguments)


def test_grounding():
    boxes, target = random_boxes(4), random_boxes(4, seed=1)
    difference = boxes - target
    torch.testing.assert_close(grounding_loss(boxes, target), difference.square().sum(1).mean())
    torch.testing.assert_close(grounding_loss(boxes, target, kind="l1"), difference.abs().sum(1).mean())
    assert grounding_loss(target, target, kind="l1_giou") == pytest.approx(0)
    apart = torch.tensor([[0.0, 0.0, 0.1, 0.1]]), torch.tensor([[0.9, 0.9, 1.0, 1.0]])
    assert float(grounding_loss(*apart, kind="l1_giou")) == pytest.approx(3.6 + 1 + 0.98, abs=1e-5)


def test_sampling():
    rng = torch.Generator().manual_seed(0)
    valid = torch.tensor([[True, False, True, True, True], [False, True, False, False, False], [False] * 5])
    counts = torch.zeros(5)
    for _ in range(800):
        index, mask = sample_regions(valid, 2, rng)
        assert (index.dtype, index.shape, mask.shape) == (torch.int64, (3, 2), (3, 2))
        assert mask.tolist() == [[True, True], [True, False], [False, False]]
        assert len(set(index[0].tolist())) == 2
        assert index[1].tolist() == [1, 0]
        assert index[2].tolist() == [0, 0]
        counts += F.one_hot(index[0], 5).sum(0)
    assert counts[1] == 0
    assert ((counts[[0, 2, 3, 4]] - 400).abs() < 70).all()
    index, mask = sample_regions(valid, 7, rng)
    assert mask.sum(1).tolist() == [4, 1, 0]
    assert sorted(index[0, :4].tolist()) == [0, 2, 3, 4]
    assert index[~mask].eq(0).all()
    assert sample_regions(valid, 2, None)[0].tolist() == [[0, 2], [1, 0], [0, 0]]
    assert sample_regions(valid[:, :0], 2, rng)[1].shape == (3, 2)
    for bad, num in ((valid.long(), 2), (valid[0], 2), (valid, 0)):
        with pytest.raises(ValueError, match=r"valid|num=0"):
            sample_regions(bad, num, rng)


def test_recall():
    region = torch.eye(4)
    assert region_recall(region, region).tolist() == [[1, 1]] * 3
    text = torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0.6, 0.5, 0, 0.1]])
    # regions 0 and 1 find each other's texts first; text 3 is nearer to regions 0 and 1 than to its own
    assert region_recall(region, text, (1, 2, 3)).tolist() == [[0.5, 0.25], [0.5, 0.75], [1.0, 1.0]]
    same = torch.ones(7, 33, dtype=torch.float32) * torch.rand(7, 1, generator=torch.Generator().manual_seed(0))
    assert region_recall(random(7, 33), same, (1,))[0, 0] == 1  # equal texts: none scores strictly higher
    for arguments, match in (
        ((region, region[:3]), "alike"),
        ((region, region, ()), "ks="),
        ((region, region, (0,)), "ks="),
        ((region * math.nan, region), "region holds NaN"),
    ):
        with pytest.raises(ValueError, match=match):
            region_recall(*arguments)


# Objective ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [objective, at_the_prompt])
def test_objective_is_the_weighted_sum(build):
    model = build()
    model.region_scale.log_scale.data.fill_(1.0)
    images, caption_ids, caption_mask, ids, id_mask, boxes, valid = inputs = batch(3, 0)
    out = model(*inputs)
    index, mask = sample_regions(valid, model.num_regions, None)
    tokens, pooled = model.image_encoder(images)
    region, texts, targets = [], [], []
    for b in range(3):
        for place in index[b][mask[b]].tolist():
            region.append(model.region_features(tokens[b : b + 1], boxes[b : b + 1, place : place + 1])[0, 0])
            texts.append(model.text_encoder(ids[b : b + 1, place], id_mask[b : b + 1, place])[0])
            targets.append((b, boxes[b, place]))
    contrast = region_text_contrastive(torch.stack(region), torch.stack(texts), math.e, None, model.ignore_above)
    torch.testing.assert_close(out.region_text, contrast.loss)
    found = [
        model.ground(tokens[b : b + 1], text[None, None])[0, 0] for (b, _), text in zip(targets, texts, strict=True)
    ]
    grounding = grounding_loss(torch.stack(found), torch.stack([box for _, box in targets]), kind=model.box_loss)
    torch.testing.assert_close(out.grounding, grounding)
    image, caption = model.image_projection(pooled), model.text_encoder(caption_ids, caption_mask)
    scores = F.normalize(image, dim=-1) @ F.normalize(caption, dim=-1).T / 0.07
    clip = (F.cross_entropy(scores, torch.arange(3)) + F.cross_entropy(scores.T, torch.arange(3))) / 2
    torch.testing.assert_close(out.clip, clip)
    weighted = clip + model.lambda_region * contrast.loss + model.lambda_ground * grounding
    torch.testing.assert_close(out.loss, weighted)
    assert isinstance(model.logit_scale, LogitScale)
    model.region_scale.log_scale.data.fill_(9.0)
    model.clamp_()
    assert model.region_scale().item() == pytest.approx(100)


@pytest.mark.parametrize("places", [REGIONS, 0])
def test_a_batch_without_regions_trains_as_clip(places):
    model = objective()
    *inputs, valid = batch(3, 0)
    inputs[4] = torch.zeros_like(inputs[4])
    inputs[3:] = [x[:, :places] for x in inputs[3:]]
    out = model(*inputs, torch.zeros_like(valid)[:, :places])
    assert out.region_text == out.grounding == 0
    assert out.loss == out.clip
    out.loss.backward()
    for name, parameter in model.named_parameters():  # all take part, as DDP wants it
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize(
    ("weight", "name"),
    [("image_projection.bias", "image_features"), ("text_encoder.out.bias", "caption_features")],
)
def test_the_error_names_what_is_not_finite(weight, name):
    model, inputs = objective(), batch(3, 0)
    inputs[-1][:] = False  # no region's text is read
    model.get_parameter(weight).data.fill_(math.nan)
    with pytest.raises(ValueError, match=f"^{name} holds NaN"):
        model(*inputs)


def test_regions_are_drawn_by_the_generator():
    model = objective(num_regions=1)
    inputs = batch(6, 0)
    losses = [model(*inputs, torch.Generator().manual_seed(seed)).region_text.item() for seed in (0, 0, 1, 2)]
    assert losses[0] == losses[1]
    assert len(set(losses)) > 1


@pytest.mark.parametrize(
    ("options", "match"),
    [({"num_regions": 0}, "num_regions=0"), ({"box_loss": "l3"}, "box_loss='l3'"), ({"pool": "max"}, "pool='max'")],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        objective(**options)


def test_processes_refuse_together(two_processes):
    """Only the second process has a box in pixels."""
    for result in two_processes:
        assert "not pixels" in result["cloc"]["pixels"]


def test_on_transformers_clip():
    """A training step of the real classes on a batch made of samples."""
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 28, "eos_token_id": 29, "pad_token_id": 0}
    config = transformers.CLIPTextConfig(**size, vocab_size=30, max_position_embeddings=8, projection_dim=12, **ends)
    vision = transformers.CLIPVisionConfig(**{**size, "hidden_size": 24}, image_size=16, patch_size=8)
    eyes, reader = seeded(
        lambda: (
            PatchTower(transformers.CLIPVisionModel(vision)),
            TextTower(transformers.CLIPTextModelWithProjection(config)),
        )
    )
    model = seeded(lambda: ClocObjective(eyes, reader, 24, 12))
    picture = np.zeros((8, 16, 3), np.uint8)
    regions = (Region((4, 2, 12, 8), caption="aa"), Region((0, 0, 8, 4), label="bb"), Region((0, 0, 1, 1)))
    samples = [Sample("a", (picture,), ("abc",), regions=regions), Sample("b", (picture,), ("cab",))]

    def tokenize(texts):
        ids = torch.tensor([[28, *(ord(c) - 96 for c in text.ljust(3, "`")), 29] for text in texts])
        return ids, (ids != 0).long()

    made = region_batch(samples, tokenize, 3)
    assert made["valid"].tolist() == [[True, True, False], [False] * 3]
    torch.testing.assert_close(made["boxes"][0, :2], torch.tensor([[0.25, 0.25, 0.75, 1.0], [0.0, 0.0, 0.5, 0.5]]))
    assert made["region_ids"].shape == (2, 3, 5)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    tokens, pooled = eyes(pixels)
    assert (tokens.shape, pooled.shape) == ((2, 4, 24), (2, 24))
    model(pixels, **made, generator=torch.Generator().manual_seed(0)).loss.backward()
    used = [parameter for name, parameter in model.named_parameters() if name.endswith("weight")]
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in used)
    with pytest.raises(ValueError, match="0 samples"):
        region_batch([], tokenize)
    with pytest.raises(ValueError, match="has no caption"):
        region_batch([replace(samples[0], captions=())], tokenize)
    for tower, inputs, match in (
        (PatchTower(nn.Identity()), (pixels,), "an? Identity, which gives no pooler_output"),
        (TextTower(Silent()), (made["caption_ids"], made["caption_mask"]), "a Silent, which gives neither"),
    ):
        with pytest.raises(ValueError, match=match):
            tower(*inputs)


class Silent(nn.Module):
    def forward(self, input_ids, attention_mask):
        return None
