"""The region focus module against the attention of real decoders, and LLaVA with large images against plain loops."""

import copy
import math

import pytest
import torch
from torch import nn

from foveal.compress.lrs import (
    LargeImageLlava,
    RegionFocusModule,
    attention_distillation_loss,
    build_pyramid,
    coarse_to_fine,
    language_model_logits,
    pyramid_plan,
)

from .tiny import BY_NAME, EOS, IMAGE, SIDE

torch.set_num_threads(1)
START, END, LENGTH = 3, 12, 17
ROWS = torch.tensor([13, 16])


def decoder(name="llava", attention="eager"):
    return BY_NAME[name].model(attention=attention, dtype=torch.float64).model.language_model


def sequence(seed=0, batch=2):
    return torch.randn(batch, LENGTH, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shares(attention):
    """Of the whole rows that a model gives out, what goes to the local tokens, as a distribution over these."""
    local = attention[:, :, ROWS, START:END]
    return local / local.sum(-1, keepdim=True)


def some_masked():
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, [4, 5, 9]] = 0
    mask[1, 10] = 0
    return mask


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["llava", "llava_onevision"])  # Llama; Qwen2, whose projections have a bias
def test_teacher_is_what_the_model_attends_to(name, masked):
    lm, embeds, mask = decoder(name), sequence(), some_masked() if masked else None
    with torch.no_grad():
        seen = lm(inputs_embeds=embeds, attention_mask=mask, output_attentions=True, use_cache=False).attentions
    logits = language_model_logits(lm, (1, 4, 5), embeds, ROWS, (START, END), attention_mask=mask)
    assert logits.shape == (2, 3, 4, 2, END - START)
    for number, layer in enumerate((1, 4, 5)):
        torch.testing.assert_close(logits[:, number].softmax(-1), shares(seen[layer]))
    if masked:
        assert logits[0, :, :, :, [1, 2, 6]].isneginf().all()
        assert int(logits.isneginf().sum()) == 4 * logits[0, :, :, :, 0].numel()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_student_runs_its_copies_alone(attention):
    """A decoder of the layers 1, 2 and 4 attends to what the copies of these layers look at."""
    lm, embeds, mask = decoder(), sequence(), some_masked()
    rfm = RegionFocusModule.from_language_model(decoder(attention=attention), (2, 4))
    short = copy.deepcopy(lm)
    short.layers = nn.ModuleList([short.layers[number] for number in (1, 2, 4)])
    short.config.num_hidden_layers = 3
    positions = torch.arange(LENGTH)[None] * 2 + 5
    arguments = {"attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        seen = short(inputs_embeds=embeds, output_attentions=True, use_cache=False, **arguments).attentions
        logits = rfm(embeds, ROWS, (START, END), **arguments)
        scores = rfm.scores(embeds, ROWS, (START, END), **arguments)
    for number in (1, 2):
        torch.testing.assert_close(logits[:, number - 1].softmax(-1), shares(seen[number]))
    torch.testing.assert_close(scores, shares(seen[2]).mean((1, 2)))
    assert not scores[0, [1, 2, 6]].any()


def test_masked_tokens_can_leave_if_the_others_keep_their_positions():
    rfm, embeds, mask = RegionFocusModule.from_language_model(decoder(), (2, 3)), sequence(batch=1), some_masked()[:1]
    keep = mask[0].nonzero()[:, 0]
    with torch.no_grad():
        whole = rfm.scores(embeds, torch.tensor([16]), (START, END), attention_mask=mask)
        fewer = rfm.scores(embeds[:, keep], torch.tensor([13]), (START, END - 3), position_ids=keep[None])
        shifted = rfm.scores(embeds[:, keep], torch.tensor([13]), (START, END - 3))
    torch.testing.assert_close(whole[:, mask[0, START:END].bool()], fewer)
    assert not torch.allclose(fewer, shifted)


def test_distillation_trains_the_module_alone():
    lm, embeds = decoder().float().requires_grad_(False), sequence().float().requires_grad_(True)
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    rfm = RegionFocusModule.from_language_model(lm, (3, 4))
    assert all(parameter.requires_grad for parameter in rfm.parameters())
    teacher = language_model_logits(lm, (3, 4), embeds, ROWS, (START, END))
    optimiser, losses = torch.optim.AdamW(rfm.parameters(), 3e-3), []
    for _ in range(12):
        loss = attention_distillation_loss(rfm(embeds, ROWS, (START, END)), teacher)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert embeds.grad is None
    assert all(torch.equal(value, before[name]) for name, value in lm.state_dict().items())
    again = RegionFocusModule.from_language_model(lm, (3, 4))
    again.load_state_dict(rfm.state_dict())
    with torch.no_grad():
        assert torch.equal(again(embeds, ROWS, (START, END)), rfm(embeds, ROWS, (START, END)))


@pytest.mark.parametrize("ids", [(), (0, 1), (2, 2), (3, 2), (4, 6)])
def test_bad_layers(ids):
    with pytest.raises(ValueError, match=r"layer_ids=\(.*rise strictly within 1 to 5"):
        RegionFocusModule.from_language_model(decoder(), ids)


def test_bad_questions():
    rfm = RegionFocusModule.from_language_model(decoder(), (1,))

    def ask(rows=(16,), local=(START, END), mask=None):
        return rfm(sequence(), torch.tensor(rows), local, attention_mask=mask)

    assert ask().shape == (2, 1, 4, 1, 9)
    for local in ((5, 5), (-1, 4), (3, LENGTH + 1)):
        with pytest.raises(ValueError, match="local_range"):
            ask(local=local)
    for rows in ((LENGTH,), (-1,), ()):
        with pytest.raises(ValueError, match="query_index"):
            ask(rows=rows)
    with pytest.raises(ValueError, match="sees no valid token"):
        ask(rows=(2, 16))  # before the image
    mask = torch.ones(2, LENGTH)
    mask[1, START:END] = 0
    with pytest.raises(ValueError, match="sees no valid token"):
        ask(mask=mask)
    with pytest.raises(ValueError, match=r"attention_mask \(2, 3\)"):
        ask(mask=torch.ones(2, 3))


# LLaVA ----------------------------------------------------------------------------------------------------------------


def setting(name, **options):
    model = BY_NAME[name].model(dtype=torch.float64)
    rfm = RegionFocusModule.from_language_model(model, (2, 3))
    return model, rfm, LargeImageLlava(model, rfm, base_long_side=48, **options)


def picture(height=70, width=101):
    return torch.randn(3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


PROMPT = torch.tensor([[5, 6, IMAGE, IMAGE, 7, 8, 9]])


@pytest.mark.parametrize("most", [None, 2])
@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_inputs_by_hand(name, most):
    """Every place of the last level in the sequence, masked where no tile was fetched."""
    model, rfm, plugin = setting(name, keep_ratio=0.3, max_level=3, max_tiles=most)
    image, embed = picture(), model.get_input_embeddings()
    plan = pyramid_plan(70, 101, SIDE, 48)
    newline = model.model.image_newline.detach() if name == "llava_next" else None

    def features(tiles):
        hidden = model.model.vision_tower(tiles, output_hidden_states=True).hidden_states
        return model.model.multi_modal_projector(hidden[model.config.vision_feature_layer][:, 1:])

    def encode(tiles):
        return features(tiles).view(-1, 2, 2, 2, 2, 32).mean((2, 4)).flatten(1, 2)  # 4 × 4 halved: means of 2 × 2

    def score(tokens, valid, level):
        n = len(tokens)
        whole = torch.cat([embed(PROMPT[0, :2]), thumbnail, tokens, embed(PROMPT[0, 4:])])[None]
        mask = torch.ones(1, whole.shape[1], dtype=torch.bool)
        mask[0, 18 : 18 + n] = valid
        return rfm.scores(whole, torch.tensor([whole.shape[1] - 1]), (18, 18 + n), attention_mask=mask)[0]

    with torch.no_grad():
        pyramid = build_pyramid(image, plan, SIDE)
        thumbnail = features(pyramid[0][0, 0][None])[0]
        want = coarse_to_fine(pyramid, plan, encode, score, 2, newline, 0.3, 3, most)
        got = plugin.prepare(image, PROMPT)
        embeds = torch.cat([embed(PROMPT[0, :2]), thumbnail, want.tokens, embed(PROMPT[0, 4:])])[None]
    torch.testing.assert_close(got["inputs_embeds"], embeds)
    assert got["attention_mask"].tolist() == [[1] * embeds.shape[1]]
    assert plugin.last.index.tolist() == want.index.tolist()
    assert [tiles.tolist() for tiles in plugin.last.tiles] == [tiles.tolist() for tiles in want.tiles]
    assert plugin.last.level == 3
    if most is not None:
        assert len(plugin.last.tiles[0]) == 9
        assert max(len(tiles) for tiles in plugin.last.tiles[1:]) <= 2


def test_only_some_tiles_go_through_the_tower():
    model, _, plugin = setting("llava_next", max_level=3, max_tiles=3, keep_ratio=0.1)
    seen = []
    model.model.vision_tower.register_forward_pre_hook(lambda module, arguments: seen.append(len(arguments[0])))
    plugin.prepare(picture(), PROMPT)
    everything = sum(math.prod(level.grid_hw) for level in pyramid_plan(70, 101, SIDE, 48))
    assert sum(seen) == 1 + plugin.last.tiles_encoded == 1 + sum(len(tiles) for tiles in plugin.last.tiles)
    assert sum(seen) < everything / 2


def test_generation_is_the_models_own():
    model, _, plugin = setting("llava_next")
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": EOS + 1000}
    got = plugin.generate(picture(), PROMPT, **options)
    assert torch.equal(got, model.generate(**plugin.prepare(picture(), PROMPT), **options))
    assert got.shape == (1, 4)
    assert torch.equal(got, plugin.generate(picture(), torch.tensor([[5, 6, *[IMAGE] * 9, 7, 8, 9]]), **options))


def test_first_level_holds_every_token():
    model, rfm, plugin = setting("llava_next")
    embeds, (start, end) = plugin.first_level(picture(), PROMPT)
    assert start == 2 + 16
    assert embeds.shape[1] == end + 3
    # 101 × 70 is 48 × 33 here: of 3 × 3 tiles of 2 × 2 tokens four rows are left, with a newline each
    assert end - start == 4 * 7
    assert torch.equal(embeds[0, start + 6 : end : 7], model.model.image_newline.detach().expand(4, -1))
    everything = LargeImageLlava(model, rfm, base_long_side=48, keep_ratio=1.0, max_level=1)
    assert torch.equal(everything.prepare(picture(), PROMPT)["inputs_embeds"], embeds)
    student = rfm(embeds, torch.tensor([embeds.shape[1] - 1]), (start, end))
    assert student.shape == language_model_logits(model, (2, 3), embeds, torch.tensor([end]), (start, end)).shape


def test_pooling_rounds_up():
    model, rfm, _ = setting("llava")
    plugin = LargeImageLlava(model, rfm, base_long_side=48, pool=3, keep_ratio=1.0, max_level=1)
    plugin.prepare(picture(48, 48), PROMPT)
    assert len(plugin.last.tokens) == 9 * 2 * 2


def test_bad_models_and_prompts():
    model, rfm, plugin = setting("llava")
    for call, match in [
        (lambda: LargeImageLlava(BY_NAME["internvl"].model(), rfm), "LLaVA-1.5 and LLaVA-NeXT"),
        (lambda: LargeImageLlava(model, rfm, tile=336), "tile=336 must be 16"),
        (lambda: LargeImageLlava(model, rfm, pool=0), "pool=0"),
        (lambda: LargeImageLlava(model, rfm, keep_ratio=0), "keep_ratio=0"),
        (lambda: LargeImageLlava(model, rfm, max_level=-1), "max_level=-1"),
        (lambda: LargeImageLlava(model, rfm, max_tiles=0), "max_tiles=0"),
        (lambda: LargeImageLlava(model, rfm, base_long_side=0), "base_long_side=0"),
        (lambda: plugin.prepare(picture()[None], PROMPT), r"image \(1, 3, 70, 101\)"),
        (lambda: plugin.prepare(picture(), PROMPT.repeat(2, 1)), "one prompt"),
        (lambda: plugin.prepare(picture(), PROMPT[:, :2]), "0 image tokens"),
        (lambda: plugin.prepare(picture(), PROMPT[:, :4]), "question behind"),
        (lambda: plugin.prepare(picture(), torch.cat([PROMPT, PROMPT], 1)), "4 image tokens"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
