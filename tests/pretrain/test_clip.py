import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given
from hypothesis import strategies as st
from nn.openai_names import as_transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from foveal.pretrain import base
from foveal.pretrain.clip import (
    AttentionPool2d,
    CLIPModel,
    CLIPObjective,
    ContrastiveOutput,
    LinearProbe,
    LogitScale,
    build_zero_shot_classifier,
    cached_contrastive_step,
    chunked_clip_loss,
    clip_loss,
    ensemble_text_features,
    gather_features,
    probe_lambda_search,
    zero_shot_logits,
)

from .contract import pairs
from .measure import run

torch.set_num_threads(1)
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parents[1] / "golden/clip.npz").items()}
TINY = json.loads(bytes(GOLDEN["model.config"].numpy()))


def golden(case):
    return {name.split(".", 1)[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}.")}


def close(actual, expected):
    """Within the specification's 1e-4 + 1e-4 · max|expected|."""
    expected = torch.as_tensor(expected).double()
    assert float((actual.detach().double() - expected).abs().max()) <= 1e-4 + 1e-4 * float(expected.abs().max())


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


# Loss -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 1, 4, 6, 50])
def test_golden_loss(chunk):
    ref = golden("loss")
    leaves = [ref[name].clone().requires_grad_() for name in ("image_features", "text_features", "scale")]
    if chunk is None:
        out = clip_loss(*leaves)
        for name in ("image_to_text", "text_to_image", "logits_per_image"):
            close(getattr(out, name), ref[name])
        close(out.logits_per_text, ref["logits_per_image"].T)
    loss = out.loss if chunk is None else chunked_clip_loss(*leaves, chunk)
    close(loss, ref["loss"])
    loss.backward()
    for leaf, name in zip(leaves, ("grad_image", "grad_text", "grad_scale"), strict=True):
        close(leaf.grad, ref[name])


def test_golden_shards():
    ref = golden("shard")
    everything = [ref[f"all_{side}_features"].clone().requires_grad_() for side in ("image", "text")]
    scale = ref["scale"].clone().requires_grad_()
    world = int(ref["world_size"])
    both = {"all_image_features": everything[0], "all_text_features": everything[1]}
    outs = []
    for rank in range(world):
        image, text = (x.chunk(world)[rank] for x in everything)
        outs.append(clip_loss(image, text, scale, **both, rank=rank))
        close(torch.stack([outs[-1].loss, outs[-1].image_to_text, outs[-1].text_to_image]), ref["per_rank"][rank])
        assert outs[-1].logits_per_image.shape == (len(image), len(everything[0]))
    mean = torch.stack([out.loss for out in outs]).mean()
    close(mean, ref["global_loss"])
    mean.backward()
    for leaf, name in zip((*everything, scale), ("grad_image", "grad_text", "grad_scale"), strict=True):
        close(leaf.grad, ref[name])


@given(st.integers(1, 6), st.floats(0.5, 100), st.integers(0, 1000))
def test_loss_against_a_slow_loop(batch, scale, seed):
    image, text = (x.double() for x in pairs(batch, seed))

    def cosine(i, j):
        return float(image[i] @ text[j] / image[i].norm() / text[j].norm())

    rows, columns = [], []
    for i in range(batch):
        own = scale * cosine(i, i)
        rows.append(math.log(sum(math.exp(scale * cosine(i, j) - own) for j in range(batch))))
        columns.append(math.log(sum(math.exp(scale * cosine(j, i) - own) for j in range(batch))))
    out = clip_loss(image, text, scale)
    assert float(out.image_to_text) == pytest.approx(np.mean(rows), abs=1e-9)
    assert float(out.text_to_image) == pytest.approx(np.mean(columns), abs=1e-9)
    assert float(out.loss) == pytest.approx((np.mean(rows) + np.mean(columns)) / 2, abs=1e-9)
    assert float(chunked_clip_loss(image, text, scale, 4)) == pytest.approx(float(out.loss), abs=1e-9)


def test_invariants():
    image, text = pairs(5, 0)
    out, swapped = clip_loss(image, text, 10.0), clip_loss(text, image, 10.0)
    torch.testing.assert_close(swapped.image_to_text, out.text_to_image)
    torch.testing.assert_close(swapped.text_to_image, out.image_to_text)
    torch.testing.assert_close(clip_loss(3 * image, 0.1 * text, 10.0).loss, out.loss)
    same = torch.ones(5, 8)
    assert float(clip_loss(same, same, 10.0).loss) == pytest.approx(math.log(5))
    assert float(chunked_clip_loss(same, same, 10.0, 2)) == pytest.approx(math.log(5))
    assert isinstance(out, ContrastiveOutput)


def test_chunked_gradient_by_finite_differences():
    image, text = (x.double().requires_grad_() for x in pairs(5, 0))
    scale = torch.tensor(3.0, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *leaves: chunked_clip_loss(*leaves, 2), (image, text, scale))
    loss = chunked_clip_loss(image, text, scale, 2)
    with pytest.raises(RuntimeError, match="chunked_clip_loss cannot be differentiated twice"):
        torch.autograd.grad(loss, image, create_graph=True)


class Largest(TorchDispatchMode):
    """Most elements of a tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple) else (result,):
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return result


@pytest.mark.parametrize("batch", [64, 256])
def test_chunked_never_holds_all_scores(batch):
    image, text = (x.requires_grad_() for x in pairs(batch, 0))
    with Largest() as made:
        chunked_clip_loss(image, text, 10.0, 16).backward()
    assert made.elements == 16 * batch
    with Largest() as made:
        clip_loss(image, text, 10.0).loss.backward()
    assert made.elements == batch**2


def test_chunked_survives_large_scales():
    image, text = pairs(6, 0)
    leaves = [
        (5 + image).requires_grad_(),
        (text - 5).requires_grad_(),
    ]  # every score is far below zero: exp() of it is 0
    results = [clip_loss(*leaves, 1000.0).loss, chunked_clip_loss(*leaves, 1000.0, 2)]
    torch.testing.assert_close(*results)
    for left, right in zip(*(torch.autograd.grad(loss, leaves) for loss in results), strict=True):
        torch.testing.assert_close(left, right, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"scale": 0.0}, "scale=0.0.*positive"),
        ({"scale": -2.0}, "scale=-2.0"),
        ({"scale": math.nan}, "scale=nan"),
        ({"scale": torch.ones(1)}, r"scale \(1,\)"),
        ({"all_image_features": torch.ones(8, 8)}, "all_text_features=None"),
        ({"all_text_features": torch.ones(8, 8)}, "all_image_features=None"),
        ({"all_image_features": torch.ones(9, 8), "all_text_features": torch.ones(9, 8)}, "9 rows.*multiple of the 4"),
        ({"all_image_features": torch.ones(8, 8), "all_text_features": torch.ones(8, 7)}, "alike"),
        (
            {"all_image_features": torch.ones(8, 8), "all_text_features": torch.ones(8, 8), "rank": 2},
            r"rank=2.*\[0, 2\)",
        ),
        ({"all_image_features": torch.ones(8, 8), "all_text_features": torch.ones(8, 8), "rank": -1}, "rank=-1"),
        ({"all_image_features": torch.ones(8, 7), "all_text_features": torch.ones(8, 7)}, r"\(8, 7\) must be as wide"),
        (
            {"all_image_features": torch.ones(8, 8), "all_text_features": torch.full((8, 8), math.nan)},
            "all_text_features holds NaN",
        ),
        ({"rank": 1}, "rank=1"),
        ({"image_features": torch.full((4, 8), math.nan)}, "image_features holds NaN"),
        ({"text_features": torch.full((4, 8), math.inf)}, "text_features holds NaN"),
    ],
)
def test_bad_arguments(change, match):
    arguments = dict(zip(("image_features", "text_features"), pairs(4, 0), strict=True)) | {"scale": 1.0}
    with pytest.raises(ValueError, match=match):
        clip_loss(**{**arguments, **change})
    if not {"rank", "all_image_features", "all_text_features"} & change.keys():
        with pytest.raises(ValueError, match=match):
            chunked_clip_loss(**{**arguments, **change}, chunk_size=2)


@pytest.mark.parametrize("scale", [[1.0], None, "a", np.array([2.0]), np.array([1.0, 2.0])])
def test_a_scale_is_one_number(scale):
    for loss in (clip_loss, lambda *arguments: chunked_clip_loss(*arguments, 2)):
        with pytest.raises(ValueError, match=r"^scale.*must be a float or a 0-d tensor"):
            loss(*pairs(4, 0), scale)
    assert clip_loss(*pairs(4, 0), np.float32(2)).loss == clip_loss(*pairs(4, 0), np.array(2.0)).loss


@pytest.mark.parametrize("wide", range(4))
def test_sides_of_different_dtypes(wide):
    """As if all were of the wider one."""
    sides = (*pairs(2, 0), *pairs(4, 1))
    double = [x.double() for x in sides]
    mixed = [double[side] if side == wide else sides[side] for side in range(4)]

    def gathered(image, text, all_image, all_text):
        return clip_loss(image, text, 5.0, all_image_features=all_image, all_text_features=all_text).loss

    calls = [gathered]
    if wide < 2:
        calls += [lambda *sides: clip_loss(*sides[:2], 5.0).loss, lambda *sides: chunked_clip_loss(*sides[:2], 5.0, 1)]
        calls += [lambda *sides: CLIPObjective()(*sides[:2]).loss]
    for call in calls:
        assert call(*mixed).dtype == torch.double
        torch.testing.assert_close(call(*mixed), call(*double))


def test_bad_chunks():
    with pytest.raises(ValueError, match="chunk_size=0"):
        chunked_clip_loss(*pairs(4, 0), 1.0, 0)
    with pytest.raises(ValueError, match="alike"):
        chunked_clip_loss(torch.ones(2, 3), torch.ones(3, 3), 1.0, 1)


def test_logit_scale():
    scale = LogitScale()
    assert scale().item() == pytest.approx(14.2857, abs=1e-4)
    assert scale.log_scale.ndim == 0
    for value, expected in ((9.0, 100.0), (-1.0, 1.0), (2.0, math.exp(2))):
        scale.log_scale.data.fill_(value)
        parameter = scale.log_scale
        scale().backward()
        assert scale.log_scale.grad > 0  # beyond the bounds too: forward does not clamp
        assert scale.clamp_() is None
        assert scale.log_scale is parameter
        assert scale().item() == pytest.approx(expected, rel=1e-6)
        assert 1 <= scale().item() <= 100
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        high = LogitScale(init=200.0).to(dtype)
        high.clamp_()
        assert 98 < high().item() <= 100
    for options in ({"init": 0}, {"init": -1.0}, {"init": math.inf}, {"max_scale": 0.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            LogitScale(**options)
    assert base.LogitScale is LogitScale
    assert base.gather_features is gather_features


def test_objective_learns_to_pair():
    objective = CLIPObjective(init_scale=5.0, max_scale=20.0)
    assert [name for name, _ in objective.named_parameters()] == ["logit_scale.log_scale"]
    tower, (image, text) = seeded(lambda: nn.Linear(8, 8)), pairs(16, 0)
    optimiser = torch.optim.Adam([*tower.parameters(), *objective.parameters()], lr=0.1)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        losses.append(objective(tower(image), text).loss)
        losses[-1].backward()
        optimiser.step()
        objective.logit_scale.clamp_()
    assert losses[-1] < losses[0] / 4
    assert 1 <= objective.logit_scale().item() <= 20.001


# Several processes ----------------------------------------------------------------------------------------------------


def test_gather_is_the_identity_alone():
    x = torch.ones(2, 3)
    assert gather_features(x) is x


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_gather_stacks_and_its_backward_sums(two_processes, dtype):
    expected = (torch.arange(6.0).view(3, 2) + torch.tensor([0.0, 10.0]).view(2, 1, 1)).flatten(0, 1)
    for rank, result in enumerate(two_processes):
        assert result["gather"][dtype]["value"] == expected.tolist()
        rows = torch.arange(1.0, 13).view(6, 2)[3 * rank : 3 * rank + 3]
        assert result["gather"][dtype]["grad"] == ((1 + 2) * rows).tolist()  # sum over ranks of their weights


@pytest.mark.parametrize("way", ["by_hand", "chunked"])
def test_other_ways_to_use_two_processes(two_processes, way):
    alone = run(CLIPObjective(), pairs(6, 0))
    halves = [result[way] for result in two_processes]
    close(torch.tensor([half["loss"] for half in halves]).mean(), alone["loss"])
    for side in range(2):
        close(torch.tensor(halves[0]["inputs"][side] + halves[1]["inputs"][side]) / 2, alone["inputs"][side])
    mean = sum(half["parameters"]["logit_scale.log_scale"] for half in halves) / 2
    close(torch.tensor(mean), alone["parameters"]["logit_scale.log_scale"])


def test_all_processes_raise_together(two_processes):
    for result in two_processes:
        assert "3, 2 rows" in result["uneven"]
        assert "text_features holds NaN" in result["poisoned"]


# Cached step ----------------------------------------------------------------------------------------------------------


class Tower(nn.Module):
    """Counts and records its calls; dropout makes a repetition with other random numbers visible."""

    def __init__(self, dropout):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 8))
        self.calls = []

    def forward(self, x):
        out = self.net(x)
        self.calls.append((len(x), torch.is_grad_enabled(), out.detach()))
        return out


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_cached_step_equals_a_plain_one(micro_batch, dropout):
    """With dropout the plain step draws its masks micro-batch by micro-batch, images first, as the cached one does."""
    images, texts = pairs(7, 0)
    towers, objective = [seeded(lambda: Tower(dropout)) for _ in range(2)], CLIPObjective()
    parameters = [p for module in (*towers, objective) for p in module.parameters()]

    def loss_fn(image, text):
        return objective(image, text).loss

    with torch.random.fork_rng():
        torch.manual_seed(3)
        plain = loss_fn(*(torch.cat([t(x) for x in s.split(micro_batch)]) for t, s in zip(towers, (images, texts))))
        after = torch.rand(3)
        expected = torch.autograd.grad(plain, parameters)
        for tower in towers:
            tower.calls.clear()
        torch.manual_seed(3)
        loss = cached_contrastive_step(*towers, images, texts, loss_fn, micro_batch)
        assert torch.equal(torch.rand(3), after), "the second pass must not consume random numbers"
    torch.testing.assert_close(loss, plain.detach())
    assert not loss.requires_grad
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)
    for tower in towers:
        chunks = math.ceil(7 / micro_batch)
        assert [grad for _, grad, _ in tower.calls] == [False] * chunks + [True] * chunks
        assert max(size for size, _, _ in tower.calls) <= micro_batch
        for first, second in zip(tower.calls[:chunks], tower.calls[chunks:], strict=True):
            assert torch.equal(first[2], second[2])
    loss = cached_contrastive_step(*towers, images, texts, loss_fn, micro_batch)
    if dropout == 0:
        torch.testing.assert_close(parameters[0].grad, 2 * expected[0], atol=1e-6, rtol=1e-4)  # it accumulates


def test_cached_step_with_a_locked_tower_and_a_list_of_texts():
    images, _ = pairs(5, 0)
    tower, table = seeded(lambda: nn.Linear(8, 8)), dict(zip("abcde", pairs(5, 1)[0], strict=True))

    def locked(words):
        return torch.stack([table[word] for word in words])

    cached_contrastive_step(tower, locked, images, list("abcde"), lambda v, t: clip_loss(v, t, 5.0).loss, 2)
    (expected,) = torch.autograd.grad(clip_loss(tower(images), locked("abcde"), 5.0).loss, tower.weight)
    torch.testing.assert_close(tower.weight.grad, expected)


@pytest.mark.parametrize("detached", [0, 1])
def test_cached_step_with_features_that_the_loss_detaches(detached):
    """The other tower gets its own gradient; the one without is not run again."""
    sides, towers = pairs(5, 0), [seeded(lambda: Tower(0.0)) for _ in range(2)]

    def loss_fn(*features):
        return clip_loss(*(x.detach() if side == detached else x for side, x in enumerate(features)), 5.0).loss

    plain = loss_fn(*(tower(side) for tower, side in zip(towers, sides, strict=True)))
    expected = torch.autograd.grad(plain, [*towers[1 - detached].parameters()])
    for tower in towers:
        tower.calls.clear()
    torch.testing.assert_close(cached_contrastive_step(*towers, *sides, loss_fn, 2), plain.detach())
    for parameter, gradient in zip(towers[1 - detached].parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert all(parameter.grad is None for parameter in towers[detached].parameters())
    assert [len(tower.calls) for tower in towers] == [3 if side == detached else 6 for side in range(2)]


def test_cached_step_under_autocast():
    """Autocast keeps half-precision copies of weights; those made without gradient must not serve the second pass."""
    images, texts = pairs(6, 0)
    tower = seeded(lambda: nn.Linear(8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cached_contrastive_step(tower, tower, images, texts, lambda v, t: clip_loss(v, t, 5.0).loss, 4)
    (expected,) = torch.autograd.grad(clip_loss(tower(images), tower(texts), 5.0).loss, tower.weight)
    torch.testing.assert_close(tower.weight.grad, expected, atol=0.02, rtol=0.05)


def test_bad_cached_steps():
    tower, loss_fn = nn.Linear(8, 8), lambda v, t: clip_loss(v, t, 5.0).loss
    images, texts = pairs(4, 0)
    with pytest.raises(ValueError, match="micro_batch=0"):
        cached_contrastive_step(tower, tower, images, texts, loss_fn, 0)
    with pytest.raises(ValueError, match=r"images \(4\) and texts \(3\)"):
        cached_contrastive_step(tower, tower, images, texts[:3], loss_fn, 2)
    with pytest.raises(ValueError, match=r"images \(0\)"):
        cached_contrastive_step(tower, tower, images[:0], texts[:0], loss_fn, 2)
    with pytest.raises(ValueError, match="loss_fn returned nan"):
        cached_contrastive_step(tower, tower, images, texts, lambda v, t: (v * math.nan).sum(), 2)
    assert tower.weight.grad is None


# Towers ---------------------------------------------------------------------------------------------------------------


def test_golden_towers_load_strictly():
    ref = golden("model")
    weights = {k.removeprefix("weights."): v.float() for k, v in ref.items() if k.startswith("weights.")}
    model = CLIPModel(**TINY)
    assert model.state_dict().keys() == weights.keys()
    model.load_state_dict(weights, strict=True)
    close(model.encode_image(ref["pixel_values"]), ref["image_embeds"])
    close(model.encode_text(ref["token_ids"]), ref["text_embeds"])


def test_text_ends_at_the_end_token():
    model, ids = seeded(lambda: CLIPModel(**TINY)), torch.tensor([[28, 3, 29, 0, 0], [28, 29, 0, 0, 0]])
    other = torch.tensor([[28, 3, 29, 7, 29], [28, 29, 1, 2, 3]])
    assert torch.equal(model.encode_text(ids), model.encode_text(other))
    torch.testing.assert_close(model.encode_text(ids[1:]), model.encode_text(ids[1:, :2]))


def peer() -> transformers.CLIPModel:
    """transformers' CLIP in the sizes of TINY, random weights."""
    text = {
        "hidden_size": TINY["text_width"],
        "intermediate_size": 4 * TINY["text_width"],
        "num_hidden_layers": TINY["text_layers"],
        "num_attention_heads": TINY["text_heads"],
        "vocab_size": TINY["vocab_size"],
        "max_position_embeddings": TINY["context_length"],
        "bos_token_id": 28,
        "eos_token_id": 29,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": TINY["vision_width"],
        "intermediate_size": 4 * TINY["vision_width"],
        "num_hidden_layers": TINY["vision_layers"],
        "num_attention_heads": TINY["vision_heads"],
        "image_size": TINY["image_size"],
        "patch_size": TINY["patch_size"],
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=TINY["embed_dim"])
    return seeded(lambda: transformers.CLIPModel(config)).eval()


IDS = torch.tensor([[28, 3, 4, 29], [28, 5, 29, 0], [28, 6, 7, 29]])


def test_towers_equal_those_of_transformers():
    model, theirs = seeded(lambda: CLIPModel(**TINY)), peer()
    for name, parameter in model.named_parameters():  # lively norms and biases, so that a swap would show
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(len(name)))
    theirs.load_state_dict(as_transformers(model.state_dict()))
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_image(pixels), theirs.get_image_features(pixels).pooler_output, atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            model.encode_text(IDS), theirs.get_text_features(IDS).pooler_output, atol=1e-5, rtol=1e-4
        )


def test_everything_runs_on_the_class_of_transformers():
    """Training, zero-shot and the probe on ``transformers.CLIPModel``; its own loss is ours."""
    model, objective = peer(), CLIPObjective()
    objective.logit_scale.log_scale.data.fill_(model.logit_scale.item())
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    image, text = model.get_image_features(pixels).pooler_output, model.get_text_features(IDS).pooler_output
    loss = objective(image, text).loss
    torch.testing.assert_close(loss, model(input_ids=IDS, pixel_values=pixels, return_loss=True).loss)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim >= 2)

    def encode_text(prompts):
        ids = torch.tensor([[28, *(ord(letter) % 26 + 1 for letter in prompt[:6]), 29] for prompt in prompts])
        return model.get_text_features(ids).pooler_output

    classes = build_zero_shot_classifier(encode_text, ["sphere", "carpet"], ["{}", lambda name: name[::-1]])
    logits = zero_shot_logits(image, classes, objective.logit_scale())
    assert logits.shape == (3, 2)
    assert LinearProbe().fit(image, torch.tensor([0, 1, 0])).predict_proba(image).shape == (3, 2)


def test_bad_model_inputs():
    model = CLIPModel(**TINY)
    for shape in ((2, 3, 16, 24), (2, 3, 24, 24), (2, 1, 16, 16), (3, 16, 16)):
        with pytest.raises(ValueError, match=r"pixel_values.*16"):
            model.encode_image(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"token_ids.*context_length=8"):
        model.encode_text(torch.zeros(2, 9, dtype=torch.long))
    for bad in (-1, TINY["vocab_size"]):
        with pytest.raises(ValueError, match=f"token_ids hold {bad}.*vocab_size={TINY['vocab_size']}"):
            model.encode_text(torch.tensor([[1, bad]]))
    with pytest.raises(ValueError, match="patch_size=5"):
        CLIPModel(**{**TINY, "patch_size": 5})


def test_attention_pool_equals_torch_multi_head_attention():
    pool, x = (
        seeded(lambda: AttentionPool2d(3, 8, 2, 5)),
        torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0)),
    )
    for parameter in (pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    assert {name.split(".")[0] for name in pool.state_dict()} == {
        "positional_embedding",
        *(f"{letter}_proj" for letter in "qkvc"),
    }
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + pool.positional_embedding[:, None]
    expected, _ = F.multi_head_attention_forward(
        tokens[:1],
        tokens,
        tokens,
        8,
        2,
        None,
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        None,
        None,
        False,
        0.0,
        pool.c_proj.weight,
        pool.c_proj.bias,
        training=False,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )
    torch.testing.assert_close(pool(x), expected[0])
    for shape in ((4, 8, 3, 4), (4, 7, 3, 3), (8, 3, 3)):
        with pytest.raises(ValueError, match="feature_map"):
            pool(torch.zeros(shape))
    with pytest.raises(ValueError, match="heads=3"):
        AttentionPool2d(3, 8, 3, 5)


# Zero-shot and probe: the rest is in tests/nn -------------------------------------------------------------------------


def test_golden_ensemble():
    ref = golden("ensemble")
    classes = ensemble_text_features(ref["text_features"])
    close(classes, ref["class_features"])
    close(zero_shot_logits(ref["image_features"], classes, ref["scale"]), ref["logits"])


def test_the_probe_is_tuned_and_refitted():
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    X = F.one_hot(y, 20) + 1.5 * torch.randn(90, 20, generator=rng)
    train, validation = slice(0, 45), slice(45, 90)
    exponent, scores = probe_lambda_search(
        lambda penalty: (
            LinearProbe(1 / penalty, max_iter=200).fit(X[train], y[train]).score(X[validation], y[validation])
        )
    )
    assert scores[exponent] == max(scores.values()) >= scores[-6]
    assert LinearProbe(10**-exponent).fit(X, y).score(X, y) > 0.5
