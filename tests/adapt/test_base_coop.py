import copy

import numpy as np
import pytest
import torch
from evaluate.tiny import save_clip
from sklearn.base import clone

from foveal import zoo
from foveal.adapt import pcb
from foveal.adapt.base_coop import TextTower, prompt_texts
from foveal.nn.cosine import unit_rows
from foveal.zoo import nano
from foveal.zoo.dual_encoder import DualEncoder

torch.set_num_threads(1)
NAMES = ["dog", "red_fish", "owl"]
DESCRIPTIONS = {"dog": ["fur", "four legs"], "red_fish": ["fins"], "owl": ["large eyes", "feathers", "a beak"]}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return nano.load("nano-clip", save_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def tower(clip):
    return TextTower(DualEncoder(clip.model, clip.processor))


def few(n=12, seed=0):
    """Features around three directions, and which one it was."""
    labels = torch.arange(n) % 3
    return 5 * torch.eye(3, 8)[labels] + 0.5 * torch.randn(n, 8, generator=generator(seed)), labels


# Prompts --------------------------------------------------------------------------------------------------------------


def test_texts_name_the_class_and_what_it_is_or_has():
    assert prompt_texts(NAMES, None) == (["dog.", "red fish.", "owl."], [0, 1, 2])
    texts, index = prompt_texts(NAMES, DESCRIPTIONS)
    assert texts[:3] == ["dog, which is/has fur.", "dog, which is/has four legs.", "red fish, which is/has fins."]
    assert index == [0, 0, 1, 2, 2, 2]


def test_context_stands_between_the_start_token_and_the_name(tower):
    prompt = pcb.CoOpPrompt(NAMES, tower, n_ctx=4, generator=generator())
    plain, long = tower(prompt.texts), prompt()
    assert long.shape == (3, plain.shape[1] + 4, 16)
    assert torch.equal(long[:, :1], plain[:, :1])
    assert torch.equal(long[:, 1:5], prompt.ctx)
    assert torch.equal(long[:, 5:], plain[:, 1:])


@pytest.mark.parametrize("class_specific", [True, False])
def test_context_is_the_only_parameter_and_each_description_has_its_own(tower, class_specific):
    prompt = pcb.CoOpPrompt(NAMES, tower, 4, class_specific, DESCRIPTIONS, generator=generator())
    assert [name for name, _ in prompt.named_parameters()] == ["ctx"]
    assert prompt.ctx.shape == ((6, 4, 16) if class_specific else (4, 16))
    assert prompt().shape[0] == 6
    assert 0.015 < prompt.ctx.std() < 0.025


def test_embeddings_of_words_give_the_features_of_words(clip, tower):
    """Written out as context vectors, words must come out as if they had been read."""
    encoder = DualEncoder(clip.model, clip.processor)
    prompt = pcb.CoOpPrompt(["dog", "owl"], tower, n_ctx=2, class_specific=False)
    words = tower(["a b"])[0, 1:3]  # a tokenizer that spells: one token for each word
    prompt.ctx.data.copy_(words)
    found = tower.encode(prompt(), tower.inputs(prompt.texts, 2))
    torch.testing.assert_close(found, encoder.text_features(["a b dog.", "a b owl."]), rtol=1e-5, atol=1e-6)


def test_the_tower_is_left_as_it_was(clip, tower):
    encoder = DualEncoder(clip.model, clip.processor)
    before = encoder.text_features(["dog"])
    inputs = tower.inputs(["dog."], 2)
    with pytest.raises(RuntimeError):
        tower.encode(
            torch.zeros(1, 3, 16), {"input_ids": inputs["input_ids"], "attention_mask": inputs["input_ids"][:, :2]}
        )
    assert torch.equal(encoder.text_features(["dog"]), before)


def test_a_text_tower_without_start_token_that_reads_full_length():
    from transformers import SiglipConfig, SiglipModel

    class Tokenizer:
        all_special_ids, pad_token_id, model_max_length = [1], 1, 8

        def __call__(self, texts, **_):
            rows = [
                [2 + ord(letter) % 30 for letter in text] + [1]
                for text in ([texts] if isinstance(texts, str) else texts)
            ]
            if isinstance(texts, str):
                return {"input_ids": rows[0]}
            from transformers import BatchEncoding

            return BatchEncoding({"input_ids": torch.tensor([row + [1] * (8 - len(row)) for row in rows])})

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": 40, "max_position_embeddings": 8, "projection_size": 16}
    vision = {**size, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    encoder = DualEncoder(model, type("Processor", (), {"image_processor": None, "tokenizer": Tokenizer()}))
    tower = TextTower(encoder)
    assert tower.start == 0
    prompt = pcb.CoOpPrompt(["cat", "dog"], tower, n_ctx=2, class_specific=False)
    prompt.ctx.data.copy_(tower(["ab"])[0, :2])
    found = tower.encode(prompt(), tower.inputs(prompt.texts, 2))
    torch.testing.assert_close(found, encoder.text_features(["abcat.", "abdog."]), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="n_ctx=5"):
        tower.inputs(prompt.texts, 5)


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        ([], {}, "class_names"),
        ("dog", {}, "class_names"),
        (["dog", "dog"], {}, "different"),
        (["red fish", "red_fish"], {}, "different"),
        (["dog", " "], {}, "empty"),
        (NAMES, {"descriptions": {**DESCRIPTIONS, "owl": []}}, "'owl'"),
        (NAMES, {"descriptions": {**DESCRIPTIONS, "owl": "large eyes"}}, "'owl'"),
        (NAMES, {"n_ctx": 0}, "n_ctx=0"),
    ],
)
def test_prompt_refuses(tower, names, options, says):
    with pytest.raises(ValueError, match=says):
        pcb.CoOpPrompt(names, tower, **options)


def test_too_long_prompts_are_refused(tower):
    with pytest.raises(ValueError, match="64 tokens"):
        tower.inputs(["a long name" * 5], 20)


# Aggregation ----------------------------------------------------------------------------------------------------------


def test_average_similarity_is_the_mean_of_logits():
    logits, index = torch.randn(4, 5, generator=generator()), torch.tensor([1, 0, 1, 2, 0])
    found = pcb.average_similarity(logits, index, 3)
    torch.testing.assert_close(found, torch.stack([logits[:, index == k].mean(1) for k in range(3)], 1))
    assert torch.equal(pcb.average_similarity(logits, torch.arange(5), 5), logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_averages_add_up_in_float32(dtype):
    logits, index = (100 + torch.randn(2, 2000, generator=generator())).to(dtype), torch.arange(2000) % 2
    found = pcb.average_similarity(logits, index, 2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pcb.average_similarity(logits.float(), index, 2), rtol=0, atol=0)
    rows = logits.T.contiguous()
    assert torch.equal(pcb.average_embedding(rows, index, 2), pcb.average_embedding(rows.float(), index, 2))


def test_average_embedding_averages_before_it_normalises():
    rows, index = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 0, 1])
    found = pcb.average_embedding(rows, index, 2)
    torch.testing.assert_close(found, unit_rows(torch.tensor([[1.5, 0.5], [0.0, 2.0]])))


@pytest.mark.parametrize("average", [pcb.average_similarity, pcb.average_embedding])
def test_a_class_without_description_is_refused(average):
    with pytest.raises(ValueError, match="class 1"):
        average(torch.ones(3, 3), torch.tensor([0, 0, 2]), 3)


# The learner ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", [None, "AS", "AE"])
def test_learner_learns_and_leaves_the_encoder_alone(clip, aggregation):
    x, y = few()
    weights = copy.deepcopy(clip.model.state_dict())
    options = {"n_ctx": 4, "epochs": 40, "aggregation": aggregation}
    learner = pcb.CoOpLearner(clip, NAMES, descriptions=DESCRIPTIONS if aggregation else None, **options)
    assert learner.fit(x, y) is learner
    assert learner.score(x, y) == 1.0
    probs = learner.predict_proba(x)
    assert isinstance(probs, torch.Tensor)
    torch.testing.assert_close(probs.sum(1), torch.ones(12))
    assert torch.equal(learner.predict(x), probs.argmax(1))
    assert isinstance(learner.predict(x.numpy()), np.ndarray)
    torch.testing.assert_close(learner.features(x).norm(dim=1), torch.ones(12))
    assert all(torch.equal(weights[name], value) for name, value in clip.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in clip.model.parameters())


def test_learner_scores_with_the_cosine_to_what_its_prompts_mean(clip):
    x, y = few()
    learner = pcb.CoOpLearner(clip, NAMES, n_ctx=4, epochs=2).fit(x, y)
    tower = TextTower(DualEncoder(clip.model, clip.processor))
    texts = tower.encode(learner.prompt_(), tower.inputs(learner.prompt_.texts, 4)).detach()
    expected = clip.model.logit_scale.exp() * unit_rows(x) @ unit_rows(texts).T
    torch.testing.assert_close(learner.decision_function(x), expected.detach())


@pytest.mark.parametrize("aggregation", ["AS", "AE"])
def test_learner_averages_what_it_is_told_to(clip, aggregation):
    x, y = few()
    options = {"n_ctx": 4, "epochs": 2, "descriptions": DESCRIPTIONS}
    learner = pcb.CoOpLearner(clip, NAMES, aggregation=aggregation, **options).fit(x, y)
    tower = TextTower(DualEncoder(clip.model, clip.processor))
    texts = tower.encode(learner.prompt_(), tower.inputs(learner.prompt_.texts, 4)).detach()
    groups = texts.split([2, 1, 3])
    mean = {"AS": lambda group: unit_rows(group).mean(0), "AE": lambda group: unit_rows(group.mean(0))}[aggregation]
    expected = clip.model.logit_scale.exp() * unit_rows(x) @ torch.stack([mean(group) for group in groups]).T
    torch.testing.assert_close(learner.decision_function(x), expected.detach())


def test_learner_is_a_function_of_its_seed_alone(clip):
    x, y = few()
    found = []
    for noise, seed in ((1, 0), (2, 0), (3, 1)):
        torch.manual_seed(noise)
        found.append(pcb.CoOpLearner(clip, NAMES, n_ctx=2, epochs=3, seed=seed).fit(x, y).predict_proba(x))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_learner_takes_pictures_as_well_as_features(clip):
    pixels, y = torch.randn(6, 3, 32, 32, generator=generator()), torch.arange(6) % 3
    with torch.no_grad():
        x = clip.model.get_image_features(pixel_values=pixels).pooler_output
    learner = pcb.CoOpLearner(clip, NAMES, n_ctx=2, epochs=3)
    torch.testing.assert_close(
        learner.fit(pixels, y).predict_proba(pixels), clone(learner).fit(x, y).predict_proba(x), rtol=1e-4, atol=1e-5
    )


def test_learner_survives_classes_without_labels(clip):
    x, _ = few()
    probs = pcb.CoOpLearner(clip, NAMES, n_ctx=2, epochs=2).fit(x, torch.zeros(12, dtype=torch.int64)).predict_proba(x)
    assert probs.shape == (12, 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"aggregation": "AS"}, "no descriptions"),
        ({"descriptions": DESCRIPTIONS}, "given descriptions"),
        ({"aggregation": "max", "descriptions": DESCRIPTIONS}, "AS or AE"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr": 1e38}, "lower lr"),
    ],
)
def test_learner_refuses(clip, options, says):
    x, y = few()
    with pytest.raises(ValueError, match=says):
        pcb.CoOpLearner(clip, NAMES, **{"n_ctx": 2, "epochs": 5, **options}).fit(x, y)


def test_active_learning_on_nano_clip():
    """The whole method on the shipped model: unknown words are learnt from few labels."""
    from foveal.data import world

    nano_clip = zoo.load("nano-clip")
    encoder = DualEncoder(nano_clip.model, nano_clip.processor)
    names = ("dog", "car", "owl")
    shown = world.batches.classify(1_000_500, 60, names, world.WorldConfig(size=96, depth=(2.1, 3.0)))
    x, labels = encoder.image_features(shown.images), torch.from_numpy(shown.labels)
    result = pcb.active_prompt_learning(
        lambda: pcb.CoOpLearner(encoder, names, n_ctx=4, epochs=30),
        x,
        lambda indices: labels[indices],
        num_classes=3,
        rounds=4,
        generator=generator(),
    )
    left = torch.ones(60, dtype=torch.bool)
    left[torch.cat(result.selected)] = False
    scores = [model.score(x[left], labels[left]) for model in result.models]
    assert scores[-1] > 0.5  # of three, one of them a word that it never met
    assert torch.bincount(torch.cat(result.labels)).min() >= 2
