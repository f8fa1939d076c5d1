"""nano-llava: the shared prefix changes nothing, only answers are learned, and the published folder works anywhere."""

import copy
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveal.train import latest_checkpoint
from foveal.zoo import nano
from foveal.zoo.nano import clip as nano_clip
from foveal.zoo.nano import llava as nano_llava
from foveal.zoo.nano.conversations import EVERYTHING, Exchange
from foveal.zoo.nano.films import DrawnFilms
from foveal.zoo.nano.lessons import Lessons, Writer, branch_mask, packed_row, stacked
from foveal.zoo.nano.llava import SMOKE, LlavaTraining, answer_loss, build, corpus
from foveal.zoo.nano.scenes import LLAVA_LESSONS, DrawnScenes

DIALOGUES = (
    [Exchange("Is there a red star?", "yes", "existence")],
    [Exchange("How many dogs are there?", "12", "count"), Exchange("Describe the image.", "A dog on sand.", "long")],
    [Exchange("Locate the dog.", "5 12 99 99", "grounding")],
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder like foveal.zoo.weights with an untrained nano-clip of two layers."""
    place = tmp_path_factory.mktemp("weights")
    settings = nano_clip.ClipTraining(width=32, layers=2, text_width=32, text_layers=1, vocabulary=600)
    processor = nano_clip.build_processor(["a red star on sand"], settings)
    nano_clip.build_model(settings, processor.tokenizer).save_pretrained(place / "nano-clip")
    processor.save_pretrained(place / "nano-clip")
    return place


@pytest.fixture(scope="module")
def scenes():
    return DrawnScenes(LLAVA_LESSONS, 0, SMOKE.scenes)


@pytest.fixture(scope="module")
def films():
    return DrawnFilms(LLAVA_LESSONS, 0, SMOKE.films)


@pytest.fixture(scope="module")
def made(weights, scenes, films):
    return build(weights / "nano-clip", corpus(scenes, films), SMOKE)


@pytest.fixture(scope="module")
def writer(made):
    return Writer(made[1], made[0].config.image_seq_length)


@pytest.fixture(scope="module")
def trained(weights, tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nano, "WEIGHTS", weights)
        return nano_llava.train(place / "out", place / "work", smoke=True)


def messages(dialogue, images=1):
    turns = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for item in dialogue
        for role, text in (("user", item.prompt), ("assistant", item.answer))
    ]
    turns[0]["content"] = [*({"type": "image"} for _ in range(images)), *turns[0]["content"]]
    return turns


def test_the_shared_prefix_gives_the_losses_of_separate_conversations(made, writer, scenes):
    model, processor = copy.deepcopy(made[0]), made[1]
    for layer in model.model.language_model.layers:  # an untrained model looks everywhere alike: make it choosy
        layer.self_attn.q_proj.weight.data *= 200
        layer.self_attn.v_proj.weight.data *= 20
    picture = np.array(scenes.images[0])
    row = packed_row(writer.prefix(1), [writer.branch(dialogue) for dialogue in DIALOGUES])
    short = packed_row(writer.prefix(1), [writer.branch(DIALOGUES[0])])  # a padded row
    batch = {**stacked([row, short]), "pixel_values": writer.pixels(scenes.images[:2])}
    ours = answer_loss(model, batch)

    total = weight = 0.0
    for dialogue, image in (*((d, picture) for d in DIALOGUES), (DIALOGUES[0], np.array(scenes.images[1]))):
        text = processor.apply_chat_template(messages(dialogue))
        inputs = processor(text=text, images=[image], return_tensors="pt")
        answers = processor.tokenizer([f" {item.answer}</s>" for item in dialogue], add_special_tokens=False).input_ids
        ids = inputs["input_ids"][0].tolist()
        end = 0
        for answer in answers:  # each alone, by the class's own loss
            at = next(i for i in range(end, len(ids)) if ids[i : i + len(answer)] == answer)
            end = at + len(answer)
            labels = torch.full_like(inputs["input_ids"], -100)
            labels[0, at:end] = inputs["input_ids"][0, at:end]
            with torch.no_grad():
                total += float(model(**inputs, labels=labels).loss) * len(answer) ** 0.5
            weight += len(answer) ** 0.5
    assert ours.item() == pytest.approx(total / weight, rel=1e-4)


def test_only_answers_and_their_ends_are_learned(made, writer):
    row = packed_row(writer.prefix(1), [writer.branch(dialogue) for dialogue in DIALOGUES])
    learned = made[1].tokenizer.decode(row["ids"][row["weights"] > 0])
    assert learned == " yes</s> 12</s> A dog on sand.</s> 5 12 99 99</s>"
    for branch, answers in enumerate((["yes"], ["12", "A dog on sand."], ["5 12 99 99"]), 1):
        lengths = [len(made[1].tokenizer(f" {text}</s>", add_special_tokens=False).input_ids) for text in answers]
        assert row["weights"][row["branches"] == branch].sum() == pytest.approx(sum(n**0.5 for n in lengths))


def test_what_a_token_sees():
    seen = branch_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0, 0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_pictures_and_prefixes_are_those_of_the_processor(made, writer, scenes):
    model, processor = made
    pictures = np.array(scenes.images[:3])
    text = processor.apply_chat_template(messages(DIALOGUES[0], images=3), add_generation_prompt=True)
    inputs = processor(text=text, images=list(pictures), return_tensors="pt")
    prefix = writer.prefix(3)
    assert inputs["input_ids"][0, : len(prefix)].tolist() == prefix
    assert prefix.count(model.config.image_token_id) == 3 * 144
    torch.testing.assert_close(writer.pixels(pictures), inputs["pixel_values"], rtol=0, atol=1e-5)


def test_digits_are_tokens_and_every_text_comes_back(made):
    tokenizer = made[1].tokenizer
    assert tokenizer.tokenize(" 5 12 99") == ["Ġ5", "Ġ1", "2", "Ġ9", "9"]
    assert len(tokenizer.tokenize("Describe the picture in detail.")) == 6
    for text in ("naïve 日本 ☂ { }", "a red  star\n", "Is it 3.5?"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    template = made[1].apply_chat_template(messages(DIALOGUES[1], images=2), add_generation_prompt=True)
    assert template == (
        "USER: <image>\n<image>\nHow many dogs are there? ASSISTANT: 12</s>"
        "USER: Describe the image. ASSISTANT: A dog on sand.</s>ASSISTANT:"
    )


def test_rows_fill_their_budget_and_are_functions_of_the_seed(writer, scenes, films):
    def lessons(seed):
        return Lessons(scenes, films, writer, 20, 4, 120, EVERYTHING, seed)

    batch = lessons(0)[3]
    text = (batch["branches"] > 0).sum(1)
    assert ((text > 100) & (text <= 120)).all()
    assert batch["pixel_values"].shape == (4, 3, 96, 96)
    assert (batch["branches"].max(1).values > 2).all()
    again, other = lessons(0)[3], lessons(1)[3]
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert batch["ids"].shape != other["ids"].shape or not torch.equal(batch["ids"], other["ids"])
    for index, frames in ((9, 2), (19, 3)):
        clips = lessons(0)[index]
        tokens = (clips["ids"] == writer.image).sum(1)
        assert (tokens == 144 * frames).all()
        drawn = films.images[frames - 2, :frames]  # there are as many films as lengths
        assert torch.equal(clips["pixel_values"], writer.pixels(drawn).repeat(len(tokens), 1, 1, 1))


def test_the_published_folder_loads_by_the_auto_classes_and_answers(trained, scenes):
    model = AutoModelForImageTextToText.from_pretrained(trained, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(trained)
    assert processor.tokenizer.padding_side == "left"
    assert model.lm_head.weight is model.get_input_embeddings().weight
    pictures = [np.array(scenes.images[i]) for i in range(3)]
    texts = ["USER: <image>\nIs there a dog? ASSISTANT:", "USER: <image>\n<image>\nWhat happens to it? ASSISTANT:"]
    inputs = processor(text=texts, images=[pictures[:1], pictures[1:]], padding=True, return_tensors="pt")
    together = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    alone = processor(text=texts[0], images=pictures[:1], return_tensors="pt")
    single = model.generate(**alone, max_new_tokens=6, do_sample=False)[:, alone["input_ids"].shape[1] :]
    decoded = processor.batch_decode(together, skip_special_tokens=True)
    assert decoded[0] == processor.batch_decode(single, skip_special_tokens=True)[0]
    seen = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[0]
    assert seen.shape[1] == 145  # CLS is there for whoever needs its attention
    record = json.loads((trained / "training.json").read_text())
    assert [stage["name"] for stage in record["config"]["stages"]] == [
        "align",
        "instruct",
        "answer",
        "practise",
        "revise",
    ]
    assert [step for step, _ in record["curves"]["instruct loss"]] == list(range(1, 11))
    stored = AutoModelForImageTextToText.from_pretrained(trained)
    assert {parameter.dtype for parameter in stored.parameters()} == {torch.float16}


def test_every_stage_trains_what_it_should(weights, scenes, films, tmp_path):
    model, processor = build(weights / "nano-clip", corpus(scenes, films), SMOKE)
    writer = Writer(processor, model.config.image_seq_length)
    course = nano_llava.Course(model, writer, scenes, scenes, films, SMOKE, tmp_path)
    tower = model.model.vision_tower.encoder.layers[0].mlp.fc1.weight
    projector = model.model.multi_modal_projector.linear_1.weight
    for number, learns in enumerate((False, True)):
        before = tower.detach().clone(), projector.detach().clone()
        course.take(number)
        assert torch.equal(before[0], tower) != learns
        assert not torch.equal(before[1], projector)


def test_a_stopped_training_goes_on_and_repeats_no_finished_stage(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(nano, "WEIGHTS", weights)
    real, seen = nano_llava.answer_loss, []

    def losing(model, batch):
        seen.append(batch)
        if len(seen) == 3:  # the second step of the second stage
            raise KeyboardInterrupt
        return real(model, batch)

    monkeypatch.setattr(nano_llava, "answer_loss", losing)
    with pytest.raises(KeyboardInterrupt):
        nano_llava.train(tmp_path / "out", tmp_path / "work", smoke=True)
    (run,) = (tmp_path / "work").iterdir()
    assert latest_checkpoint(run / "align").name == "step-00000001"
    assert not (tmp_path / "out").exists()
    resumed = nano_llava.train(tmp_path / "out", tmp_path / "work", smoke=True)
    assert len(seen) == 3 + 10 + 1 + 1 + 1  # the second stage, which had no checkpoint yet, and those behind it
    monkeypatch.undo()
    monkeypatch.setattr(nano, "WEIGHTS", weights)
    whole = nano_llava.train(tmp_path / "whole", tmp_path / "work2", smoke=True)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_shipped_size_is_within_twelve_megabytes(scenes, films, tmp_path):
    settings = nano_clip.ClipTraining()
    clip_processor = nano_clip.build_processor(["a red star on sand"], settings)
    nano_clip.build_model(settings, clip_processor.tokenizer).save_pretrained(tmp_path / "clip")
    clip_processor.save_pretrained(tmp_path / "clip")
    model, processor = build(tmp_path / "clip", corpus(scenes, films), LlavaTraining())
    model.half().save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    rest = LlavaTraining().vocabulary * (2 * LlavaTraining().width + 60)  # embeddings and text of a full vocabulary
    assert sum(path.stat().st_size for path in (tmp_path / "llava").iterdir()) + rest < 12_000_000
