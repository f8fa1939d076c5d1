import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from decode import tiny
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from foveal.adapt.vladva import (
    LoRALinear,
    SoftPrompt,
    VladvaModel,
    add_lora,
    assemble,
    contrastive_loss,
    cumulative_variance,
    last_token_index,
    lora_off,
    merge_lora,
    next_token_loss,
    prediction_entropy,
    remove_lora,
    split_by_length,
    summary_embedding,
)

from . import vladva_pair
from .vladva_pair import batch, model

torch.set_num_threads(1)
GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(pathlib.Path(__file__).parents[1] / "golden/vladva.npz").items()}


def golden(case):
    return {name.split("__", 1)[1]: value for name, value in GOLDEN.items() if name.startswith(f"{case}__")}


def close(actual, expected, tolerance=1e-5):
    expected = torch.as_tensor(expected).detach().double()
    assert float((actual.detach().double() - expected).abs().max()) <= tolerance * (1 + float(expected.abs().max()))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# Captions and losses --------------------------------------------------------------------------------------------------


def test_split_by_length():
    short, long = split_by_length(torch.tensor([0, 29, 30, 500, 501]))
    assert short.tolist() == [True, True, False, False, False]
    assert long.tolist() == [False, False, True, True, False]
    with pytest.raises(ValueError, match="short_max=31"):
        split_by_length(torch.tensor([1]), 31, 30)


def test_golden_contrastive():
    ref = golden("con")
    image, text = (ref[name].clone().requires_grad_() for name in ("image", "text"))
    loss = contrastive_loss(image, text, float(ref["scale"]))
    loss.backward()
    close(loss, ref["loss"])
    close(image.grad, ref["grad_image"])
    close(text.grad, ref["grad_text"])


@given(st.integers(1, 6), st.floats(0.1, 50), st.integers(0, 99))
def test_contrastive_sums_both_directions(rows, scale, seed):
    image, text = (torch.randn(rows, 5, generator=rng(seed + i), dtype=torch.float64) for i in (0, 1000))
    cosines = scale * F.cosine_similarity(image[:, None], text[None], dim=-1)
    both = -(cosines.log_softmax(1).diagonal() + cosines.log_softmax(0).diagonal()).mean()
    close(contrastive_loss(image, text, scale), both, 1e-9)


def test_contrastive_of_parts_is_that_of_the_whole():
    image, text = torch.randn(6, 4, generator=rng(0)), torch.randn(6, 4, generator=rng(1))
    parts = [
        contrastive_loss(image[r : r + 2], text[r : r + 2], 9.0, all_image=image, all_text=text, rank=r // 2)
        for r in (0, 2, 4)
    ]
    close(sum(parts) / 3, contrastive_loss(image, text, 9.0))


@pytest.mark.parametrize(
    ("image", "text", "more"),
    [
        (torch.ones(2, 3), torch.ones(3, 3), {}),
        (torch.ones(2, 3), torch.ones(2, 4), {}),
        (torch.ones(0, 3), torch.ones(0, 3), {}),
        (torch.ones(3), torch.ones(3), {}),
        (torch.full((2, 3), torch.nan), torch.ones(2, 3), {}),
        (torch.ones(2, 3), torch.ones(2, 3), {"all_image": torch.ones(4, 3)}),
        (torch.ones(2, 3), torch.ones(2, 3), {"rank": 1}),
    ],
)
def test_contrastive_refuses(image, text, more):
    with pytest.raises(ValueError, match="image"):
        contrastive_loss(image, text, 10.0, **more)


def test_contrastive_takes_one_scale_in_any_shape():
    image, text = torch.randn(4, 3, generator=rng(0)), torch.randn(4, 3, generator=rng(1))
    for shape in ((), (1,), (1, 1, 1)):
        assert torch.equal(
            contrastive_loss(image, text, torch.full(shape, 9.0)), contrastive_loss(image, text, torch.tensor(9.0))
        )
    with pytest.raises(ValueError, match="logit_scale"):
        contrastive_loss(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2))


def test_golden_next_token():
    ref = golden("ntp")
    logits = ref["logits"].clone().requires_grad_()
    loss = next_token_loss(logits, ref["input_ids"], ref["caption_mask"])
    loss.backward()
    close(loss, ref["loss"])
    close(logits.grad, ref["grad"])


def test_next_token_against_a_loop():
    logits, ids = torch.randn(3, 6, 9, generator=rng()), torch.randint(9, (3, 6), generator=rng())
    mask = torch.rand(3, 6, generator=rng(1)) < 0.5
    wanted = [-logits[b, p - 1].log_softmax(0)[ids[b, p]] for b in range(3) for p in range(1, 6) if mask[b, p]]
    close(next_token_loss(logits, ids, mask), torch.stack(wanted).mean())
    assert torch.equal(next_token_loss(logits, ids.int(), mask), next_token_loss(logits, ids, mask))
    with pytest.raises(ValueError, match=r"input_ids \(3, 6\) of torch.float32"):
        next_token_loss(logits, ids.float(), mask)


def test_next_token_without_tokens_has_a_gradient():
    logits = torch.randn(2, 3, 4).requires_grad_()
    first = torch.tensor([[True, False, False]] * 2)
    loss = next_token_loss(logits, torch.zeros(2, 3, dtype=torch.long), first)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
    with pytest.raises(ValueError, match="caption_mask"):
        next_token_loss(logits, torch.zeros(2, 3, dtype=torch.long), first[:, :2])


def test_what_a_summary_is_like():
    close(prediction_entropy(torch.zeros(2, 8)), torch.full((2,), np.log(8)))
    close(prediction_entropy(torch.tensor([[0.0, -torch.inf]])), [0.0])
    line = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    close(cumulative_variance(line), [1.0, 1.0])
    shares = cumulative_variance(torch.randn(9, 4, generator=rng()))
    assert shares.shape == (4,)
    assert bool((shares.diff() > 0).all())
    close(shares[-1], 1.0)


@pytest.mark.parametrize("row", [torch.ones(2), torch.full((5,), 0.1), torch.randn(8, generator=rng()), torch.zeros(3)])
@pytest.mark.parametrize("rows", [1, 3, 7])
def test_rows_that_are_all_alike_have_no_variance(row, rows):
    """Also where their mean, rounded, is another number; and where the rows themselves differ by rounding."""
    for emb in (row.repeat(rows, 1), row * (1 + torch.finfo(row.dtype).eps * (torch.arange(rows) % 2))[:, None]):
        with pytest.raises(ValueError, match="all alike"):
            cumulative_variance(emb)


def test_a_narrow_direction_beside_a_constant_one_has_variance():
    emb = torch.cat([torch.full((7, 1), 1e4), 1e-6 * torch.randn(7, 2, generator=rng())], 1)
    assert bool(cumulative_variance(emb).isfinite().all())
    with pytest.raises(ValueError, match="not finite"):
        cumulative_variance(emb.index_fill(0, torch.tensor([3]), torch.nan))


# Sequences ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_golden_assemble(side):
    ref, wanted = golden("asm"), golden(f"asm_{side}")
    made = assemble([(ref[f"emb{i}"], ref[f"mask{i}"]) for i in range(int(ref["n"]))], side)
    close(made.embeds, wanted["embeds"])
    for name in ("mask", "segment", "position_ids"):
        assert torch.equal(getattr(made, name), wanted[name]), name
    assert made.segment.dtype == made.position_ids.dtype == torch.int64


@given(st.integers(0, 10_000), st.sampled_from(["right", "left"]))
def test_assemble_against_a_loop(seed, side):
    lengths = torch.randint(0, 5, (3,), generator=rng(seed)).tolist()
    segments = [
        (torch.randn(2, n, 3, generator=rng(seed + n)), torch.rand(2, n, generator=rng(seed - n)) < 0.6)
        for n in (*lengths, 1)
    ]
    segments[-1][1][:] = True
    segments[0][0][~segments[0][1]] = torch.nan  # padding is dropped, whatever it holds
    made = assemble(segments, side)
    for row in range(2):
        tokens = torch.cat([emb[row][mask[row]] for emb, mask in segments])
        source = [i for i, (_, mask) in enumerate(segments) for _ in range(int(mask[row].sum()))]
        kept = made.mask[row]
        assert torch.equal(made.embeds[row][kept], tokens)
        assert made.segment[row][kept].tolist() == source
        assert made.position_ids[row][kept].tolist() == list(range(len(tokens)))
        assert bool(kept[0] if side == "right" else kept[-1])
        assert not made.embeds[row][~kept].any()
        assert made.segment[row][~kept].eq(-1).all()
    assert made.mask.any(0).all(), "as short as the longest row"


@pytest.mark.parametrize(
    "segments",
    [
        [],
        [(torch.ones(2, 3, 4), torch.ones(2, 2))],
        [(torch.ones(2, 3, 4), torch.ones(2, 3)), (torch.ones(1, 3, 4), torch.ones(1, 3))],
        [(torch.ones(2, 3, 4), torch.ones(2, 3)), (torch.ones(2, 3, 5), torch.ones(2, 3))],
        [(torch.ones(2, 3, 4), torch.zeros(2, 3))],
    ],
)
def test_assemble_refuses(segments):
    with pytest.raises(ValueError, match="segments"):
        assemble(segments)


def test_assemble_refuses_a_side():
    with pytest.raises(ValueError, match="side='middle'"):
        assemble([(torch.ones(1, 1, 1), torch.ones(1, 1))], "middle")


def test_last_token():
    assert last_token_index(torch.tensor([[1, 1, 0], [0, 0, 1], [1, 0, 1]])).tolist() == [1, 2, 2]
    with pytest.raises(ValueError, match="row 1"):
        last_token_index(torch.tensor([[True, False], [False, False]]))
    with pytest.raises(ValueError, match="row 0"):
        last_token_index(torch.ones(1, 0))
    with pytest.raises(ValueError, match=r"\(B, L\)"):
        last_token_index(torch.ones(3))


def test_summary():
    hidden = torch.randn(2, 3, 4, generator=rng())
    mask = torch.tensor([[True, True, False], [False, True, True]])
    unit = F.normalize(hidden, dim=-1)
    assert torch.equal(summary_embedding(hidden), unit[:, 2])
    assert torch.equal(summary_embedding(hidden, mask), torch.stack([unit[0, 1], unit[1, 2]]))
    assert torch.equal(summary_embedding(hidden, mask, torch.tensor([0, 1])), torch.stack([unit[0, 0], unit[1, 1]]))
    for bad in ({"index": torch.tensor([0, 3])}, {"index": torch.tensor([-1, 0])}, {"index": torch.tensor([0])}):
        with pytest.raises(ValueError, match="index"):
            summary_embedding(hidden, **bad)
    with pytest.raises(ValueError, match="mask"):
        summary_embedding(hidden, mask[:, :2])
    with pytest.raises(ValueError, match="hidden"):
        summary_embedding(hidden[0])


# What is trained ------------------------------------------------------------------------------------------------------


def test_golden_lora():
    ref = golden("lora")
    base = nn.Linear(5, 4)
    layer = LoRALinear(base, 2, float(ref["alpha"]))
    assert set(layer.state_dict()) == {"base.weight", "base.bias", "lora_A", "lora_B"}
    layer.load_state_dict({name: ref[name] for name in layer.state_dict()})
    close(layer(ref["x"]), ref["out"])
    merged = layer.merge()
    close(merged.weight, ref["merged"])
    close(merged(ref["x"]), ref["out"])
    assert torch.equal(layer.base.weight, ref["base.weight"]), "merging leaves the base alone"


def test_fresh_lora_changes_nothing_and_learns():
    layer = LoRALinear(nn.Linear(5, 4, bias=False), 3)
    x = torch.randn(2, 5, generator=rng())
    assert torch.equal(layer(x), layer.base(x))
    layer(x).sum().backward()
    assert layer.lora_B.grad.abs().sum() > 0, "a dead adapter: A is zero"
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    bound = 1 / 5**0.5  # Kaiming's, for a = √5
    assert bound / 2 < layer.lora_A.abs().max() <= bound
    for bad in ({"rank": 0}, {"alpha": float("nan")}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            LoRALinear(nn.Linear(2, 2), **bad)


def test_lora_of_a_half_precision_layer_stays_precise():
    layer = LoRALinear(nn.Linear(4, 4).bfloat16(), 2)
    assert layer.lora_A.dtype == torch.float32
    assert layer(torch.ones(1, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.merge().weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_shows_weight_and_bias_to_models_that_read_them(dtype):
    layer = LoRALinear(nn.Linear(5, 4).to(dtype), 2)
    nn.init.normal_(layer.lora_B, generator=rng())
    assert torch.equal(layer.weight, layer.merge().weight)
    assert layer.weight.dtype == dtype
    assert layer.bias is layer.base.bias
    layer.lora_B.data *= 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        close(layer.weight, layer.base.weight, 1e-5)  # of the base nothing is rounded away
    layer.weight.square().sum().backward()  # trains as well
    assert bool((layer.lora_B.grad != 0).all())
    with lora_off(layer):
        assert layer.weight is layer.base.weight
    assert LoRALinear(nn.Linear(2, 2, bias=False)).bias is None


@pytest.mark.parametrize("gradients", [True, False])
def test_lora_in_an_encoder_of_torch_itself(gradients):
    """In evaluation it reads weights instead of calling its layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 3, 8, generator=rng())
    assert add_lora(encoder, 2) == 2
    for layer in (encoder.linear1, encoder.linear2):
        nn.init.normal_(layer.lora_B, generator=rng())
    called = encoder(x)
    with torch.set_grad_enabled(gradients):
        close(encoder.eval()(x), called)


def test_lora_in_t5():
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    t5, ids = T5ForConditionalGeneration(config).eval(), torch.arange(2, 7)[None]
    plain = t5(input_ids=ids, labels=ids).loss
    assert add_lora(t5, 2) == 16
    assert torch.equal(t5(input_ids=ids, labels=ids).loss, plain)


def test_add_lora_to_a_decoder():
    lvlm = tiny.model.__wrapped__("llava")
    before = {name: value.clone() for name, value in lvlm.state_dict().items()}
    ids = torch.arange(3, 9)[None]
    plain = lvlm(ids).logits
    assert add_lora(lvlm.model.language_model, rank=2) == 7 * tiny.TEXT["num_hidden_layers"]
    assert not isinstance(lvlm.lm_head, LoRALinear)
    assert torch.equal(lvlm(ids).logits, plain)
    for module in lvlm.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.lora_B, std=0.3, generator=rng())
    changed = lvlm(ids).logits
    assert (changed - plain).abs().max() > 1e-3
    with lora_off(lvlm):
        assert torch.equal(lvlm(ids).logits, plain)
    assert torch.equal(lvlm(ids).logits, changed)
    with pytest.raises(ValueError, match="already"):
        add_lora(lvlm)
    merged = tiny.model.__wrapped__("llava")
    add_lora(merged.model.language_model, rank=2)
    merged.load_state_dict(lvlm.state_dict())
    assert merge_lora(merged) == remove_lora(lvlm) == 7 * tiny.TEXT["num_hidden_layers"]
    close(merged(ids).logits, changed)
    assert set(lvlm.state_dict()) == set(merged.state_dict()) == set(before)
    assert all(torch.equal(value, before[name]) for name, value in lvlm.state_dict().items())


def test_add_lora_spares_names_and_keeps_shared_layers_shared():
    layer = nn.Linear(3, 3)
    net = nn.ModuleDict({"one": layer, "two": nn.Sequential(layer), "lm_head": nn.Linear(3, 3)})
    assert add_lora(net, 2) == 1
    assert net["one"] is net["two"][0]
    assert type(net["lm_head"]) is nn.Linear
    assert not net["lm_head"].weight.requires_grad
    layer = nn.Linear(3, 3)
    twice = nn.ModuleDict({"one": layer, "two": layer, "lm_head": layer, "none": None})
    assert add_lora(twice, 2) == 1
    assert twice["one"] is twice["two"] is not layer
    assert twice["lm_head"] is layer
    assert remove_lora(twice) == 1
    assert twice["one"] is twice["two"] is layer
    with pytest.raises(ValueError, match="single"):
        add_lora(nn.Linear(2, 2))


def test_soft_prompt_is_a_copy():
    table = nn.Embedding(9, 4)
    prompt = SoftPrompt.from_token_ids(table, [3, 5])
    assert [name for name, _ in prompt.named_parameters()] == ["tokens"]
    assert torch.equal(prompt(2), table.weight[[3, 5]].expand(2, -1, -1))
    with torch.no_grad():
        table.weight.zero_()
    assert prompt.tokens.abs().sum() > 0
    prompt(3).sum().backward()
    assert table.weight.grad is None
    for ids in ([], [9], [-1]):
        with pytest.raises(ValueError, match="ids"):
            SoftPrompt.from_token_ids(table, ids)
    for init in (torch.ones(3), torch.ones(0, 3), torch.ones(2, 3, dtype=torch.long)):
        with pytest.raises(ValueError, match="init"):
            SoftPrompt(init)
    start = torch.ones(2, 3)
    with torch.no_grad():
        SoftPrompt(start).tokens.zero_()
    assert torch.equal(start, torch.ones(2, 3))


# The model ------------------------------------------------------------------------------------------------------------

KINDS = ("llava", "llava-next", "llava-onevision", "internvl", "qwen2-vl", "qwen2.5-vl")
IMAGE_INPUTS = ("pixel_values", "image_sizes", "image_grid_thw", "batch_num_images")


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_embeddings_are_the_models_own_states(kind):
    lvlm = tiny.model.__wrapped__(kind)
    before, after = ((tiny.TAGS[0],), (tiny.TAGS[1],)) if kind in (*tiny.QWEN, "internvl") else ((), ())
    prompts = tuple(tiny.Prompt((tiny.BOS, 5), (number,), (7, 8, 9)) for number in range(3))
    inputs = tiny.batch(kind, prompts)
    texts = torch.tensor([[tiny.BOS, 21, 22, 23, 10, 11]])
    with torch.no_grad():
        plain = lvlm.model(**inputs).last_hidden_state[:, -1]
        plain_text = lvlm.model(input_ids=texts).last_hidden_state[:, -1]
        adapted = VladvaModel(
            lvlm, [*after, 7, 8, 9], [10, 11], 2, image_prefix_ids=(tiny.BOS, 5, *before), text_prefix_ids=[tiny.BOS]
        )
        found = adapted.embed_image(**{name: inputs[name] for name in IMAGE_INPUTS if name in inputs})
        close(found, F.normalize(plain, dim=-1))
        close(adapted.embed_text(texts[:, 1:4], torch.ones(1, 3)), F.normalize(plain_text, dim=-1))
    assert (found[0] - found[1]).abs().max() > 1e-2, "the pictures do not matter"


def test_padding_does_not_matter():
    adapted = model().eval()
    ids = torch.tensor([[5, 6, 7], [8, 9, 2]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    plain = adapted.embed_text(ids, mask)
    pad = torch.full((2, 4), 33)
    for side in (1, -1):
        order = [(pad, torch.zeros(2, 4, dtype=torch.bool)), (ids, mask)][::side]
        close(adapted.embed_text(*(torch.cat(part, 1) for part in zip(*order, strict=True))), plain)
    close(adapted.embed_text(ids[1:, :2], mask[1:, :2]), plain[1:])


def test_a_caption_leaves_the_image_embedding_alone():
    adapted, inputs = model().eval(), batch()
    out = adapted(**inputs)
    close(out.image_embed, adapted.embed_image(inputs["pixel_values"]))
    close(out.text_embed, adapted.embed_text(inputs["short_ids"], inputs["short_mask"]))
    without = adapted(*(inputs[name] for name in ("pixel_values", "short_ids", "short_mask")))
    close(out.contrastive, without.contrastive)
    assert without.autoregressive == 0
    close(without.loss, without.contrastive)


def test_both_losses_against_the_equations():
    adapted, inputs = model().eval(), batch()
    out = adapted(**inputs)
    close(out.contrastive, contrastive_loss(out.image_embed, out.text_embed, 1 / 0.07))
    visual = adapted.visual(inputs["pixel_values"])
    table = adapted.lvlm.get_input_embeddings()
    losses, first = [], []
    for row, caption in enumerate(inputs["long_mask"].sum(1).tolist()):
        ids = inputs["long_ids"][row, :caption]
        embeds = torch.cat([visual.tokens[row], adapted.image_prompt.tokens, table(ids)])[None]
        logits = adapted.lvlm(inputs_embeds=embeds).logits[0]
        summary = embeds.shape[1] - caption - 1
        losses += [-logits[summary + i].log_softmax(0)[ids[i]] for i in range(caption)]
        first.append(F.normalize(adapted.lvlm.model(inputs_embeds=embeds).last_hidden_state[0, summary], dim=0))
    close(out.image_embed, torch.stack(first))
    close(out.autoregressive, torch.stack(losses).mean())
    close(out.loss, out.contrastive + out.autoregressive)


def test_only_prompts_lora_and_scale_learn():
    adapted = model()
    adapted(**batch()).loss.backward()
    for name, parameter in adapted.named_parameters():
        ours = "lora_" in name or name.endswith(".tokens") or name == "logit_scale"
        assert parameter.requires_grad == ours, name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == ours, name
        assert not ours or "vision" not in name
    state = adapted.adapter_state_dict()
    assert set(state) == {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    adapted.train()
    assert not adapted.lvlm.model.vision_tower.training
    assert adapted.lvlm.model.language_model.training


def test_ids_of_any_whole_type():
    adapted, inputs = model().eval(), batch()
    small = {name: value.int() if name.endswith("ids") else value for name, value in inputs.items()}
    assert torch.equal(adapted(**small).loss, adapted(**inputs).loss)


def test_adapter_travels():
    trained, other = model(), model()
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    inputs = batch()
    other.load_adapter_state_dict(trained.adapter_state_dict())
    assert torch.equal(other(**inputs).loss, trained(**inputs).loss)
    state = trained.adapter_state_dict()
    with pytest.raises(ValueError, match="unknown names, logit_scale"):
        other.load_adapter_state_dict({name: value for name, value in state.items() if name != "logit_scale"})
    with pytest.raises(ValueError, match="image_prompt"):
        other.load_adapter_state_dict({**state, "image_prompt.tokens": torch.ones(1, 2)})


def test_detaching_leaves_no_trace_and_merging_keeps_what_was_learned():
    lvlm = tiny.model.__wrapped__("llava")
    lvlm.model.vision_tower.requires_grad_(False)
    lvlm.train().model.language_model.layers[0].eval()
    modes = {name: module.training for name, module in lvlm.named_modules()}
    before = {name: value.clone() for name, value in lvlm.state_dict().items()}
    asked = {name: parameter.requires_grad for name, parameter in lvlm.named_parameters()}
    adapted = VladvaModel(lvlm, [7], [8], rank=2)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    embedded = adapted.train().embed_image(batch()["pixel_values"])
    assert adapted.detach() is lvlm
    assert modes == {name: module.training for name, module in lvlm.named_modules()}
    assert asked == {name: parameter.requires_grad for name, parameter in lvlm.named_parameters()}
    assert all(torch.equal(value, before[name]) for name, value in lvlm.state_dict().items())
    merged = model()
    embedded = merged.embed_image(batch()["pixel_values"])
    ids = torch.arange(3, 9)[None]
    said = merged.lvlm(ids).logits
    close(merged.merge()(ids).logits, said)
    close(merged.embed_image(batch()["pixel_values"]), embedded)
    assert set(merged.lvlm.state_dict()) == set(before)


def test_generates_with_the_adapter_on_and_off():
    inputs = tiny.batch("llava")
    plain = tiny.model.__wrapped__("llava").generate(**inputs, max_new_tokens=4, do_sample=False)
    adapted = model().eval()
    with lora_off(adapted):
        assert torch.equal(adapted.lvlm.generate(**inputs, max_new_tokens=4, do_sample=False), plain)
    assert adapted.lvlm.generate(**inputs, max_new_tokens=4, do_sample=False).shape[0] == len(plain)


def test_a_few_steps_pair_images_with_texts():
    adapted, inputs = model(), batch()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(40):
        out = adapted(**inputs)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        adapted.clamp_()
        losses.append((out.contrastive.item(), out.autoregressive.item()))
    assert losses[-1][0] < losses[0][0] / 4, losses
    assert losses[-1][1] < losses[0][1] / 2, losses
    for beyond, kept in ((9.0, 100.0), (-1.0, 1.0)):
        with torch.no_grad():
            adapted.logit_scale.fill_(beyond)
        adapted.clamp_()
        close(adapted.logit_scale.exp(), kept)


def test_half_precision():
    adapted, inputs = model().to(torch.bfloat16), batch()
    again = VladvaModel(tiny.model.__wrapped__("llava").bfloat16(), [7], [8], 2)
    assert again.image_prompt.tokens.dtype == torch.float32
    for made in (adapted, again):
        out = made(**inputs)
        out.loss.backward()
        assert out.loss.isfinite()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"short_ids": torch.ones(3, 5, dtype=torch.long), "short_mask": torch.ones(3, 5)}, "short_ids has 3 rows"),
        ({"short_mask": torch.ones(4, 4)}, "input_ids"),
        ({"short_mask": torch.zeros(4, 5)}, "row 0"),
        ({"long_mask": None}, "long_mask"),
        ({"long_mask": torch.ones(4, 3)}, "long_ids"),
        ({"long_ids": torch.ones(3, 8, dtype=torch.long), "long_mask": torch.ones(3, 8)}, "long_ids"),
    ],
)
def test_forward_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        model()(**{**batch(), **change})


def test_the_model_refuses():
    with pytest.raises(ValueError, match="get_image_features"):
        VladvaModel(nn.Linear(2, 2), [1], [1])
    for bad in ({"image_prompt_ids": []}, {"text_prompt_ids": [99]}, {"rank": 0}, {"text_prefix_ids": [64]}):
        lvlm = tiny.model.__wrapped__("llava")
        with pytest.raises(
            ValueError, match=next(iter(bad)).removeprefix("image_prompt_").removeprefix("text_prompt_")
        ):
            VladvaModel(lvlm, **{"image_prompt_ids": [1], "text_prompt_ids": [1], **bad})
        assert not any(isinstance(module, LoRALinear) for module in lvlm.modules()), "half adapted"


# Two processes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    out = tmp_path_factory.mktemp("vladva")
    port = str(20_000 + os.getpid() % 20_000)
    tests = str(pathlib.Path(__file__).parents[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "PYTHONPATH": tests}
    processes = [
        subprocess.Popen(
            [sys.executable, vladva_pair.__file__, out],
            env={**os.environ, **common, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_equal_one(halves):
    alone = vladva_pair.measure(batch())
    for name, whole in alone["losses"].items():
        close(torch.tensor(sum(half["losses"][name] for half in halves) / 2), whole)
    for name, whole in alone["gradients"].items():
        mean = sum(torch.tensor(half["gradients"][name]) for half in halves) / 2
        close(mean, whole)
    assert halves[0]["losses"]["autoregressive"] != halves[1]["losses"]["autoregressive"]
