import copy

import pytest
import torch
import transformers

from foveal.nn.boxes import iou, nms
from foveal.pretrain.dito import DitoDetector, DitoRegionHead, SimpleFeaturePyramid, WindowViT, centerness
from foveal.pretrain.dito_detector import DetectorConfig, FrozenMap, LabelledBoxes
from foveal.pretrain.dito_proposals import (
    ProposalHead,
    Proposals,
    assign_anchors,
    best_proposals,
    decode_offsets,
    edge_distances,
    encode_offsets,
    make_anchors,
    proposal_losses,
)

torch.set_num_threads(1)


def seeded(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_boxes(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=rng) * 0.5
    return torch.cat([low, low + 0.1 + 0.4 * torch.rand(*shape, 2, generator=rng)], -1)


# Proposals ------------------------------------------------------------------------------------------------------------


def test_anchors_are_squares_of_eight_cells_around_each_place():
    anchors = make_anchors(16, 32, torch.zeros(()))
    assert anchors.shape == (512, 4)
    torch.testing.assert_close(anchors[33], torch.tensor([1.5 / 32 - 4 / 32, 1.5 / 16 - 4 / 16, 5.5 / 32, 5.5 / 16]))


def test_a_head_of_zeros_proposes_the_anchors():
    head = ProposalHead(4)
    for parameter in head.distances.parameters():
        parameter.data.zero_()
    found = head({4: rand(2, 4, 6, 6), 5: rand(2, 4, 3, 3)})
    assert (found.boxes.shape, found.logits.shape, found.anchors.shape) == ((2, 45, 4), (2, 45), (45, 4))
    torch.testing.assert_close(found.boxes[1], found.anchors.clamp(0, 1))


def test_anchors_are_assigned_by_overlap_and_place():
    truth = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.9, 0.9, 0.92, 0.92]])
    anchors = torch.tensor(
        [
            [0.0, 0.0, 0.4, 0.4],  # the first object
            [0.1, 0.0, 0.5, 0.4],  # overlaps it by 0.6
            [0.2, 0.0, 0.6, 0.4],  # by a third: neither
            [0.6, 0.6, 1.0, 1.0],  # contains the second, but its middle is elsewhere
            [0.71, 0.71, 1.11, 1.11],  # its middle is in the second, whose only one it is
        ]
    )
    assert assign_anchors(anchors, truth).tolist() == [0, 0, -2, -1, 1]
    assert assign_anchors(anchors, truth[:0]).tolist() == [-1] * 5


def test_perfect_proposals_cost_nothing():
    truth = [torch.tensor([[0.1, 0.1, 0.5, 0.5]]), torch.zeros(0, 4)]
    anchors = make_anchors(10, 10, truth[0])
    boxes, logits = anchors.clamp(0, 1).expand(2, -1, -1).clone(), torch.full((2, 100), -20.0)
    target = assign_anchors(anchors, truth[0])
    boxes[0, target == 0] = truth[0]
    middle = (anchors[:, :2] + anchors[:, 2:]) / 2
    logits[0, target == 0] = torch.logit(
        centerness(edge_distances(middle, truth[0].expand(100, -1)))[target == 0], 1e-6
    )
    objectness, box = proposal_losses(Proposals(boxes, logits, anchors), truth)
    assert float(objectness) == pytest.approx(0, abs=1e-4)
    assert float(box) == pytest.approx(0, abs=1e-6)
    worse, _ = proposal_losses(Proposals(boxes, -logits, anchors), truth)
    assert worse > 0.5
    empty = Proposals(boxes[1:].requires_grad_(), logits[1:].requires_grad_(), anchors)
    sum(proposal_losses(empty, truth[1:])).backward()
    assert empty.logits.grad.isfinite().all()
    with pytest.raises(ValueError, match="truth has 1"):
        proposal_losses(Proposals(boxes, logits, anchors), truth[:1])


def test_box_offsets_are_inverse():
    boxes, rois = some_boxes(3, 5), some_boxes(3, 5, seed=1)
    torch.testing.assert_close(decode_offsets(encode_offsets(boxes, rois), rois), boxes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decode_offsets(torch.zeros(3, 5, 4), rois), rois)
    assert decode_offsets(torch.full((1, 4), 1e6), rois[0, :1]).isfinite().all()


def test_proposals_are_ranked_and_thinned():
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.49], [0.5, 0.5, 1.0, 1.0]])
    logits = torch.tensor([0.1, 3.0, 1.0])
    assert best_proposals(boxes, logits, 2, None).tolist() == [1, 2]
    assert best_proposals(boxes, logits, 3, 0.7).tolist() == [1, 2]
    assert best_proposals(boxes, logits, 10, None).tolist() == [1, 2, 0]


# Detector -------------------------------------------------------------------------------------------------------------


def detector(**config):
    """On the vision half of a tiny real CLIPModel; text vectors are 12 wide."""
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = seeded(
        lambda: transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config={**size, "vocab_size": 9},
                vision_config={**size, "image_size": 32, "patch_size": 8},
                projection_dim=12,
            )
        )
    ).eval()
    frozen = FrozenMap(clip.vision_model, clip.visual_projection)
    settings = DetectorConfig(**{"proposals": 20, "rois": 16, "vlm_roi_size": 4, **config})
    parts = lambda: DitoDetector(  # noqa: E731
        clip.vision_model, SimpleFeaturePyramid(16, 8), DitoRegionHead(8, 7, 20, 12), frozen, 8, settings
    )
    return seeded(parts), clip


IMAGES, TEXT = rand(2, 3, 32, 32), rand(4, 12, seed=1)
TRUTH = [LabelledBoxes(some_boxes(2), torch.tensor([1, 3])), LabelledBoxes(torch.zeros(0, 4), torch.zeros(0).long())]


def test_detections():
    model = detector()[0].eval()
    base = torch.tensor([False, True, True, False])
    found = model(IMAGES, TEXT, base)
    assert len(found) == 2
    for one in found:
        assert one.boxes.shape == (len(one.scores), 4)
        assert ((one.boxes >= 0) & (one.boxes <= 1)).all()
        assert (one.scores.diff() <= 0).all()
        assert set(one.labels.tolist()) <= {1, 2, 3}
        for label in (1, 2, 3):
            mine = one.boxes[one.labels == label]
            assert (iou(mine[:, None], mine).triu(1) <= 0.5).all()
    assert not torch.equal(model(IMAGES, TEXT)[0].scores, found[0].scores)
    short = detector(detections=3)[0].eval()(IMAGES, TEXT)
    assert [len(one.scores) for one in short] == [3, 3]
    again = model(IMAGES[1:], TEXT, base)[0]
    torch.testing.assert_close(again.scores, found[1].scores)
    torch.testing.assert_close(again.boxes, found[1].boxes)


def test_near_duplicates_do_not_crowd_out_other_objects():
    """1,000 boxes around one object, and a last one that is less sure: as suppression without any cut finds them."""
    boxes = torch.tensor([[0.1, 0.1, 0.3, 0.3]]).repeat(1001, 1)
    boxes[-1] = torch.tensor([0.6, 0.6, 0.9, 0.9])
    scores = torch.tensor([0.1, 0.3, 0.3, 0.3]).repeat(1001, 1)
    scores[-1] = torch.tensor([0.2, 0.29, 0.0, 0.0])
    found = detector()[0]._kept(boxes, scores)
    assert found.scores.tolist() == pytest.approx([0.3, 0.3, 0.3, 0.29, 0.0, 0.0])
    assert sorted(found.labels[:3].tolist()) == [1, 2, 3]
    assert torch.equal(found.boxes[3], boxes[-1])


@pytest.mark.parametrize("detections", [1, 30, 10_000])
def test_suppression_is_that_of_each_class_alone(detections):
    boxes, scores = some_boxes(150), torch.rand(150, 20, generator=torch.Generator().manual_seed(1))
    found = detector(detections=detections)[0]._kept(boxes, scores)
    every = [(float(scores[i, k]), k, i) for k in range(1, 20) for i in nms(boxes, scores[:, k], 0.5).tolist()]
    best = sorted(every, reverse=True)[:detections]
    assert found.scores.tolist() == [score for score, _, _ in best]
    assert found.labels.tolist() == [label for _, label, _ in best]
    assert torch.equal(found.boxes, boxes[[place for _, _, place in best]])


def test_new_classes_are_new_rows():
    model = detector(detections=1000)[0].eval()
    wider = model(IMAGES, torch.cat([TEXT, rand(2, 12, seed=5)]))
    assert set(wider[0].labels.tolist()) == {1, 2, 3, 4, 5}
    order = torch.tensor([0, 3, 1, 2])
    plain, moved = model(IMAGES, TEXT)[0], model(IMAGES, TEXT[order])[0]
    torch.testing.assert_close(moved.scores, plain.scores)
    assert order[moved.labels].tolist() == plain.labels.tolist()


def test_the_second_opinion_is_a_frozen_copy():
    model, clip = detector()
    model.train()
    assert not model.vlm.training
    before = copy.deepcopy(model.vlm.state_dict())
    optimiser = torch.optim.SGD(model.parameter_groups(0.1))
    assert [group["lr"] for group in optimiser.param_groups] == [0.1, pytest.approx(0.06)]
    learning = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert not learning & {id(p) for p in model.vlm.parameters()}
    weight = clip.vision_model.encoder.layers[0].mlp.fc1.weight
    old = weight.detach().clone()
    model.losses(IMAGES, TEXT, TRUTH, torch.Generator().manual_seed(0)).loss.backward()
    optimiser.step()
    assert not torch.equal(weight, old)  # the backbone itself is trained
    assert all(torch.equal(value, before[name]) for name, value in model.vlm.state_dict().items())


def test_losses():
    model = detector()[0]
    output = model.losses(IMAGES, TEXT, TRUTH, torch.Generator().manual_seed(0))
    torch.testing.assert_close(output.loss, output.classes + output.boxes + output.objectness + output.proposals)
    assert min(output.classes, output.boxes, output.objectness, output.proposals) > 0
    output.loss.backward()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(name.startswith("backbone.post_layernorm") or "class_embedding" in name for name in silent), silent
    background = [TRUTH[1], TRUTH[1]]
    empty = model.losses(IMAGES, TEXT, background, torch.Generator().manual_seed(0))
    assert empty.boxes == empty.proposals == 0
    assert empty.loss.isfinite()


def test_bad_detector_input():
    model, rng = detector()[0], torch.Generator()
    for text in (TEXT[:1], TEXT[0]):
        with pytest.raises(ValueError, match="text"):
            model(IMAGES, text)
    with pytest.raises(ValueError, match="base"):
        model(IMAGES, TEXT, torch.ones(3))
    for truth, name in (
        (TRUTH[:1], "truth has 1"),
        ([LabelledBoxes(some_boxes(1), torch.tensor([0])), TRUTH[1]], "labels"),
        ([LabelledBoxes(some_boxes(1), torch.tensor([4])), TRUTH[1]], "labels"),
        ([LabelledBoxes(some_boxes(1) * 32, torch.tensor([1])), TRUTH[1]], "outside"),
        ([LabelledBoxes(some_boxes(2), torch.tensor([1])), TRUTH[1]], "must be"),
    ):
        with pytest.raises(ValueError, match=name):
            model.losses(IMAGES, TEXT, truth, rng)
    with pytest.raises(ValueError, match="NaN"):
        model.losses(IMAGES, TEXT * float("nan"), TRUTH, rng)
    for name, value in (("alpha", 2.0), ("proposals", 0), ("temperature", 0.0)):
        with pytest.raises(ValueError, match=name):
            DetectorConfig(**{name: value})


def test_it_learns_to_find_a_square():
    """A bright square on a dark ground, of two colours: classes 1 and 2."""
    rng = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.5, 0.4, 0.9, 0.8], [0.2, 0.5, 0.6, 0.9], [0.4, 0.1, 0.8, 0.5]])
    labels = torch.tensor([1, 2, 2, 1])
    images = 0.1 * torch.randn(4, 3, 32, 32, generator=rng)
    for image, (x0, y0, x1, y1), label in zip(images, (boxes * 32).round().int().tolist(), labels, strict=True):
        image[int(label) - 1, y0:y1, x0:x1] += 2
    vit = seeded(lambda: WindowViT(32, 4, 16, 2, 2, grid=2, global_layers=(1,)))
    model = seeded(
        lambda: DitoDetector(
            vit,
            SimpleFeaturePyramid(16, 8, (3, 4)),
            DitoRegionHead(8, 7, 24, 16),
            FrozenMap(vit),
            8,
            DetectorConfig(alpha=0.0, beta=0.0, proposals=64, rois=64, vlm_roi_size=2),
        )
    )
    text = torch.eye(16)[:3]
    truth = [LabelledBoxes(box[None], label[None]) for box, label in zip(boxes, labels, strict=True)]
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimiser.zero_grad()
        model.losses(images, text, truth, rng).loss.backward()
        optimiser.step()
    for one, box, label in zip(model.eval()(images, text), boxes, labels, strict=True):
        assert one.labels[0] == label
        assert iou(one.boxes[0], box) > 0.5
