"""Tasks for dual encoders: a model that knows the answers gets everything, one that sees nothing gets nothing."""

import numpy as np
import pytest
from PIL import Image

from foveal.data import twemoji
from foveal.data.world.captions import prompts
from foveal.data.world.vocabulary import BASE_NOUNS, NOVEL_NOUNS, SPRITE
from foveal.evaluate.base import Setting
from foveal.evaluate.tasks import TASKS, tasks_for
from foveal.zoo.nano.scenes import CLIP_WORLD, HELD_OUT_SEED

from .tiny import ConstantEncoder, ScriptedEncoder

RETRIEVAL = ["world-retrieval", "twemoji-names"]
CLASSES = ["world-classes", "world-novel"]


def scored(task, setting, encoder, items=None):
    items = task.make(setting) if items is None else items
    return task.score(items, task.ask(encoder, items))


def values(found):
    return {metric.name: metric.value for metric in found.metrics}


@pytest.mark.parametrize("name", RETRIEVAL)
def test_retrieval(name):
    task = TASKS[name]
    items = task.make(Setting(40))
    assert len({item.texts[0] for item in items}) == 40
    knowing = scored(task, None, ScriptedEncoder([(item.pictures()[0], item.texts) for item in items]), items)
    assert set(values(knowing).values()) == {1.0}
    assert len(values(knowing)) == 4
    assert all(row["text"] == row["best_text"] for row in knowing.rows)
    blind = scored(task, None, ConstantEncoder(), items)
    assert set(values(blind).values()) == {0.0}
    assert [metric.chance for metric in blind.metrics] == [1 / 40, 5 / 40] * 2


def test_retrieval_counts_the_two_ways_apart():
    """Picture 0 goes to text 1; text 0 still finds picture 0."""
    import torch

    from foveal.evaluate.base import Item
    from foveal.evaluate.tasks.embedding import packed
    from foveal.evaluate.tasks.retrieval import recalls

    images = [[0.9, 1.0], [0.0, 1.0]]
    texts = [[1.0, 0.0], [0.5, 1.0]]
    outputs = [{"image": [packed(torch.tensor(a))], "text": [packed(torch.tensor(b))]} for a, b in zip(images, texts)]
    found = values(recalls([Item("a", ("x",)), Item("b", ("y",))], outputs))
    assert found["image to text R@1"] == 0.5
    assert found["text to image R@1"] == 0.5
    assert found["image to text R@5"] == 1.0


def test_retrieval_scenes_are_held_out_and_differ_by_seed():
    keys = [item.key for item in TASKS["world-retrieval"].make(Setting(5))]
    assert all(int(key.split("-")[1]) >= HELD_OUT_SEED for key in keys)
    assert keys == [item.key for item in TASKS["world-retrieval"].make(Setting(5))]
    assert not set(keys) & {item.key for item in TASKS["world-retrieval"].make(Setting(5, seed=1))}


def test_emoji_of_training_families_are_candidates_only():
    held_out = {emoji.key for emoji in twemoji.emojis() if twemoji.split(emoji) == "held_out"}
    items = TASKS["twemoji-names"].make(Setting(200))
    assert all(item.truth["asked"] == (item.key in held_out) for item in items)
    asked = sum(item.truth["asked"] for item in items)
    assert 100 < asked < 200
    found = scored(TASKS["twemoji-names"], None, ConstantEncoder(), items)
    assert [(metric.n, metric.chance) for metric in found.metrics][:2] == [(asked, 1 / 200), (asked, 5 / 200)]
    with pytest.raises(ValueError, match="n=100000"):
        TASKS["twemoji-names"].make(Setting(100_000))


@pytest.mark.parametrize("name", CLASSES)
def test_zero_shot(name):
    task = TASKS[name]
    items = task.make(Setting(30))
    shown = [item for item in items if "label" in item.truth]
    named = [item.truth["class"] for item in items if "class" in item.truth]
    assert len(shown) == 30
    assert set(named) == set(SPRITE) - (set(NOVEL_NOUNS) if name == "world-classes" else set())
    answers = [(item.pictures()[0], prompts(item.truth["label"])) for item in shown]
    knowing = scored(task, None, ScriptedEncoder(answers), items)
    assert values(knowing) == {"top-1": 1.0, "top-5": 1.0}
    blind = scored(task, None, ConstantEncoder(), items)
    assert values(blind) == {"top-1": 0.0, "top-5": 0.0}
    assert blind.metrics[0].chance == 1 / len(named)
    assert {item.truth["label"] for item in shown} <= set(BASE_NOUNS if name == "world-classes" else NOVEL_NOUNS)
    assert all(item.pictures()[0].shape == (*CLIP_WORLD.shape, 3) for item in shown[:2])


def test_linear_probe():
    task = TASKS["linear-probe"]
    items = task.make(Setting(214))
    assert sum(item.truth["part"] == "train" for item in items) == 2 * 214
    answers = [(item.pictures()[0], (item.truth["noun"],)) for item in items]
    found = scored(task, None, ScriptedEncoder(answers), items)
    assert values(found)["noun accuracy"] > 0.95
    assert values(found)["category accuracy"] > 0.95
    blind = scored(task, None, ConstantEncoder(), items)
    assert blind.metrics[0].value <= 0.02
    assert blind.metrics[1].chance == pytest.approx(blind.metrics[1].value, abs=0.05)  # the most frequent category


def test_linear_probe_learns_from_the_training_pictures():
    """Test pictures that look like another noun are taken for it."""
    task = TASKS["linear-probe"]
    items = task.make(Setting(20))
    nouns = sorted({item.truth["noun"] for item in items if item.truth["part"] == "test"})
    looks = {**{noun: noun for noun in BASE_NOUNS}, **dict(zip(nouns, [*nouns[1:], nouns[0]]))}
    answers = [
        (item.pictures()[0], (item.truth["noun"] if item.truth["part"] == "train" else looks[item.truth["noun"]],))
        for item in items
    ]
    found = scored(task, None, ScriptedEncoder(answers), items)
    assert values(found)["noun accuracy"] == 0.0
    assert {row["predicted noun"] for row in found.rows} <= set(nouns)


def test_own_folder_of_classes(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("red_fox", "cat"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / folder / f"{i}.png")
    task = TASKS["imagefolder"]
    items = task.make(Setting(100, data=tmp_path))
    shown = [item for item in items if "label" in item.truth]
    assert [item.truth["label"] for item in shown] == ["cat"] * 3 + ["red fox"] * 3
    answers = [(item.pictures()[0], prompts(item.truth["label"])) for item in shown]
    assert values(scored(task, None, ScriptedEncoder(answers), items))["top-1"] == 1
    assert len(task.make(Setting(4, data=tmp_path))) == 2 + 4
    (tmp_path / "red fox").mkdir()
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "red fox" / "0.png")
    with pytest.raises(ValueError, match="rename one"):
        task.make(Setting(4, data=tmp_path))
    with pytest.raises(ValueError, match="class folders"):
        task.make(Setting(4, data=tmp_path / "cat"))


def test_tasks_by_kind_and_name():
    usual = [task.name for task in tasks_for("dual encoder")]
    assert usual == ["world-retrieval", "twemoji-names", "world-classes", "world-novel", "linear-probe"]
    asked = {task.name for task in tasks_for("vision-language")}
    assert {"world-existence", "world-count", "world-relation", "world-caption", "world-rec"} <= asked
    assert not {"pope", "chair", "vqa"} & asked
    assert [task.name for task in tasks_for("dual encoder", ["imagefolder"])] == ["imagefolder"]
    with pytest.raises(ValueError, match=r"world-clases.*world-classes"):
        tasks_for("dual encoder", ["world-clases"])
    with pytest.raises(ValueError, match="is for a dual encoder"):
        tasks_for("vision-language", ["world-classes"])
