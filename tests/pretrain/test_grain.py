import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from foveal.nn.boxes import corners, giou
from foveal.pretrain.grain import (
    GrainDecoder,
    GrainObjective,
    box_losses,
    class_prototypes,
    image_caption_loss,
    match_boxes,
    region_description_loss,
    select_regions,
    zero_shot_logits,
)

torch.set_num_threads(1)
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "golden/grain.npz").items()}


def golden(case):
    return {name.split("__", 1)[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}__")}


def close(actual, expected):
    expected = torch.as_tensor(expected).double()
    assert actual.shape == expected.shape
    assert float((actual.detach().double() - expected).abs().max()) <= 1e-4 + 1e-4 * float(expected.abs().max())


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def some(batch=3, queries=4, targets=5, width=8, seed=0):
    """Predictions, targets, a mask that hides some of them, region vectors and descriptions."""
    rng = torch.Generator().manual_seed(seed)
    pred, target = (torch.rand(batch, n, 4, generator=rng) * 0.6 + 0.1 for n in (queries, targets))
    mask = torch.rand(batch, targets, generator=rng) < 0.6
    mask[0] = False
    region, desc = (torch.randn(batch, n, width, generator=rng) for n in (queries, targets))
    return pred, target, mask, region, desc


# Golden numbers -------------------------------------------------------------------------------------------------------


def test_golden_matching_and_losses():
    ref = golden("set")
    pred = ref["pred"].requires_grad_()
    match = match_boxes(pred, ref["target"], ref["mask"])
    assert match.dtype == torch.int64
    assert torch.equal(match, ref["match"])
    l1, overlap = box_losses(pred, ref["target"], ref["mask"], match)
    close(l1, ref["l1"])
    close(overlap, ref["giou"])
    (l1 + overlap).backward()
    close(pred.grad, ref["grad"])
    region, desc = ref["region"].requires_grad_(), ref["desc"].requires_grad_()
    loss = region_description_loss(region, desc, ref["mask"], match, float(ref["scale"]))
    close(loss, ref["desc_loss"])
    loss.backward()
    close(region.grad, ref["grad_region"])
    close(desc.grad, ref["grad_desc"])
    close(image_caption_loss(ref["image"], ref["caption"], float(ref["scale"])), ref["clip"])


def test_golden_decoder():
    ref = golden("dec")
    weights = {name[2:]: value for name, value in ref.items() if name.startswith("w.")}
    queries, d_model = weights["queries"].shape
    decoder = GrainDecoder(
        ref["features"].shape[2],
        weights["image_proj"].shape[1],
        queries - 1,
        d_model,
        int(ref["heads"]),
        int(ref["layers"]),
        int(ref["dim_ff"]),
    ).eval()
    decoder.load_state_dict(weights)
    found = decoder(ref["features"])
    for name in ("image", "regions", "boxes"):
        close(getattr(found, name), ref[name])


def test_golden_selection_and_prototypes():
    ref = golden("sel")
    boxes, mask, index = select_regions(ref["boxes"], ref["scores"], (640, 480), int(ref["k"]), float(ref["threshold"]))
    close(boxes, ref["out"])
    assert torch.equal(mask, ref["mask"])
    assert torch.equal(index, ref["index"])
    ref = golden("proto")
    close(class_prototypes(ref["text"], ref["cls"], len(ref["out"])), ref["out"])


# Matching and losses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [1, 2, 5])
def test_the_match_is_the_cheapest_of_all(targets):
    pred, target, mask, *_ = some(queries=3, targets=targets, seed=targets)
    match = match_boxes(pred, target, mask)
    for p, t, valid, found in zip(pred, target, mask, match, strict=True):
        places = valid.nonzero()[:, 0].tolist()
        assert sorted(match_index for match_index in found.tolist() if match_index >= 0) == sorted(
            set(found.tolist()) - {-1}
        )
        assert int((found >= 0).sum()) == min(len(p), len(places))
        assert set(found.tolist()) - {-1} <= set(places)

        def cost(pairs, p=p, t=t):
            return sum(float(5 * (p[q] - t[i]).abs().sum() - 2 * giou(corners(p[q]), corners(t[i]))) for q, i in pairs)

        ours = cost([(q, i) for q, i in enumerate(found.tolist()) if i >= 0])
        size = min(len(p), len(places))
        candidates = [
            list(zip(queries, chosen, strict=True))
            for queries in itertools.permutations(range(len(p)), size)
            for chosen in itertools.combinations(places, size)
        ]
        assert ours == pytest.approx(min(map(cost, candidates)), abs=1e-5)


def test_costs_change_the_match():
    pred = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.9, 0.9]]])
    target = torch.tensor([[[0.75, 0.5, 0.2, 0.2]]])  # nearer to the first in numbers, inside the second
    assert match_boxes(pred, target, torch.ones(1, 1)).tolist() == [[0, -1]]
    assert match_boxes(pred, target, torch.ones(1, 1), cost_bbox=0).tolist() == [[-1, 0]]


def test_perfect_boxes_cost_nothing():
    _, target, mask, *_ = some()
    l1, overlap = box_losses(target, target, mask, match_boxes(target, target, mask))
    assert l1 == overlap == 0


def test_losses_by_hand():
    pred, target, mask, region, desc = some()
    match = match_boxes(pred, target, mask)
    l1 = overlap = ce = 0.0
    pairs = [(b, q, int(t)) for b, row in enumerate(match) for q, t in enumerate(row) if t >= 0]
    every = [(b, t) for b in range(len(mask)) for t in range(mask.shape[1]) if mask[b, t]]
    for b, q, t in pairs:
        l1 += float((pred[b, q] - target[b, t]).abs().sum())
        overlap += float(1 - giou(corners(pred[b, q]), corners(target[b, t])))
        scores = torch.stack([7 * F.cosine_similarity(region[b, q], desc[other], dim=0) for other in every])
        ce -= float(scores.log_softmax(0)[every.index((b, t))])
    found = box_losses(pred, target, mask, match)
    close(found[0], l1 / len(every))
    close(found[1], overlap / len(every))
    close(region_description_loss(region, desc, mask, match, 7.0), ce / len(pairs))


def test_targets_may_move_with_their_descriptions():
    pred, target, mask, region, desc = some()
    order = torch.tensor([3, 0, 4, 1, 2])
    match, moved = match_boxes(pred, target, mask), match_boxes(pred, target[:, order], mask[:, order])
    plain, other = (
        [*box_losses(pred, t, m, x), region_description_loss(region, d, m, x, 5.0)]
        for t, m, x, d in ((target, mask, match, desc), (target[:, order], mask[:, order], moved, desc[:, order]))
    )
    for a, b in zip(plain, other, strict=True):
        torch.testing.assert_close(a, b)


def test_hidden_rows_change_nothing_even_when_they_hold_nan():
    pred, target, mask, region, desc = some()
    more = [torch.cat([x, torch.full_like(x[:, :2], float("nan"))], 1) for x in (target, desc)]
    wider = torch.cat([mask, torch.zeros_like(mask[:, :2])], 1)
    match = match_boxes(pred, target, mask)
    assert torch.equal(match_boxes(pred, more[0], wider), match)
    region = region.requires_grad_()
    loss = region_description_loss(region, more[1], wider, match, 5.0)
    torch.testing.assert_close(loss, region_description_loss(region, desc, mask, match, 5.0))
    loss.backward()
    assert region.grad.isfinite().all()
    for a, b in zip(box_losses(pred, more[0], wider, match), box_losses(pred, target, mask, match), strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_to_match_is_zero_with_gradient():
    pred, target, mask, region, desc = some()
    pred, region, desc = (x.requires_grad_() for x in (pred, region, desc))
    none = torch.zeros_like(mask)
    match = match_boxes(pred, target, none)
    assert (match == -1).all()
    loss = sum(box_losses(pred, target, none, match)) + region_description_loss(region, desc, none, match, 5.0)
    assert loss == 0
    loss.backward()
    assert not any(x.grad.any() for x in (pred, region, desc))


def test_one_side_in_double_precision():
    pred, target, mask, region, desc = some()
    match = match_boxes(pred, target, mask)
    expected = region_description_loss(region.double(), desc.double(), mask, match, 5.0)
    for a, b in ((region.double(), desc), (region, desc.double())):
        close(region_description_loss(a, b, mask, match, 5.0), expected)
    image, caption = region[:, 0], desc[:, 0]
    expected = image_caption_loss(image.double(), caption.double(), 5.0)
    for a, b in ((image.double(), caption), (image, caption.double())):
        close(image_caption_loss(a, b, 5.0), expected)


def test_bad_input_of_the_losses():
    pred, target, mask, region, desc = some()
    match = match_boxes(pred, target, mask)
    for arguments in ((pred[0], target, mask), (pred, target[:2], mask), (pred, target, mask[:, :2])):
        with pytest.raises(ValueError, match=r"pred|mask"):
            match_boxes(*arguments)
    with pytest.raises(ValueError, match="NaN"):
        match_boxes(pred * float("nan"), target, mask)
    with pytest.raises(ValueError, match="match"):
        box_losses(pred, target, mask, match[:, :2])
    with pytest.raises(ValueError, match="hides"):
        box_losses(pred, target, torch.zeros_like(mask), match)
    with pytest.raises(ValueError, match="match holds"):
        region_description_loss(region, desc, mask, match + 5, 5.0)
    with pytest.raises(ValueError, match="desc"):
        region_description_loss(region, desc[..., :3], mask, match, 5.0)
    with pytest.raises(ValueError, match="logit_scale=-1"):
        region_description_loss(region, desc, mask, match, -1.0)
    with pytest.raises(ValueError, match="NaN"):
        region_description_loss(region * float("nan"), desc, mask, match, 5.0)


# Decoder --------------------------------------------------------------------------------------------------------------


def decoder(**changes):
    return seeded(
        lambda: GrainDecoder(
            12, 6, **{"num_queries": 3, "d_model": 16, "num_heads": 4, "num_layers": 2, "dim_ff": 24, **changes}
        )
    )


def test_decoder_names_and_shapes():
    model = decoder()
    assert {name.split(".")[0] for name in model.state_dict()} == {
        *("proj", "memory_norm", "queries", "layers", "norm", "box_head", "image_proj", "region_proj")
    }
    found = model(torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0)))
    assert (found.image.shape, found.regions.shape, found.boxes.shape) == ((2, 6), (2, 3, 6), (2, 3, 4))
    assert ((found.boxes > 0) & (found.boxes < 1)).all()


def test_evaluation_is_deterministic_and_training_drops():
    tokens = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    model = decoder(dropout=0.5).eval()
    assert torch.equal(model(tokens).image, model(tokens).image)
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(model(tokens).image, model(tokens).image)


def test_region_queries_reach_the_image_and_token_order_does_not_matter():
    tokens = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    model = decoder().eval()
    plain = model(tokens)
    torch.testing.assert_close(model(tokens[:, torch.tensor([2, 0, 4, 1, 3])]).boxes, plain.boxes)
    with torch.no_grad():
        model.queries[0] += 1  # of a region
    assert not torch.allclose(model(tokens).image, plain.image, atol=1e-4)


def test_bad_decoders():
    for changes, name in (({"num_queries": 0}, "num_queries"), ({"num_heads": 3}, "num_heads")):
        with pytest.raises(ValueError, match=name):
            decoder(**changes)
    with pytest.raises(ValueError, match="tokens"):
        decoder()(torch.zeros(2, 5, 11))


# Objective ------------------------------------------------------------------------------------------------------------


class Features(nn.Module):
    """Towers and decoder that hand on what they are given: the objective on features."""

    def forward(self, x, mask=None):
        return x


def real_objective():
    """On real classes of Hugging Face."""
    vision = transformers.CLIPVisionConfig(
        image_size=16, patch_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    text = transformers.CLIPTextConfig(
        vocab_size=30, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, projection_dim=6, bos_token_id=28, eos_token_id=29,
    )  # fmt: skip
    return seeded(
        lambda: GrainObjective(
            transformers.CLIPVisionModel(vision),
            transformers.CLIPTextModelWithProjection(text),
            GrainDecoder(16, 6, 2, 16, 2, 2, 24, dropout=0.0),
        )
    )


def real_batch():
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 28, (3, 6), generator=rng)
    ids[:, -1] = 29
    desc = torch.randint(1, 28, (3, 4, 6), generator=rng)
    desc[..., -1] = 29
    valid = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]).bool()
    boxes = torch.rand(3, 4, 4, generator=rng) * 0.5 + 0.2
    images = torch.randn(3, 3, 16, 16, generator=rng)
    return images, ids, torch.ones_like(ids), desc, torch.ones_like(desc), boxes, valid


def test_on_a_real_clip():
    model = real_objective()
    output = model(*real_batch())
    output.loss.backward()
    torch.testing.assert_close(output.loss, output.caption + output.l1 + output.giou + output.description)
    silent = {name for name, p in model.named_parameters() if p.grad is None}
    assert silent == set()
    assert model.decoder.region_proj.grad.abs().sum() > 0
    assert model.encode_image(real_batch()[0]).shape == (3, 6)


def test_the_final_norm_of_clip_comes_before_the_decoder():
    model, images = real_objective(), real_batch()[0]
    seen = []
    model.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.encode_image(images)
    pooled = model.vision(images).pooler_output  # the class token after that norm
    torch.testing.assert_close(seen[0][:, 0], pooled)


def test_padding_is_never_encoded():
    model, batch = real_objective(), list(real_batch())
    plain = model(*batch)
    batch[3] = batch[3].masked_fill(~batch[6][..., None], 29)
    batch[4] = batch[4] * batch[6][..., None]  # an attention mask without a single token
    batch[5] = batch[5].masked_fill(~batch[6][..., None], float("nan"))
    torch.testing.assert_close(model(*batch).loss, plain.loss)


def test_a_box_without_area_takes_its_description_along():
    model, batch = real_objective(), list(real_batch())
    batch[5][0, 0, 2] = 0  # no width
    degenerate = model(*batch)
    batch[6][0, 0] = False
    torch.testing.assert_close(degenerate.loss, model(*batch).loss)
    assert (degenerate.match[0] != 0).all()


def test_images_without_boxes_train_captions_alone():
    model, batch = real_objective(), list(real_batch())
    batch[6] = torch.zeros_like(batch[6])
    output = model(*batch)
    assert output.l1 == output.giou == output.description == 0
    torch.testing.assert_close(output.loss, output.caption)
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_weights():
    batch = real_batch()
    model = real_objective()
    model.weights = (0.5, 2.0, 0.0)
    output = model(*batch)
    torch.testing.assert_close(output.loss, 0.5 * output.caption + 2 * (output.l1 + output.giou))
    with pytest.raises(ValueError, match="weights"):
        GrainObjective(nn.Identity(), nn.Identity(), nn.Identity(), (1, 1))


def test_bad_batches():
    model = real_objective()
    for place, bad, name in (
        (5, real_batch()[5] * 100, "boxes"),
        (3, real_batch()[3][:, :2], "desc_ids"),
        (6, real_batch()[6][:, :2], "valid"),
        (1, real_batch()[1][:2], "image_features|mask"),
    ):
        batch = list(real_batch())
        batch[place] = bad
        if place == 1:
            batch[2] = batch[2][:2]
        with pytest.raises(ValueError, match=name):
            model(*batch)
    with pytest.raises(ValueError, match="vision returned"):
        GrainObjective(nn.Flatten(), model.text, model.decoder)(*real_batch())
    with pytest.raises(ValueError, match="text returned"):
        GrainObjective(model.vision, Features(), model.decoder)(
            *(x[:, None] if i == 1 else x for i, x in enumerate(real_batch()))
        )


def test_a_few_steps_find_the_boxes():
    """Ground truth in a corner that depends on the colour: the decoder learns to point there."""
    model = real_objective()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    images, ids, mask, desc, desc_mask, *_ = real_batch()
    boxes = torch.tensor([[0.25, 0.25, 0.4, 0.4], [0.75, 0.75, 0.4, 0.4], [0.25, 0.75, 0.4, 0.4]])[:, None]
    batch = images, ids, mask, desc[:, :1], desc_mask[:, :1], boxes, torch.ones(3, 1, dtype=torch.bool)
    first = model(*batch)
    for _ in range(60):
        optimiser.zero_grad()
        model(*batch).loss.backward()
        optimiser.step()
        model.logit_scale.clamp_()
    last = model(*batch)
    assert last.giou < 0.5 * first.giou
    assert last.description < 0.5 * first.description


# Zero-shot ------------------------------------------------------------------------------------------------------------


def test_prototypes_keep_their_length():
    text = torch.tensor([[2.0, 0.0], [0.0, 3.0], [5.0, 0.0]])
    prototypes = class_prototypes(text, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(prototypes, torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    logits = zero_shot_logits(torch.tensor([[3.0, 3.0]]), prototypes)
    torch.testing.assert_close(logits, torch.full((1, 2), 0.5**0.5))


def test_bad_prototypes():
    text = torch.ones(3, 2)
    for cls, classes, name in (
        ([0, 0, 0], 2, "class 1"),
        ([0, 1, 2], 2, "cls"),
        ([0, 1], 2, "cls"),
        ([0, -1, 0], 1, "cls"),
    ):
        with pytest.raises(ValueError, match=name):
            class_prototypes(text, torch.tensor(cls), classes)
    with pytest.raises(ValueError, match="NaN"):
        class_prototypes(text * float("nan"), torch.tensor([0, 0, 0]), 1)
