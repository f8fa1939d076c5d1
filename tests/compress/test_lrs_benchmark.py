import json

import pytest

from foveal.compress.lrs import LrsVqaItem, load_lrs_vqa, score_lrs_vqa

# The form of the authors' LRS_VQA_merged.jsonl; FAIR with boxes, STAR without.
FULL = {
    "question_id": "GLH-Bridge_7",
    "image": "LRS_VQA/image/1.tif",
    "category": "reasoning",
    "text": "Does it cross a river?\n Answer the question using a single word or phrase.",
    "ground_truth": "yes",
    "hbox": [282, 3418, 763, 4050],
    "rbox": [282.0, 4013.0, 334.0, 4050.0, 763.0, 3456.0, 713.0, 3418.0],
    "abs_size": "large",
    "image_size": [7000, 6921],
    "size_bin": "256x256",
}
BARE = {name: FULL[name] for name in ("question_id", "image", "category", "text", "ground_truth", "image_size")}


def write(folder, *lines):
    path = folder / "questions.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_reads_the_official_form(tmp_path):
    bare = BARE | {"question_id": "STAR_1", "text": "Line separators\u2028 end no line"}
    full, other = load_lrs_vqa(write(tmp_path, FULL, "", json.dumps(bare, ensure_ascii=False), ""))
    assert (full.subset, other.subset) == ("GLH-Bridge", "STAR")
    assert full.hbox == (282, 3418, 763, 4050)
    assert len(full.rbox) == 8
    assert full.image_size == (7000, 6921)
    assert (full.abs_size, full.size_bin) == ("large", "256x256")
    assert other.text == bare["text"]
    assert (other.hbox, other.rbox, other.abs_size, other.size_bin) == (None, None, None, None)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ({name: value for name, value in BARE.items() if name != "category"}, "line 2 has no category"),
        ({**BARE, "image_size": None}, "line 2 has no image_size"),
        ({**BARE, "image_size": [5]}, "line 2: image_size=.*list of 2"),
        ({**BARE, "hbox": [1, 2, 3, "4"]}, "line 2: hbox=.*list of 4"),
        ({**BARE, "rbox": [1] * 4}, "line 2: rbox=.*list of 8"),
        ({**BARE, "ground_truth": [3]}, r"line 2: ground_truth=\[3\] must be text or a number"),
        ("{", "line 2 is no JSON"),
        ("[]", "line 2 is no JSON object"),
        (FULL, "line 2: question_id 'GLH-Bridge_7' was there before"),
    ],
)
def test_names_the_broken_line(tmp_path, line, match):
    with pytest.raises(ValueError, match=match):
        load_lrs_vqa(write(tmp_path, FULL, line))


def test_numbers_and_a_byte_order_mark(tmp_path):
    path = write(tmp_path, "\ufeff" + json.dumps({**BARE, "ground_truth": 3, "question_id": 5, "abs_size": 1234.5}))
    (item,) = load_lrs_vqa(path)
    assert (item.question_id, item.ground_truth, item.abs_size) == ("5", "3", 1234.5)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        load_lrs_vqa(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match="holds no question"):
        load_lrs_vqa(write(tmp_path, ""))


def items(*rows):
    return [LrsVqaItem(name, "a.tif", category, "?", truth, (1, 1)) for name, category, truth in rows]


def test_scores_by_hand():
    asked = items(
        ("FAIR_1", "count", "Two"),
        ("FAIR_2", "count", "3"),
        ("FAIR_3", "count", "4"),
        ("FAIR_4", "color", "gray"),
        ("STAR_1", "count", "1"),
    )
    answers = {"FAIR_1": " two\n", "FAIR_2": "4", "FAIR_3": "three", "FAIR_4": "Grey ", "STAR_1": "1", "extra": ""}
    plain = score_lrs_vqa(asked, answers)
    assert plain["FAIR"] == {"categories": {"color": 0, "count": 1 / 3}, "overall": 0.25, "average": 1 / 6, "n": 4}
    assert plain["STAR"] == {"categories": {"count": 1.0}, "overall": 1.0, "average": 1.0, "n": 1}
    asked_for = []
    kind = score_lrs_vqa(asked, answers, lambda truth, answer: asked_for.append((truth, answer)) or answer == "grey")
    assert kind["FAIR"]["average"] == pytest.approx((1 / 3 + 1) / 2)  # of the categories, not of the questions
    assert kind["FAIR"]["overall"] == 0.5
    assert asked_for == [("3", "4"), ("4", "three"), ("gray", "grey")]


def test_every_question_needs_an_answer():
    with pytest.raises(ValueError, match="lacks 1 of 2 questions, such as 'STAR_2'"):
        score_lrs_vqa(items(("STAR_1", "a", "b"), ("STAR_2", "a", "b")), {"STAR_1": "b"})
