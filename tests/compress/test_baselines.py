"""Chance, averaging and one early drop: the reducers that every method is compared with."""

import pytest
import torch

from foveal.compress.baselines import AveragePool, FastV, RandomDrop, UniformDrop

from .tiny import BY_NAME, IMAGE

torch.set_num_threads(1)
SIDE = 4  # tokens a side of LLaVA's tiny image


@pytest.fixture(scope="module")
def llava():
    return BY_NAME["llava"].model()


@pytest.fixture
def prompt(llava):
    kind = BY_NAME["llava"]
    return kind.single(llava, 3, kind.sizes[0], 6)


def prefill(model, reducer, inputs):
    with torch.no_grad(), reducer.attached(model):
        return model(**inputs, output_hidden_states=True)


def test_random_drop_keeps_as_many_as_it_says_and_others_next_time(llava, prompt):
    reducer = RandomDrop((0, 3), (0.5, 0.25), seed=4)
    prefill(llava, reducer, prompt)
    first = [row.clone() for row in reducer.kept[0]]
    assert reducer.image_tokens[0].tolist() == [8, 8, 8, 4, 4, 4]
    prefill(llava, reducer, prompt)
    assert any(not torch.equal(one, other) for one, other in zip(first, reducer.kept[0], strict=True))
    again = RandomDrop((0, 3), (0.5, 0.25), seed=4)
    prefill(llava, again, prompt)
    assert all(torch.equal(one, other) for one, other in zip(first, again.kept[0], strict=True))


def test_random_drop_chooses_every_token_as_often(llava, prompt):
    reducer, counts = RandomDrop((0,), (0.25,)), torch.zeros(prompt["input_ids"].shape[1])
    for _ in range(200):
        prefill(llava, reducer, prompt)
        counts[reducer.kept[0][0]] += 1
    seen = counts[prompt["input_ids"][0] == IMAGE] / 200
    assert (seen - 0.25).abs().max() < 0.15
    assert (counts[prompt["input_ids"][0] != IMAGE] == 200).all()


def test_uniform_drop_keeps_even_distances(llava, prompt):
    images = (prompt["input_ids"][0] == IMAGE).nonzero()[:, 0]
    for ratio, places in ((0.25, [2, 6, 10, 14]), (0.0625, [8]), (0.001, [8])):
        reducer = UniformDrop(ratio)
        prefill(llava, reducer, prompt)
        assert torch.equal(reducer.kept[0][5][torch.isin(reducer.kept[0][5], images)], images[places])


def test_fastv_keeps_what_the_layer_before_attended_to(prompt):
    eager = BY_NAME["llava"].model(attention="eager")
    with torch.no_grad():
        attentions = eager(**prompt, output_attentions=True).attentions
    is_image = prompt["input_ids"][0] == IMAGE
    for layer in (1, 3):
        scores = attentions[layer - 1][0, :, -1].mean(0).masked_fill(~is_image, -1)
        expected = scores.topk(4).indices.sort().values
        reducer = FastV(layer, 0.25)
        prefill(BY_NAME["llava"].model(), reducer, prompt)
        kept = reducer.kept[0][layer]
        assert torch.equal(kept[is_image[kept]], expected)
        assert reducer.image_tokens[0].tolist() == [16] * layer + [4] * (6 - layer)


def test_average_pool_gives_the_decoder_the_means_of_blocks(llava, prompt):
    reducer = AveragePool(2)
    with torch.no_grad():
        features = llava.model.get_image_features(pixel_values=prompt["pixel_values"]).pooler_output[0]
    out = prefill(llava, reducer, prompt)
    assert reducer.image_tokens[0].tolist() == [4] * 6
    blocks = features.view(2, 2, 2, 2, -1).mean((1, 3)).flatten(0, 1)
    kept = reducer.kept[0][0]
    places = (prompt["input_ids"][0, kept] == IMAGE).nonzero()[:, 0]
    seen = []
    hook = llava.model.language_model.layers[0].register_forward_hook(
        lambda module, args, kwargs, output: seen.append(args[0]), with_kwargs=True
    )
    prefill(llava, AveragePool(2), prompt)
    hook.remove()
    torch.testing.assert_close(seen[0][0, places], blocks)
    assert out.logits.shape[1] == len(kept) == prompt["input_ids"].shape[1] - 12


@pytest.mark.parametrize("reducer", [RandomDrop((2,), (1.0,)), FastV(2, 1.0), AveragePool(SIDE), UniformDrop(1.0)])
def test_keeping_all_changes_nothing(llava, prompt, reducer):
    with torch.no_grad():
        expected = llava(**prompt).logits
    assert torch.equal(prefill(llava, reducer, prompt).logits, expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomDrop((), ()), "length"),
        (lambda: RandomDrop((2, 1), (0.5, 0.2)), "rise"),
        (lambda: RandomDrop((1, 2), (0.2, 0.5)), "ratios"),
        (lambda: FastV(0), "layer=0"),
        (lambda: FastV(2, 1.5), "ratio=1.5"),
        (lambda: AveragePool(0), "side=0"),
        (lambda: UniformDrop(0.0), "ratio=0.0"),
    ],
)
def test_bad_settings_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_what_the_model_does_not_have_is_refused(llava, prompt):
    for reducer in (RandomDrop((6,), (0.5,)), FastV(6)):
        with pytest.raises(ValueError, match="layers 0 to 5"):
            reducer.attach(llava)
    with pytest.raises(ValueError, match="side=5"):
        prefill(llava, AveragePool(5), prompt)
    with pytest.raises(ValueError, match="AveragePool cannot work on"):
        AveragePool(2).attach(BY_NAME["internvl"].model())
