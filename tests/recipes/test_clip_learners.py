"""Objectives on a tiny `CLIPModel`, as `foveal train clip-like` and the matrix of pre-training use them."""

import numpy as np
import pytest
import torch

from foveal.data.record import Region, Sample
from foveal.lab import Run
from foveal.recipes import _clip_learners_sources as sources
from foveal.recipes._clip_learners import Learner, draws
from foveal.recipes._clip_learners_all import LEARNERS
from foveal.recipes._listed import CELLS
from foveal.recipes._pretrain_matrix_cost import step_bytes
from foveal.recipes._pretrain_matrix_data import COLOURS, NOUNS, swapped, tiny_clip, tokenize, training
from foveal.recipes._pretrain_matrix_places import covered, heat, region_scores
from foveal.recipes._pretrain_matrix_tldr import reduced
from foveal.recipes._pretrain_matrix_uniter import Uniter
from foveal.train import FitConfig, fit

torch.set_num_threads(1)
COLOUR_NOUNS = [f"{colour} {noun}" for colour in COLOURS for noun in NOUNS[:2]]


def learner(name, steps=10):
    torch.manual_seed(0)
    return LEARNERS[name](tiny_clip(), tokenize, steps)


def batch(labelled=2):
    samples = []
    for i, said in enumerate(COLOUR_NOUNS):
        sample = Sample(str(i), (np.zeros((48, 48, 3), np.uint8),), regions=(Region((8, 8, 24, 24), caption=said),))
        if i < labelled:
            samples.append(sample.with_(labels=(NOUNS[i],), regions=()))
        else:
            samples.append(sample.with_(captions=(f"a {said}", f"a {said} is top left. the background is white")))
    return {"pixels": torch.randn(len(samples), 3, 48, 48, generator=draws()), "samples": samples}


def test_clip_is_the_loss_of_transformers():
    one, given = learner("clip"), batch(labelled=0)
    ids, mask = tokenize([sample.caption for sample in given["samples"]])
    theirs = one.model(input_ids=ids, attention_mask=mask, pixel_values=given["pixels"], return_loss=True).loss
    assert one.loss(given)["loss"].item() == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize("name", LEARNERS)
def test_learners(name):
    one, given = learner(name), batch()
    before = one.model.logit_scale.item()
    torch.manual_seed(1)
    found = one.loss(given)
    torch.manual_seed(1)
    assert torch.equal(one.loss(given)["loss"], found["loss"])  # what is drawn follows from torch's seed
    found["loss"].backward()
    assert one.model.logit_scale.grad is not None, "the scale is the model's own"
    for tower in (one.model.vision_model, one.model.text_model):
        grads = [p.grad for layer in tower.encoder.layers for p in layer.parameters()]
        assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads)
        assert any(float(grad.abs().max()) > 0 for grad in grads)
    with torch.no_grad():
        one.model.logit_scale.fill_(9.0)
        one.after_step()
    assert before < one.model.logit_scale.item() == pytest.approx(np.log(100))
    assert int(one.finished) == 1
    with torch.no_grad():
        assert one.similarity(given["pixels"], COLOUR_NOUNS[:2]).shape == (6, 2)
        boxes = CELLS[:2].expand(6, -1, -1)
        assert heat(one, given["pixels"], COLOUR_NOUNS * 2).shape == (6, 2, 36)
        assert region_scores(one, given["pixels"], boxes, COLOUR_NOUNS[:3]).shape == (12, 3)
    assert step_bytes(one, given) > 4 * sum(p.nbytes for p in one.parameters() if p.requires_grad)


def test_filip_trains_the_projections_of_the_model():
    one = learner("filip")
    assert {id(p) for p in one.parameters()} == {id(p) for p in one.model.parameters()}


def test_prefix_contrasts_within_a_source():
    one, given = learner("prefix_conditioning"), batch(labelled=2)
    whole = one.loss(given)["loss"]
    parts = [
        {"pixels": given["pixels"][rows], "samples": given["samples"][rows]} for rows in (slice(2), slice(2, None))
    ]
    alone = [one.loss(part)["loss"] for part in parts]
    assert whole.item() == pytest.approx((2 * alone[0] + 4 * alone[1]).item() / 6, abs=1e-5)


def test_nevlp_softens_after_its_warm_up(monkeypatch):
    monkeypatch.setattr(sources, "RECENT", 12)
    one, given = learner("nevlp", steps=9), batch(labelled=0)
    for step in range(5):
        noise = one.loss(given)["noise"].item()
        assert (noise > 0) == (step >= 3)  # a third of the steps is over; the window is full one step before
        with torch.no_grad():
            one.after_step()
    assert bool(one.recent.isfinite().all())


def test_nevlp_compares_in_full_precision(monkeypatch):
    seen = []
    monkeypatch.setattr(sources, "itc_per_sample", lambda sim, *given: seen.append(sim.dtype) or sim.diagonal())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        learner("nevlp").loss(batch(labelled=0))
    assert seen == [torch.float32]


def test_m3i_keeps_its_momentum_encoder():
    one = learner("m3i")
    kept = dict(one.named_buffers())
    targets = [name for name in one.state_dict() if name.startswith("objective.target_encoder.")]
    assert targets
    assert {name for name in targets if name in kept} == set(targets)
    with torch.no_grad():
        next(iter(one.model.vision_model.parameters())).add_(1.0)
        before = kept[targets[0]].clone()
        one.after_step()
    assert not torch.equal(before, kept[targets[0]])


def test_places():
    torch.testing.assert_close(covered(CELLS[None])[0], torch.eye(36))
    one, given = learner("clip"), batch()

    class Pointing(Learner):
        """Knows that a phrase is in cell 7."""

        def patches(self, pixels):
            return torch.nn.functional.one_hot((torch.arange(36) == 7).long(), 2).float().expand(len(pixels), -1, -1)

        def text_features(self, texts):
            return torch.tensor([[0.0, 1.0]]).expand(len(texts), -1)

    pointing = Pointing(one.model, tokenize, 1)
    assert heat(pointing, given["pixels"], COLOUR_NOUNS).argmax(2).unique().tolist() == [7]
    scores = region_scores(pointing, given["pixels"][:1], CELLS[None, 6:9], ["x"])
    assert scores[:, 0].tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-5)


def test_swapped_texts():
    class Drawn:
        def rng(self, purpose):
            return np.random.default_rng(0)

    samples = [Sample(str(i), captions=(f"caption {i}",)) for i in range(10)]
    found = swapped(Drawn(), samples, 0.4)
    changed = [i for i in range(10) if found[i].caption != samples[i].caption]
    assert len(changed) == 4
    assert sorted(sample.caption for sample in found) == sorted(sample.caption for sample in samples)
    assert [sample.key for sample in found] == [sample.key for sample in samples]


def test_dito_trains_its_parts_alone_from_half_of_the_steps():
    one, given = learner("dito", steps=2), batch()
    parts = [p for part in (one.regional.pyramid, one.regional.head) for p in part.parameters()]
    one.loss(given)["loss"].backward()
    assert all(p.grad is None for p in parts)
    with torch.no_grad():
        one.after_step()
    one.zero_grad()
    one.loss(given)["loss"].backward()
    assert any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in parts)
    towers = (one.model.vision_model, one.model.text_model)
    assert all(p.grad is None for tower in towers for p in tower.parameters())
    assert not any(tower.training for tower in towers)


def test_the_towers_of_dito_rest_in_the_second_half():
    """Neither weight decay nor momentum moves them there."""
    one, given = learner("dito", steps=4), batch()
    seen = []

    def after_step(model):
        model.after_step()
        seen.append(torch.cat([p.detach().flatten().clone() for p in model.model.vision_model.parameters()]))

    config = FitConfig(lr=1e-2, optimizer="muon", batch_size=1, collate=lambda rows: given, after_step=after_step)
    fit(one, [0] * 4, steps=4, loss=lambda model, batch: model.loss(batch), config=config)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])
    assert torch.equal(seen[2], seen[3])


def test_uniter_reads_only_the_patches_of_a_box():
    torch.manual_seed(0)
    one, given = Uniter(None, tokenize, 10), batch()
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5]]).expand(6, 1, -1)
    before = region_scores(one, given["pixels"], boxes, COLOUR_NOUNS[:3])
    changed = given["pixels"].clone()
    changed[:, :, 24:] += 1
    torch.testing.assert_close(region_scores(one, changed, boxes, COLOUR_NOUNS[:3]), before)
    changed[:, :, :24] += 1
    assert not torch.allclose(region_scores(one, changed, boxes, COLOUR_NOUNS[:3]), before)


@pytest.mark.parametrize("task", range(5))
def test_every_task_of_uniter(task):
    torch.manual_seed(0)
    one, given = Uniter(None, tokenize, 10), batch()
    one.finished.fill_(task)
    one.loss(given)["loss"].backward()
    grad = one.reader.uniter.img_embeddings.img_linear.weight.grad
    assert bool(grad.isfinite().all())
    assert float(grad.abs().max()) > 0
    assert one.similarity(given["pixels"], COLOUR_NOUNS[:4]).shape == (6, 4)
    assert one.patch_tokens(given["pixels"]).shape == (6, 36, 64)
    assert heat(one, given["pixels"], COLOUR_NOUNS * 2).shape == (6, 2, 36)


def test_what_tldr_leaves_of_the_matrix():
    pixels, samples = reduced(Run("tldr", 0, True, False), 0.4)
    assert 0 < len(samples) == len(pixels)
    whole, given = training(Run("tldr", 0, True, False), 0.4)
    before = {sample.key: sample for sample in given}
    for sample in samples:
        assert sample.labels == before[sample.key].labels
        if sample.captions:
            assert sample.captions[0].startswith(f"{before[sample.key].captions[0]};")
    rows = [list(before).index(sample.key) for sample in samples]
    assert torch.equal(pixels, whole[rows])
