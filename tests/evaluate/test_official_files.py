"""POPE, CHAIR and VQA on small files in their official formats."""

import json

import numpy as np
import pytest
from PIL import Image

from foveal.evaluate.base import Setting
from foveal.evaluate.models import RecordedAnswers, open_model
from foveal.evaluate.run import run_task
from foveal.evaluate.tasks import TASKS

from .tiny import ScriptedAnswers


def values(found):
    return {metric.name: metric.value for metric in found.metrics}


def recorded(task, setting, path):
    return run_task(TASKS[task], open_model(str(path)), setting, keep=None)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "val2014"
    folder.mkdir()
    for number in (9, 25, 42):
        pixels = np.full((30, 40, 3), number, np.uint8)
        Image.fromarray(pixels).save(folder / f"COCO_val2014_{number:012d}.png")
        Image.fromarray(pixels).save(folder / f"COCO_val2014_{number:012d}.jpg")
    return folder


@pytest.fixture
def pope(tmp_path):
    folder = tmp_path / "pope"
    folder.mkdir()
    for split, absent in (("random", "kite"), ("popular", "person"), ("adversarial", "leash")):
        lines = []
        for i, (number, noun, label) in enumerate(
            [(9, "dog", "yes"), (9, absent, "no"), (25, "cat", "yes"), (25, absent, "no")]
        ):
            text = f"Is there a {noun} in the image?"
            name = f"COCO_val2014_{number:012d}.png"
            lines.append(json.dumps({"question_id": i + 1, "image": name, "text": text, "label": label}))
        (folder / f"coco_pope_{split}.json").write_text("\n".join(lines) + "\n")
    return folder


def test_pope_asks_a_model(pope, images):
    task = TASKS["pope"]
    items = task.make(Setting(100, data=pope, images=images))
    assert len(items) == 12
    asked = []

    def say(pictures, prompt):
        asked.append((int(pictures[0][0, 0, 0]), prompt))
        return "No, I cannot see one." if "leash" in prompt else "Yes"

    found = values(task.score(items, task.ask(ScriptedAnswers(say), items)))
    assert (9, "Is there a leash in the image?") in asked
    assert found["adversarial accuracy"] == 1.0
    assert (found["random accuracy"], found["popular yes share"]) == (0.5, 1.0)
    single = task.make(Setting(2, data=pope / "coco_pope_random.json", images=images))
    assert len(single) == 2
    assert values(task.score(single, [{"answer": "yes"}] * 2))["accuracy"] == 0.5


def test_pope_of_recorded_answers(pope, tmp_path):
    """With ids in any order, or in the order of the questions as the official script writes them."""
    said = ["Yes, there is a dog.", "no", "yes", "There is not one."]
    path = tmp_path / "answers.jsonl"
    records = [{"question_id": i + 1, "question": "?", "answer": text} for i, text in enumerate(said)]
    path.write_text("\n".join(json.dumps(record) for record in records[::-1]))
    setting = Setting(100, data=pope / "coco_pope_random.json")
    assert values(recorded("pope", setting, path))["accuracy"] == 1.0
    path.write_text("\n".join(json.dumps({"question": "?", "answer": text}) for text in said[::-1]))
    assert values(recorded("pope", setting, path))["accuracy"] == 0.0
    path.write_text(json.dumps(records[0]))
    with pytest.raises(ValueError, match="none for id '2'"):
        recorded("pope", setting, path)


def test_pope_files_that_are_wrong(pope, tmp_path):
    make = TASKS["pope"].make
    path = tmp_path / "wrong.json"
    for line, said in (
        ('{"image": "a.jpg", "text": "Is it?", "label": "maybe"}', "entry 1 needs"),
        ('{"image": "a.jpg", "label": "yes"}', "entry 1 needs"),
        ('\n{"image": ', "line 2 is no JSON"),
        ("[]", "no entry"),
        ("[3]", "no JSON object"),
    ):
        path.write_text(line)
        with pytest.raises(ValueError, match=said):
            make(Setting(5, data=path))
    with pytest.raises(ValueError, match="cannot read"):
        make(Setting(5, data=tmp_path / "none.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.json"):
        make(Setting(5, data=tmp_path / "empty"))


def test_pictures_are_read_below_their_folder_only(pope, images, tmp_path):
    items = TASKS["pope"].make(Setting(1, data=pope / "coco_pope_random.json"))
    with pytest.raises(ValueError, match="--images DIR"):
        items[0].pictures()
    path = tmp_path / "outside.json"
    path.write_text('{"image": "../secret.png", "text": "Is it?", "label": "yes"}')
    with pytest.raises(ValueError, match="outside the folder"):
        TASKS["pope"].make(Setting(1, data=path, images=images))[0].pictures()


@pytest.fixture
def coco(tmp_path):
    folder = tmp_path / "annotations"
    folder.mkdir()
    (folder / "synonyms.txt").write_text(
        "person, man, child, baby\ndog, puppy\nchair, seat\ntoilet\ncar, auto\nbird\ntie\n"
    )
    images = [{"id": number, "file_name": f"COCO_val2014_{number:012d}.jpg"} for number in (9, 25, 42)]
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 70, "name": "toilet"}]
    objects = [{"image_id": 9, "category_id": 18}, {"image_id": 25, "category_id": 70}]
    captions = [{"image_id": 9, "caption": "A puppy in the man's car."}, {"image_id": 42, "caption": "A baby bird."}]
    whole = {"images": images, "categories": categories, "annotations": objects}
    (folder / "instances_val2014.json").write_text(json.dumps(whole))
    (folder / "captions_val2014.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return folder


def test_chair_of_a_caption_file(coco, tmp_path):
    path = tmp_path / "captions.json"
    captions = {9: "Two dogs and a child with a bow tie", 25: "a toilet seat and two chairs"}
    path.write_text(json.dumps([{"image_id": number, "caption": text} for number, text in captions.items()]))
    found = recorded("chair", Setting(1000, data=coco), path)
    rows = {row["key"]: row for row in found.rows}
    assert set(rows) == {"9", "25"}
    assert set(rows["9"]["objects"]) == {"dog", "car", "person"}
    assert rows["9"]["mentions"] == ["dog", "person", "tie"]
    assert rows["9"]["invented"] == ["tie"]
    assert rows["25"]["mentions"] == ["toilet", "chair"]  # its seat is no chair
    got = values(found)
    assert got["CHAIR_i"] == pytest.approx(2 / 5)
    assert got["CHAIR_s"] == 1.0


def test_chair_asks_a_model(coco, images):
    task = TASKS["chair"]
    items = task.make(Setting(1000, data=coco, images=images))
    assert [item.truth["objects"] for item in items] == [["car", "dog", "person"], ["toilet"], ["bird"]]
    model = ScriptedAnswers(
        lambda pictures, prompt: {9: "a dog", 25: "a dog", 42: "a baby bird"}[int(pictures[0][0, 0, 0])]
    )
    got = values(task.score(items, task.ask(model, items)))
    assert (got["CHAIR_i"], got["CHAIR_s"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    chosen = {tuple(item.key for item in task.make(Setting(1, seed, coco))) for seed in range(20)}
    assert chosen == {("9",), ("25",), ("42",)}


def test_chair_files_that_are_wrong(coco, tmp_path):
    path = tmp_path / "captions.json"
    path.write_text('[{"image_id": 1000, "caption": "x"}]')
    with pytest.raises(ValueError, match="same split"):
        recorded("chair", Setting(10, data=coco), path)
    (coco / "captions_val2014.json").write_text("[]")
    with pytest.raises(ValueError, match="captions_"):
        TASKS["chair"].make(Setting(10, data=coco))
    (coco / "synonyms.txt").unlink()
    with pytest.raises(ValueError, match="synonyms"):
        TASKS["chair"].make(Setting(10, data=coco))


@pytest.fixture
def vqa(tmp_path):
    folder = tmp_path / "vqa"
    folder.mkdir()
    asked = [(262, 42, "How many?"), (90, 9, "Is it red?")]
    questions = [{"image_id": image, "question": text, "question_id": identity} for identity, image, text in asked]
    people = {90: ["yes"] * 10, 262: ["2"] * 2 + ["3"] * 8}
    annotations = [
        {
            "question_id": identity,
            "image_id": image,
            "answer_type": "yes/no" if identity == 90 else "number",
            "answers": [
                {"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(people[identity])
            ],
        }
        for identity, image, _ in asked
    ]
    head = {"data_subtype": "val2014", "data_type": "mscoco"}
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({**head, "questions": questions}))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({**head, "annotations": annotations}))
    return folder


def test_vqa(vqa, images, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"question_id": 262, "answer": "two"}, {"question_id": 90, "answer": "Yes."}]))
    found = values(recorded("vqa", Setting(10, data=vqa), path))
    two = (2 * (1 / 3) + 8 * (2 / 3)) / 10
    assert found == pytest.approx({"accuracy": (1 + two) / 2, "accuracy number": two, "accuracy yes/no": 1.0})
    task = TASKS["vqa"]
    items = task.make(Setting(10, data=vqa, images=images))
    assert [item.key for item in items] == ["90", "262"]
    model = ScriptedAnswers(lambda pictures, prompt: str(pictures[0].shape) + prompt)
    assert task.ask(model, items)[0]["answer"].startswith("(30, 40, 3)Is it red? Answer the question")
    assert len(task.make(Setting(1, data=vqa))) == 1


def test_vqa_files_that_are_wrong(vqa):
    path = vqa / "v2_mscoco_val2014_annotations.json"
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][:1]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="90 is missing"):
        TASKS["vqa"].make(Setting(10, data=vqa))
    path.unlink()
    with pytest.raises(ValueError, match="holds 0 files"):
        TASKS["vqa"].make(Setting(10, data=vqa))


def test_recorded_answers_that_are_wrong(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text('[{"question_id": 1, "answer": "yes"}, {"question_id": 1, "answer": "no"}]')
    with pytest.raises(ValueError, match="two answers for id 1"):
        RecordedAnswers(path)
    path.write_text('[{"question_id": 1, "reply": "yes"}]')
    with pytest.raises(ValueError, match="entry 1 has none of"):
        RecordedAnswers(path)
    with pytest.raises(ValueError, match="cannot read"):
        open_model(str(tmp_path / "none.json"))
