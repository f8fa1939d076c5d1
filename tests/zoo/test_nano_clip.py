"""nano-clip: what it learns from, its losses, and that training gives a checkpoint of the standard classes."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from foveal.data import world
from foveal.data.world.vocabulary import NOVEL_NOUNS
from foveal.pretrain.clip import clip_loss
from foveal.zoo import nano
from foveal.zoo.nano import clip
from foveal.zoo.nano.bpe import clip_tokenizer
from foveal.zoo.nano.captions import EMOJI_EVERY, CaptionedScenes, corpus, emoji_names
from foveal.zoo.nano.scenes import CLIP_LESSONS, CLIP_WORLD, HELD_OUT_SEED, LLAVA_WORLD, SD_WORLD, DrawnScenes


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def drawn():
    return DrawnScenes(CLIP_WORLD, 0, 32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return clip.train(folder / "nano-clip", folder / "work", smoke=True)


def test_drawn_scenes_are_those_of_the_world(drawn):
    same = world.World(CLIP_WORLD, 0, 32, extras=())
    for index in (0, 31):
        assert np.array_equal(drawn.images[index], same[index].image)
        boxes = [region.box for region in same[index].regions]
        assert np.array_equal(drawn.boxes[index, : len(boxes)], boxes)
        assert not drawn.boxes[index, len(boxes) :].any()


def test_the_pictures_are_drawn_once(drawn, monkeypatch):
    assert drawn.images.shape == (32, 96, 96, 3)
    monkeypatch.setattr("foveal.zoo.nano.scenes.draw", None)
    assert np.array_equal(DrawnScenes(CLIP_WORLD, 0, 32).images, drawn.images)


@pytest.mark.parametrize("bad", [{"seed": -1, "n": 3}, {"seed": 0, "n": 0}])
def test_drawn_scenes_need_a_seed_and_a_number(bad):
    with pytest.raises(ValueError, match="seed="):
        DrawnScenes(CLIP_WORLD, **bad)


@pytest.mark.parametrize("config", [CLIP_WORLD, CLIP_LESSONS, LLAVA_WORLD, SD_WORLD])
def test_no_novel_noun_is_in_the_training_worlds(config):
    assert not set(config.nouns) & set(NOVEL_NOUNS)
    assert not {"noise", "inverted", "grey", "sepia", "mosaic"} & set(config.styles)


def test_no_novel_noun_is_named(drawn):
    said = " ".join(corpus(drawn)).split() + [word for emoji in emoji_names() for word in emoji.name.split()]
    assert not set(said) & set(NOVEL_NOUNS)


def test_samples_are_said_anew_and_reproducible(drawn):
    data = CaptionedScenes(drawn, 400)
    assert data[3]["caption"] == CaptionedScenes(drawn, 400)[3]["caption"]
    again = [data[i]["caption"] for i in range(3, 400, 32) if i % EMOJI_EVERY != EMOJI_EVERY - 1]
    assert len(set(again)) > len(again) / 2  # scene 3 in other words
    for index in range(20):
        sample = data[index]
        assert sample["image"].shape == (96, 96, 3)
        assert len(sample["boxes"]) == len(sample["phrases"]) > 0
    with pytest.raises(IndexError):
        data[400]


TEXTS = ["a dog and two dogs on grass", "an image of the dogs' kennel", "seven cats, 12 dogs"]


def test_tokenizer_knows_frequent_words_and_spells_the_others():
    tokenizer = clip_tokenizer(TEXTS * 5, 560, 12)
    assert tokenizer.tokenize("Dogs on grass") == ["dogs</w>", "on</w>", "grass</w>"]
    assert tokenizer.decode(tokenizer("zebra é 5")["input_ids"], skip_special_tokens=True) == "zebra é 5"
    ids = tokenizer("dog " * 30, truncation=True)["input_ids"]
    assert (len(ids), ids[0], ids[-1]) == (12, tokenizer.bos_token_id, tokenizer.eos_token_id)
    with pytest.raises(ValueError, match="size=100"):
        clip_tokenizer(TEXTS, 100, 12)


def test_tokenizer_is_the_same_at_every_run():
    """Many ties: every word occurs once."""
    words = [f"{a}{b}{c}" for a in "bdfg" for b in "aeiou" for c in "klmn"]
    first, second = (clip_tokenizer(words, 600, 12).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_matching_loss_of_different_texts_is_clips():
    images, texts = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    ours = clip.matching_loss(images, texts, torch.arange(6), torch.tensor(9.0))
    assert torch.allclose(ours, clip_loss(images, texts, torch.tensor(9.0)).loss)


def test_a_text_that_two_images_share_is_no_negative():
    images = torch.eye(2)[[0, 0, 1]]
    loss = clip.matching_loss(images, torch.eye(2), torch.tensor([0, 0, 1]), torch.tensor(100.0))
    assert loss < 1e-6


def test_regions_pool_the_patches_under_their_box(trained):
    learner = learner_of(trained)
    covered = learner.covered(torch.tensor([[8.0, 16.0, 16.0, 24.0], [4.0, 0.0, 12.0, 2.0]]))
    assert covered[0].nonzero().flatten().tolist() == [25]  # patch 1 of row 2
    assert covered[1].nonzero().flatten().tolist() == [0, 1]
    assert covered[[0, 1, 1], [25, 0, 1]].tolist() == [1.0, 0.125, 0.125]
    patches = torch.randn(2, 144, learner.clip.config.vision_config.hidden_size)
    tower = learner.clip.vision_model
    means = torch.stack([patches[0, 25], patches[1, :2].mean(0)])
    expected = learner.clip.visual_projection(tower.post_layernorm(means))
    assert torch.allclose(learner.pool(patches, covered), expected, atol=1e-5)


def test_patches_of_things_stay_before_those_of_the_ground(trained, drawn):
    things = torch.zeros(2, 144)
    things[:, 30:40] = 1.0
    learner = learner_of(trained, preference=1.0)
    _, patches, places = learner.encode(torch.from_numpy(drawn.images[:2].copy()), 1 / 3, things)
    assert patches.shape[:2] == places.shape == (2, 48)
    for row in places.tolist():
        assert len(set(row)) == 48
        assert set(range(30, 40)) <= set(row)


def learner_of(folder, **settings):
    part = nano.load("nano-clip", folder)
    return clip.Learner(part.model, part.processor.tokenizer, clip.ClipTraining(**settings))


def test_all_patches_give_the_models_own_features(trained, drawn):
    learner = learner_of(trained)
    with torch.no_grad():
        ours = learner.encode(torch.from_numpy(drawn.images[:2].copy()), 1.0, torch.zeros(2, 144))[0]
        inputs = nano.load("nano-clip", trained).processor(images=list(drawn.images[:2]), return_tensors="pt")
        theirs = learner.clip.get_image_features(**inputs).pooler_output
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_first_positions_tell_neighbours_from_strangers():
    found = clip.waves((12, 12), 32)
    assert found.shape == (144, 32)
    distances = torch.cdist(found, found)
    row, column = torch.arange(144) // 12, torch.arange(144) % 12
    apart = (row[:, None] - row).abs() + (column[:, None] - column).abs()
    means = [distances[apart == steps].mean() for steps in (1, 2, 4, 8)]
    assert 0 < means[0] < means[1] < means[2] < means[3]


def test_training_gives_a_standard_checkpoint(trained, drawn):
    model, processor = AutoModel.from_pretrained(trained), AutoProcessor.from_pretrained(trained)
    inputs = processor(text=["a dog", "two cats"], images=list(drawn.images[:2]), return_tensors="pt", padding=True)
    assert type(model).__name__ == "CLIPModel"
    assert model(**inputs).logits_per_image.shape == (2, 2)
    record = json.loads((trained / "training.json").read_text())
    assert (record["name"], record["config"]["steps"], len(record["curves"]["loss"])) == ("nano-clip", 2, 2)
    assert "model.safetensors" in record["files"]


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path, trained, monkeypatch):
    """Stop after the first of two steps, go on: the same weights."""
    from foveal.train import fit

    monkeypatch.setattr(clip, "fit", lambda *args, **options: fit(*args, **options, on=_Stopper()))
    with pytest.raises(KeyboardInterrupt):
        clip.train(tmp_path / "nano-clip", tmp_path / "work", smoke=True)
    assert not (tmp_path / "nano-clip").exists()
    monkeypatch.undo()
    again = clip.train(tmp_path / "nano-clip", tmp_path / "work", smoke=True)
    assert (again / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


class _Stopper:
    seed = 0

    def record(self, name, value, step):
        import os
        import signal

        if step == 0 and name == "loss":
            os.kill(os.getpid(), signal.SIGINT)


def test_nothing_but_a_checkpoint_is_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="choose a new folder"):
        clip.train(tmp_path, tmp_path / "work", smoke=True)


def test_evaluation_worlds_are_not_trained_on():
    assert clip.ClipTraining().seed < HELD_OUT_SEED
