from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foveal.pretrain.dito import (
    DitoObjective,
    DitoRegionHead,
    SimpleFeaturePyramid,
    WindowViT,
    centerness,
    ensemble_scores,
    pool_regions,
    region_contrastive_loss,
    region_text_logits,
    roi_align,
    sample_region_boxes,
    shifted_window_features,
    window_merge,
    window_partition,
)
from foveal.pretrain.dito_windows import patch_map

torch.set_num_threads(1)
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "golden/dito.npz").items()}


def golden(case):
    return {name.split("__", 1)[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}__")}


def close(actual, expected):
    expected = torch.as_tensor(expected).double()
    assert actual.shape == expected.shape
    assert float((actual.detach().double() - expected).abs().max()) <= 1e-4 + 1e-4 * float(expected.abs().max())


def seeded(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Golden numbers -------------------------------------------------------------------------------------------------------


def test_golden_roi_align():
    ref = golden("roi")
    close(roi_align(ref["features"], ref["boxes"], int(ref["output_size"]), int(ref["sampling_ratio"])), ref["out"])


def test_golden_shifted_windows():
    ref = golden("swl")
    grid, shift = int(ref["grid"]), int(ref["shift"])

    def encode(x):
        windows = window_partition(x, grid)
        attended = (windows @ windows.mT / x.shape[-1] ** 0.5).softmax(-1) @ windows
        return window_merge(attended, grid, *x.shape[1:3])

    close(shifted_window_features(encode, ref["x"], ref["pos"], shift), ref["out"])


@pytest.mark.parametrize("mode", ["max", "mean"])
def test_golden_contrast(mode):
    given_, ref = golden("con"), golden(f"con_{mode}")
    for mask, name in ((None, ""), (given_["mask"], "_masked")):
        regions = given_["regions"].clone().requires_grad_()
        loss = region_contrastive_loss(regions, given_["text"], float(given_["scale"]), mask, mode)
        close(loss, ref[f"loss{name}"])
        loss.backward()
        close(regions.grad, ref[f"grad{name}"])


def test_golden_ensemble():
    ref = golden("ens")
    arguments = (float(ref["alpha"]), float(ref["beta"]), ref["objectness"], float(ref["power"]))
    close(ensemble_scores(ref["det"], ref["vlm"], ref["base"], *arguments), ref["out"])


# Boxes and pooling ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    scale=st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)).map(sorted).map(tuple),
    aspect=st.tuples(st.floats(0.3, 1.0), st.floats(1.0, 3.0)),
)
def test_boxes_keep_their_ranges(seed, scale, aspect):
    boxes = sample_region_boxes(2, 20, torch.Generator().manual_seed(seed), scale, aspect).double()
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    assert ((boxes >= 0) & (boxes <= 1)).all()
    for side in (width, height):
        assert ((side >= scale[0] - 1e-6) & (side <= scale[1] + 1e-6)).all()
    assert ((width / height >= aspect[0] - 1e-4) & (width / height <= aspect[1] + 1e-4)).all()


def test_boxes_are_spread():
    boxes = sample_region_boxes(1, 4000, torch.Generator().manual_seed(0))[0]
    height = boxes[:, 3] - boxes[:, 1]
    assert float(height.mean()) == pytest.approx(0.6, abs=0.02)  # uniform in [0.2, 1]
    assert float(height.std()) == pytest.approx(0.8 / 12**0.5, abs=0.02)
    room = boxes[:, 1] / (1 - height)
    assert float(room.mean()) == pytest.approx(0.5, abs=0.03)
    wide = (boxes[:, 2] - boxes[:, 0]) / height > 1
    assert 0.35 < float(wide.float().mean()) < 0.65


def test_bad_boxes():
    rng = torch.Generator()
    for scale in ((0.0, 1.0), (0.5, 0.2), (0.2, 1.1), (-1.0, 0.5)):
        with pytest.raises(ValueError, match="scale"):
            sample_region_boxes(1, 2, rng, scale)
    for aspect in ((0.0, 1.0), (2.0, 1.0), (30.0, 40.0)):
        with pytest.raises(ValueError, match="aspect"):
            sample_region_boxes(1, 2, rng, aspect=aspect)
    with pytest.raises(ValueError, match="num=0"):
        sample_region_boxes(1, 0, rng)


def test_pooling():
    x = torch.tensor([[[1.0, -5.0], [2.0, -7.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    assert pool_regions(x, mask).tolist() == [[2.0, -5.0]]
    assert pool_regions(x, mask, "mean").tolist() == [[1.5, -6.0]]
    assert pool_regions(x, ~mask & mask).tolist() == [[0.0, 0.0]]
    many = pool_regions(torch.full((1, 100, 2), 1000.0).half(), None, "mean")  # their sum is beyond half precision
    assert many.dtype == torch.float16
    assert many.tolist() == [[1000.0, 1000.0]]
    x[0, 2] = float("nan")
    assert pool_regions(x, mask).isfinite().all()
    assert pool_regions(x, mask, "mean").isfinite().all()
    for arguments, name in (((x, None, "sum"), "mode='sum'"), ((x, mask[:, :2]), "mask"), ((x[:, :0],), "no region")):
        with pytest.raises(ValueError, match=name):
            pool_regions(*arguments)


def test_order_of_regions_does_not_matter_and_the_maximum_precedes_the_norm():
    regions, text = rand(2, 3, 4, 5), rand(3, 5, seed=1)
    loss = region_contrastive_loss(regions, text, 5.0)
    torch.testing.assert_close(region_contrastive_loss(regions[:, :, [2, 0, 3, 1]], text, 5.0), loss)
    lengths = torch.tensor([1.0, 5.0, 0.1, 1.0])[:, None]  # were regions normalised first, this would change nothing
    assert abs(region_contrastive_loss(regions * lengths, text, 5.0) - loss) > 1e-3
    torch.testing.assert_close(region_contrastive_loss(regions * 7, text, 5.0), loss)
    for a, b in ((regions.double(), text), (regions, text.double())):
        torch.testing.assert_close(region_contrastive_loss(a, b, 5.0), loss.double())
    alone = torch.stack([region_contrastive_loss(level[None], text, 5.0) for level in regions])
    torch.testing.assert_close(alone.mean(), loss)


def test_bad_contrast():
    regions, text = rand(2, 3, 4, 5), rand(3, 5)
    for arguments, name in (
        ((regions[0], text, 1.0), "regions"),
        ((regions, text[:2], 1.0), "text_features"),
        ((regions, text, 0.0), "logit_scale"),
        ((regions * float("nan"), text, 1.0), "NaN"),
    ):
        with pytest.raises(ValueError, match=name):
            region_contrastive_loss(*arguments)


# Windows --------------------------------------------------------------------------------------------------------------


def test_windows_are_cut_row_by_row():
    x = torch.arange(2 * 4 * 6).view(2, 4, 6, 1).float()
    windows = window_partition(x, 2)
    assert windows.shape == (8, 6, 1)
    assert windows[2, :, 0].tolist() == x[0, :2, 3:, 0].flatten().tolist()  # second window, first image
    assert windows[3, :, 0].tolist() == x[1, :2, 3:, 0].flatten().tolist()
    assert windows[4, :, 0].tolist() == x[0, 2:, :3, 0].flatten().tolist()
    assert torch.equal(window_merge(windows, 2, 4, 6), x)
    assert window_partition(x[:0], 2).shape == (0, 6, 1)
    assert window_merge(window_partition(x[:0], 2), 2, 4, 6).shape == (0, 4, 6, 1)


def test_bad_windows():
    x = torch.zeros(1, 4, 6, 2)
    for call in (
        lambda: window_partition(x, 4),
        lambda: window_partition(x, 0),
        lambda: window_merge(torch.zeros(3, 6, 2), 2, 4, 6),
        lambda: window_merge(torch.zeros(4, 5, 2), 2, 4, 6),
        lambda: window_partition(x[0], 2),
        lambda: shifted_window_features(lambda y: y, x, torch.zeros(6, 4, 2), 1),
        lambda: shifted_window_features(lambda y: y, x, x[0], -1),
        lambda: shifted_window_features(lambda y: y[:, :2], x, x[0], 1),
    ):
        with pytest.raises(ValueError, match=r"grid|must be|keep the shape"):
            call()


def test_a_point_wise_encoder_is_not_changed_by_the_shift():
    x, pos = rand(2, 4, 6, 3), torch.full((4, 6, 3), 0.3)
    torch.testing.assert_close(shifted_window_features(torch.tanh, x, pos, 2), torch.tanh(x + 0.3))


def test_positions_belong_to_places():
    """A patch is seen once at its place and once at the place it is rolled to."""
    x, pos = torch.zeros(1, 4, 4, 1), rand(4, 4, 1)
    found = shifted_window_features(lambda y: y, x, pos, 1)
    torch.testing.assert_close(found[0], (pos + pos.roll((1, -1), (0, 1))) / 2)


def test_the_encoder_runs_once_or_twice():
    calls = []
    for shift in (0, 1):
        shifted_window_features(lambda y: calls.append(1) or y, torch.zeros(1, 2, 2, 1), torch.zeros(2, 2, 1), shift)
    assert len(calls) == 1 + 2


def window_vit(**options):
    return seeded(lambda: WindowViT(32, 4, 16, 3, 2, **{"grid": 2, "global_layers": (), **options}))


def test_windows_see_no_other_window_without_a_global_layer():
    images = rand(1, 3, 32, 32).requires_grad_()
    for options, elsewhere in (({}, False), ({"global_layers": (-1,)}, True), ({"shift": 2}, True)):
        images.grad = None
        window_vit(**options)(images)[0, 1, 1, 0].backward()
        assert images.grad[..., :16, :16].any()
        assert bool(images.grad[..., 16:, :].any()) == elsewhere


def test_window_vit_equals_its_parts():
    """One window over everything is plain attention; the norm comes after the mean of both passes."""
    images, model = rand(2, 3, 32, 32), window_vit(grid=1, shift=2)
    patches = model.conv1(images).permute(0, 2, 3, 1)

    def encode(x):
        tokens = x.flatten(1, 2)
        for block in model.resblocks:
            tokens = block(tokens)
        return tokens.unflatten(1, (8, 8))

    pos = model.positional_embedding
    rolled = encode(patches.roll((-2, 2), (1, 2)) + pos).roll((2, -2), (1, 2))
    torch.testing.assert_close(model(images), model.ln_post((encode(patches + pos) + rolled) / 2))


def test_window_vit_of_other_sizes():
    model = window_vit()
    assert model(rand(1, 3, 48, 64)).shape == (1, 12, 16, 16)
    for shape in ((1, 3, 30, 32), (1, 1, 32, 32), (1, 3, 36, 32)):  # 36 pixels are 9 patches: two windows do not fit
        with pytest.raises(ValueError, match=r"images|grid"):
            model(torch.zeros(shape))
    for options in ({"global_layers": (3,)}, {"grid": 0}, {"shift": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            window_vit(**options)
    with pytest.raises(ValueError, match="patch_size=5"):
        WindowViT(32, 5, 16, 1, 2)
    assert WindowViT(32, 4, 16, 6, 2).global_layers == {2, 5}


# Detection scores -----------------------------------------------------------------------------------------------------


def test_ensembles():
    det, vlm, base = rand(2, 3, 4), rand(2, 3, 4, seed=1), torch.tensor([True, True, False, False])
    scores = ensemble_scores(det, vlm, base)
    torch.testing.assert_close(scores.sum(-1), torch.ones(2, 3))
    p, z = det.softmax(-1), vlm.softmax(-1)
    by_hand = torch.cat(
        [p[..., :1], p[..., 1:2] ** 0.65 * z[..., 1:2] ** 0.35, p[..., 2:] ** 0.35 * z[..., 2:] ** 0.65], -1
    )
    torch.testing.assert_close(scores, by_hand / by_hand.sum(-1, keepdim=True))
    torch.testing.assert_close(ensemble_scores(det, vlm, base, 0.0, 0.0), p)
    torch.testing.assert_close(ensemble_scores(det, vlm, ~base ^ base), ensemble_scores(det, vlm, base, 0.35, 0.35))
    torch.testing.assert_close(ensemble_scores(det, vlm), ensemble_scores(det, vlm, base & ~base))
    flipped = base.clone()
    flipped[0] = False
    assert torch.equal(ensemble_scores(det, vlm, flipped), scores)  # the background is neither base nor novel
    objectness = torch.rand(2, 3, generator=torch.Generator().manual_seed(2))
    weighted = ensemble_scores(det, vlm, base, objectness=objectness)
    torch.testing.assert_close(weighted.sum(-1), objectness**3)
    assert ensemble_scores(100 * det, -100 * det).isfinite().all()
    assert ensemble_scores(det.half(), vlm).dtype == torch.float32


@pytest.mark.parametrize("weight", [0.0, 0.35, 1.0])
def test_classes_that_a_model_rules_out(weight):
    """−∞ of a model without weight says nothing, also about the background; with weight the class is impossible."""
    det, vlm = rand(2, 3, 4), rand(2, 3, 4, seed=1)
    one, two = torch.tensor([[False, True, False, False], [True, False, True, False]])
    scores = ensemble_scores(det.masked_fill(one, float("-inf")), vlm, None, 0, weight)
    assert bool((scores[..., 1] > 0).all()) == (weight == 1)
    scores = ensemble_scores(det, vlm.masked_fill(two, float("-inf")), None, 0, weight)
    torch.testing.assert_close(scores.sum(-1), torch.ones(2, 3))
    assert (scores[..., 0] > 0).all()
    assert bool((scores[..., 2] > 0).all()) == (weight == 0)
    if weight == 0:
        torch.testing.assert_close(scores, det.softmax(-1))


def test_bad_ensembles():
    det = rand(2, 3, 4)
    odd, none = det.clone(), det.clone()
    odd[1, 2, 3] = float("nan")
    none[1, 2] = float("-inf")
    for arguments, name in (
        ((det, det[:1]), "vlm_logits"),
        ((det, det, torch.ones(3)), "base"),
        ((det, det, None, 1.5), "alpha=1.5"),
        ((det, det, None, 0.3, 0.6, torch.ones(2, 2)), "objectness"),
        ((det, det, None, 0.3, 0.6, 2 * torch.ones(2, 3)), "sigmoid"),
        ((odd, det), "^det_logits must be without NaN"),
        ((det, odd), "^vlm_logits must be without NaN"),
        ((det, none), "^vlm_logits .*at least one class"),
    ):
        with pytest.raises(ValueError, match=name):
            ensemble_scores(*arguments)


def test_cosines_of_nothing_are_zero():
    regions, text = torch.stack([torch.zeros(4), torch.ones(4)]), torch.stack([torch.ones(4), -3 * torch.ones(4)])
    assert region_text_logits(regions, text, 0.1).tolist() == [[0.0, 0.0], [pytest.approx(10), pytest.approx(-10)]]
    assert region_text_logits(rand(2, 3, 5, 4), text, torch.tensor(0.1)).shape == (2, 3, 5, 2)
    with pytest.raises(ValueError, match="text"):
        region_text_logits(regions, text[:, :3], 0.1)
    with pytest.raises(ValueError, match="temperature"):
        region_text_logits(regions, text, 0.0)


def test_centerness():
    middle, off, edge, outside, point = [1, 1, 2, 2], [1, 4, 1, 1], [0, 2, 1, 1], [-1, 3, 1, 1], [0, 0, 0, 0]
    found = centerness(torch.tensor([middle, off, edge, outside, point], dtype=torch.float32))
    assert found.tolist() == [1.0, 0.5, 0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="lrtb"):
        centerness(torch.zeros(3))


# Modules --------------------------------------------------------------------------------------------------------------


def test_head_and_pyramid():
    head = seeded(lambda: DitoRegionHead(6, 3, 10, 5))
    assert {name.split(".")[0] for name in head.state_dict()} == {"fc1", "ln1", "fc2", "ln2", "embed", "box"}
    found = head(rand(2, 4, 6, 3, 3))
    assert (found.embed.shape, found.box.shape) == ((2, 4, 5), (2, 4, 4))
    pyramid = seeded(lambda: SimpleFeaturePyramid(8, 6))
    assert {level: tuple(x.shape) for level, x in pyramid(rand(2, 8, 4, 6)).items()} == {
        2: (2, 6, 16, 24),
        3: (2, 6, 8, 12),
        4: (2, 6, 4, 6),
        5: (2, 6, 2, 3),
    }
    assert list(SimpleFeaturePyramid(8, 6, (4,))(rand(1, 8, 1, 1))) == [4]
    assert SimpleFeaturePyramid(6, 8, (3, 5))(rand(1, 6, 2, 2))[3].shape == (1, 8, 4, 4)
    assert SimpleFeaturePyramid(5, 8, (4, 5))(rand(1, 5, 2, 2))[5].shape == (1, 8, 1, 1)
    for build, name in (
        (lambda: SimpleFeaturePyramid(8, 6, (1, 2)), "levels"),
        (lambda: SimpleFeaturePyramid(8, 6, ()), "levels"),
        (lambda: SimpleFeaturePyramid(6, 6), "dim=6"),
        (lambda: SimpleFeaturePyramid(5, 6, (4, 3)), "dim=5.*multiple of 2"),
        (lambda: SimpleFeaturePyramid(0, 6, (4,)), "dim=0"),
        (lambda: DitoRegionHead(6, 3, 0, 5), "hidden=0"),
        (lambda: head(rand(2, 4, 6, 2, 2)), "roi_features"),
    ):
        with pytest.raises(ValueError, match=name):
            build()


def clip():
    """A tiny instance of the real class."""
    text = {"vocab_size": 30, "max_position_embeddings": 8, "bos_token_id": 28, "eos_token_id": 29}
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**size, **text}, vision_config={**size, "image_size": 32, "patch_size": 8}, projection_dim=12
    )
    return seeded(lambda: transformers.CLIPModel(config)).eval()


class TextTower(nn.Module):
    """The text half of a CLIPModel."""

    def __init__(self, model):
        super().__init__()
        self.model, self.projection = model.text_model, model.text_projection

    def forward(self, ids, mask):
        return self.projection(self.model(ids, mask).pooler_output)


def objective(**options):
    model = clip()
    build = lambda: DitoObjective(  # noqa: E731
        model.vision_model, TextTower(model), SimpleFeaturePyramid(16, 8), DitoRegionHead(8, 7, 20, 12), 6, **options
    )
    return seeded(build)


def batch():
    ids = torch.randint(1, 28, (4, 6), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 29
    return rand(4, 3, 32, 32), ids, torch.ones_like(ids)


def run(model, seed=0):
    return model(*batch(), torch.Generator().manual_seed(seed))


def test_on_a_real_clip():
    model = objective()
    output = run(model)
    assert output.per_level.shape == (4,)
    torch.testing.assert_close(output.loss, output.per_level.mean())
    assert output.image_embed.shape == (4, 12)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("backbone.", "text."))
        assert (parameter.grad is None) == (frozen or name.startswith("head.box")), name
    assert run(model).loss == output.loss  # the boxes repeat with their seed
    assert run(model, 1).loss != output.loss


def test_frozen_towers_stay_as_they_were():
    model = objective().train()
    assert model.head.training
    assert not model.backbone.training
    assert not model.text.training
    awake = objective(train_backbone=True).train()
    assert awake.backbone.training
    run(awake).loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in awake.backbone.parameters())
    assert any(p.grad is not None and p.grad.any() for p in awake.text.parameters())
    with pytest.raises(ValueError, match="num_regions=0"):
        DitoObjective(nn.Identity(), nn.Identity(), nn.Identity(), nn.Identity(), 0)


def test_every_level_gets_its_own_boxes(monkeypatch):
    from foveal.pretrain import dito

    drawn = []

    def noting(features, boxes, size):
        drawn.append(boxes)
        return roi_align(features, boxes, size)

    monkeypatch.setattr(dito, "roi_align", noting)
    run(objective())
    assert len(drawn) == 4
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    drawn.clear()
    run(objective(scale=(1.0, 1.0)))
    assert torch.equal(drawn[0], torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(4, 6, 4))


def test_maps_of_other_backbones():
    images = rand(2, 3, 32, 32)
    vit = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    vit_model = seeded(lambda: transformers.ViTModel(vit)).eval()
    found = patch_map(vit_model, images)
    torch.testing.assert_close(found[:, :, 1, 2], vit_model(images).last_hidden_state[:, 1 + 4 + 2])
    model = clip().vision_model
    expected = model.post_layernorm(model(images).last_hidden_state)[:, 1 + 4 + 2]
    torch.testing.assert_close(patch_map(model, images)[:, :, 1, 2], expected)
    windows = window_vit()
    torch.testing.assert_close(patch_map(windows, images)[:, :, 1, 2], windows(images)[:, 1, 2])
    with pytest.raises(ValueError, match="backbone"):
        patch_map(nn.Flatten(), images)


def test_a_few_steps_lower_the_loss():
    model = objective()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    first = run(model).loss.item()
    for step in range(30):
        optimiser.zero_grad()
        run(model, step).loss.backward()
        optimiser.step()
        model.logit_scale.clamp_()
    assert run(model).loss.item() < 0.7 * first
