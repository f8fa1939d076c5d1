"""Text to image: the adapter on a tiny pipeline, and the tasks with a judge that knows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from foveal.data.world.captions import prompts
from foveal.data.world.vocabulary import SPRITE
from foveal.evaluate.base import Setting
from foveal.evaluate.models import open_model
from foveal.evaluate.tasks import TASKS, generation
from foveal.zoo.nano.scenes import SD_WORLD

from .tiny import ConstantEncoder, ScriptedEncoder, save_stable_diffusion


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = save_stable_diffusion(tmp_path_factory.mktemp("models") / "sd")
    return open_model(str(folder), steps=2, guidance=3.0)


def values(found):
    return {metric.name: metric.value for metric in found.metrics}


def test_what_is_said_of_a_pipeline(opened):
    assert (opened.kind, opened.class_name) == ("text-to-image", "StableDiffusionPipeline")
    assert opened.settings == {"steps": 2, "guidance": 3.0}
    components = opened.model.pipeline.components
    assert opened.parameters == sum(
        p.numel() for name in ("vae", "unet", "text_encoder") for p in components[name].parameters()
    )


def test_a_picture_depends_on_its_prompt_key_and_seed_alone(opened):
    words, keys = ["a dog", "a red star", "a cat", "a dog"], ["a", "b", "c", "d"]
    made = opened.model.pictures(words, keys, seed=1)
    assert [image.shape for image in made] == [(16, 16, 3)] * 4
    assert made[0].dtype == np.uint8
    alone = opened.model.pictures(["a cat"], ["c"], seed=1)[0]
    assert np.abs(alone.astype(int) - made[2]).max() <= 1
    assert np.abs(made[0].astype(int) - made[3]).max() > 5  # another key
    assert np.abs(opened.model.pictures(["a cat"], ["c"], seed=2)[0].astype(int) - made[2]).max() > 5
    torch.manual_seed(123)
    np.testing.assert_array_equal(opened.model.pictures(words, keys, seed=1), made)


def test_bad_options(opened):
    with pytest.raises(ValueError, match="steps=0"):
        open_model(str(opened.folder), steps=0)


@pytest.fixture
def items(monkeypatch):
    """Of one thing or two, more than nano-sd's world has."""
    monkeypatch.setattr(generation, "SD_WORLD", replace(SD_WORLD, things=(1, 2)))
    return TASKS["world-generation"].make(Setting(24))


class Painter:
    """Draws what the world would draw, or always the first picture."""

    def __init__(self, items, same=False):
        self.by_prompt = {item.key: items[0 if same else i].pictures()[0] for i, item in enumerate(items)}

    def pictures(self, prompts, keys, seed=0):
        return [self.by_prompt[key] for key in keys]


def knowing_judge(items):
    """Sees in each drawn picture the class prompts of its things and its coloured phrases."""
    answers = []
    for item in items:
        things = item.truth["things"]
        texts = [text for thing in things for text in prompts(thing["noun"])]
        texts += [f"a {thing['colour']} {thing['noun']}" for thing in things if thing["colour"]] * 8
        answers.append((item.pictures()[0], texts))
    return ScriptedEncoder(answers, width=1024)


def test_prompts_say_what_is_judged(items):
    for item in items:
        for thing in item.truth["things"]:
            assert thing["noun"] in item.texts[0]
            assert thing["colour"] is None or thing["colour"] in item.texts[0]
        nouns = [thing["noun"] for thing in item.truth["things"]]
        assert 1 <= len(set(nouns)) == len(nouns) <= 2


def test_a_perfect_painter(items, monkeypatch):
    monkeypatch.setattr(generation, "judge", lambda: knowing_judge(items))
    task = TASKS["world-generation"]
    found = task.score(items, task.ask(Painter(items), items))
    assert values(found)["object recognised"] == 1.0
    assert values(found)["colour recognised"] == 1.0
    assert values(found)["sprite recognised"] == 1.0
    assert values(found)["in drawn pictures: object recognised"] == 1.0
    np.testing.assert_array_equal(generation.image_of(found.rows[3]["png"]), items[3].pictures()[0])


def test_plain_shapes_are_no_sprites(items, monkeypatch):
    monkeypatch.setattr(generation, "judge", lambda: knowing_judge(items))
    task = TASKS["world-generation"]
    found = task.score(items, task.ask(Painter(items), items))
    nouns = [thing["noun"] for item in items for thing in item.truth["things"]]
    counts = {metric.name: metric.n for metric in found.metrics}
    assert counts["object recognised"] == len(nouns)
    assert 0 < counts["sprite recognised"] == sum(noun in SPRITE for noun in nouns) < len(nouns)


def test_a_painter_of_one_picture(items, monkeypatch):
    monkeypatch.setattr(generation, "judge", lambda: knowing_judge(items))
    task = TASKS["world-generation"]
    found = task.score(items, task.ask(Painter(items, same=True), items))
    assert values(found)["object recognised"] < 0.3
    assert values(found)["in drawn pictures: object recognised"] == 1.0
    monkeypatch.setattr(generation, "judge", ConstantEncoder)
    blind = task.score(items, task.ask(Painter(items), items))
    assert values(blind)["object recognised"] == 0.0
    colour = next(metric for metric in blind.metrics if metric.name == "colour recognised")
    assert (colour.value, colour.chance) == (0.0, 1 / 11)


def test_chance_of_two_things_is_higher(items, monkeypatch):
    monkeypatch.setattr(generation, "judge", ConstantEncoder)
    task = TASKS["world-generation"]
    for count in (1, 2):
        some = [item for item in items if len(item.truth["things"]) == count]
        chance = task.score(some, task.ask(Painter(items), some)).metrics[0].chance
        assert chance == pytest.approx(count / len(generation.BASE_NOUNS))


def test_reconstruction(opened):
    task = TASKS["reconstruction"]
    items = task.make(Setting(3))
    outputs = task.ask(opened.model, items)
    image = items[1].pictures()[0]
    again = opened.model.reconstructions([image])[0].permute(1, 2, 0).double().numpy()
    error = ((image / 255 - again) ** 2).mean()
    assert outputs[1]["psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-3)
    found = task.score(items, outputs).metrics[0]
    assert found.value == pytest.approx(np.mean([output["psnr"] for output in outputs]))
    assert (found.unit, found.better) == ("dB", "higher")
    assert found.chance == pytest.approx(np.mean([output["flat"] for output in outputs]))


def test_psnr():
    black = np.zeros((2, 2, 3))
    assert generation.psnr(black, black + 0.1) == pytest.approx(20)
    assert generation.psnr(black, black) == 100
    assert SD_WORLD.shape == (64, 64)
