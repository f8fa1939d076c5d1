import numpy as np
import pytest
import torch
import transformers
from evaluate.tiny import save_llava
from hypothesis import given
from hypothesis import strategies as st

from foveal.data.record import Region, Sample
from foveal.data.world import World, WorldConfig
from foveal.nn.boxes import centres
from foveal.pretrain.grain_data import (
    CAPTION,
    FEATURES,
    NEW_CAPTION,
    SUBJECT,
    Detections,
    annotate,
    clean_descriptions,
    descriptor_suffix,
    grain_batch,
    pick_caption,
    select_regions,
)
from foveal.pretrain.grain_sources import LlavaCaptioner, NoisyTruth, Owlv2Detector, RegionNoise
from foveal.zoo.nano import folder

torch.set_num_threads(1)
IMAGE = np.zeros((20, 40, 3), np.uint8)


class Scripted:
    """Says and sees what the test wants."""

    def __init__(self, features, boxes=(), scores=(), labels=()):
        self.said = {SUBJECT: " a dog\n", CAPTION: "A dog  on grass.\n"}
        self.features, self.asked = features, []
        self.found = Detections(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(scores, dtype=torch.float32),
            torch.tensor(labels, dtype=torch.int64),
        )

    def answer(self, image, question):
        self.asked.append(question)
        return self.said.get(question, self.features)

    def detect(self, image, texts):
        self.texts = list(texts)
        return self.found


# Choosing -------------------------------------------------------------------------------------------------------------


def test_selection():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 8.0], [2.0, 2.0, 6.0, 4.0], [0.0, 0.0, 1.0, 1.0], [8.0, 0.0, 30.0, 4.0]])
    scores = torch.tensor([0.5, 0.9, 0.3, 0.5])
    targets, mask, index = select_regions(boxes, scores, (16, 8), k=4)
    assert index.tolist() == [1, 0, 3, 0]  # equal scores in their order; 0.3 is not above the threshold
    assert mask.tolist() == [True, True, True, False]
    torch.testing.assert_close(targets[0], torch.tensor([0.25, 0.375, 0.25, 0.25]))
    torch.testing.assert_close(targets[2], torch.tensor([0.75, 0.25, 0.5, 0.5]))  # cut off at the edge
    assert not targets[3].any()
    assert select_regions(boxes[:0], scores[:0], (16, 8))[1].sum() == 0
    assert torch.equal(select_regions(boxes.long(), scores, (16, 8), k=4)[0], targets)


def test_bad_selections():
    boxes, scores = torch.zeros(2, 4), torch.zeros(2)
    for arguments, name in (
        ((boxes, scores[:1], (4, 4)), "scores"),
        ((boxes[:, :3], scores, (4, 4)), "boxes"),
        ((boxes * float("nan"), scores, (4, 4)), "NaN"),
        ((boxes, scores, (0, 4)), "image_size"),
        ((boxes, scores, (4, 4), 0), "k=0"),
    ):
        with pytest.raises(ValueError, match=name):
            select_regions(*arguments)


def test_descriptions_are_cleaned():
    assert clean_descriptions(["- long beak", "  * red, of course", "", "-", ".?! wings\n"]) == [
        "long beak",
        "red, of course",
        "wings",
    ]
    assert clean_descriptions(["-\u00a0blue", "\u00a0* -\u2003- red "]) == ["blue", "red"]
    assert clean_descriptions([str(i) for i in range(20)], 3) == ["0", "1", "2"]
    with pytest.raises(ValueError, match="lines"):
        clean_descriptions("one text")


@given(st.lists(st.text(max_size=20), max_size=15))
def test_any_answer_can_be_cleaned(lines):
    cleaned = clean_descriptions(lines)
    assert len(cleaned) <= 10
    assert all(line.strip() == line and line[0] not in ".,!? -*" for line in cleaned)


def test_captions_are_chosen_evenly():
    rng = torch.Generator().manual_seed(0)
    chosen = [pick_caption("old", "new", rng) for _ in range(1000)]
    assert 450 < chosen.count("new") < 550
    assert {pick_caption("old", nothing, rng) for nothing in (None, " ") for _ in range(20)} == {"old"}


@pytest.mark.parametrize(
    ("descriptor", "suffix"),
    [
        ("yellow beak", " which has yellow beak"),
        ("a long tail", " which is a long tail"),
        ("An insect", " which is An insect"),
        ("used for digging", " which is used for digging"),
        ("antennae", " which has antennae"),  # no article, although it begins like one
        ("has wings", " which has wings"),
        ("may fly", " which may fly"),
        ("canine teeth", " which has canine teeth"),
        ("often  blue", " which often blue"),
    ],
)
def test_suffixes(descriptor, suffix):
    assert descriptor_suffix(descriptor) == suffix


def test_an_empty_descriptor():
    with pytest.raises(ValueError, match="d=' '"):
        descriptor_suffix(" ")


# The pipeline ---------------------------------------------------------------------------------------------------------


def test_annotation():
    sample = Sample("x", (IMAGE,), ("a picture",), regions=(Region((0, 0, 1, 1), "truth"),))
    boxes = [[0, 0, 10, 10], [10, 0, 20, 10], [0, 0, 40, 20]]
    source = Scripted("- long ears\n\n- wet nose", boxes, [0.4, 0.9, 0.2], [0, 1, 1])
    found = annotate(sample, source, source)
    assert source.asked == [SUBJECT, FEATURES.format("a dog"), CAPTION]
    assert source.texts == ["long ears", "wet nose"]
    assert [(region.box, region.caption) for region in found.regions] == [
        ((10, 0, 20, 10), "wet nose"),
        ((0, 0, 10, 10), "long ears"),
    ]
    assert found.captions == ("a picture",)
    assert found.meta[NEW_CAPTION] == "A dog on grass."


def test_models_that_say_nothing():
    source = Scripted(" \n - \n")
    source.said = {SUBJECT: "", CAPTION: " "}
    found = annotate(Sample("x", (IMAGE,), ("a picture",)), source, source)
    assert found.regions == ()
    assert found.meta[NEW_CAPTION] is None
    assert source.asked[1] == FEATURES.format("main subject")


def test_a_detector_that_makes_up_texts():
    source = Scripted("wings", [[0, 0, 1, 1]], [0.9], [3])
    with pytest.raises(ValueError, match="labels"):
        annotate(Sample("x", (IMAGE,)), source, source)


def tokenize(texts):
    ids = torch.tensor([[len(text), 7, 0] for text in texts])
    return ids, (ids > 0).long()


def test_batches():
    rng = torch.Generator().manual_seed(0)
    regions = tuple(Region((4.0 * i, 0, 4.0 * i + 4, 10), caption="part" + "!" * i) for i in range(3))
    samples = [Sample("a", (IMAGE,), ("one",), regions=regions), Sample("b", (IMAGE,), ("three",))]
    batch = grain_batch(samples, tokenize, rng, k=2)
    assert batch["caption_ids"][:, 0].tolist() == [3, 5]
    assert batch["valid"].tolist() == [[True, True], [False, False]]
    assert batch["desc_ids"][..., 0].tolist() == [[4, 5], [0, 0]]
    torch.testing.assert_close(batch["boxes"][0, 1], torch.tensor([6 / 40, 0.25, 0.1, 0.5]))
    assert not batch["boxes"][1].any()
    assert not batch["desc_mask"][1].any()
    assert not grain_batch(samples[1:], tokenize, rng)["valid"].any()
    with pytest.raises(ValueError, match="samples"):
        grain_batch([], tokenize, rng)


# Noise ----------------------------------------------------------------------------------------------------------------

QUIET = RegionNoise(missed=0, mistaken=0, jitter=0, invented=0)
WORLD = World(WorldConfig(size=48, things=(2, 4)), 0, 120, extras=("long", "regions"))


def spoilt(noise, seed=0, samples=WORLD):
    rng = np.random.default_rng(seed)
    return [NoisyTruth(sample, noise, ["a unicorn"], rng) for sample in samples]


def test_without_noise_the_truth_comes_through_the_pipeline():
    for sample in WORLD[:10]:
        source = NoisyTruth(sample, QUIET, [], np.random.default_rng(0))
        found = annotate(sample, source, source, k=10)
        assert sorted((region.box, region.caption) for region in found.regions) == sorted(
            {(region.box, region.caption) for region in sample.regions}
        )
        assert found.meta[NEW_CAPTION] == sample.captions[-1]


def test_the_stated_rates_are_met():
    truth = sum(len(sample.regions) for sample in WORLD)
    kept = sum(len(source.seen) for source in spoilt(RegionNoise(0.3, 0, 0, 0)))
    assert kept / truth == pytest.approx(0.7, abs=0.07)
    wrong = [thing for source in spoilt(RegionNoise(0, 0.25, 0, 0)) for thing in source.seen]
    assert np.mean([thing.text == "a unicorn" for thing in wrong]) == pytest.approx(0.25, abs=0.07)
    made_up = sum(len(source.seen) for source in spoilt(RegionNoise(1, 0, 0, 0.5)))
    assert made_up / len(WORLD) == pytest.approx(0.5, abs=0.2)
    moved = [
        (np.array(thing.box) - region.box) / np.tile(np.array(region.box[2:]) - region.box[:2], 2)
        for sample, source in zip(WORLD, spoilt(RegionNoise(0, 0, 0.05, 0)), strict=True)
        for region, thing in zip(sample.regions, source.seen, strict=True)
        if min(region.box) > 5 and max(region.box) < 43
    ]
    assert np.std(moved) == pytest.approx(0.05, abs=0.01)


def test_noise_repeats_with_its_seed_and_scores_fall_with_it():
    noise = RegionNoise()
    assert [source.seen for source in spoilt(noise, 1)] == [source.seen for source in spoilt(noise, 1)]
    assert [source.seen for source in spoilt(noise, 1)] != [source.seen for source in spoilt(noise, 2)]
    scores = [
        np.mean([thing.score for source in spoilt(RegionNoise(0, 0, jitter, 0)) for thing in source.seen])
        for jitter in (0, 0.1, 0.3)
    ]
    assert scores[0] == pytest.approx(1)
    assert scores[0] > scores[1] > scores[2]


def test_bad_noise():
    for changes in ({"missed": 1.5}, {"mistaken": -0.1}, {"jitter": -1}, {"invented": float("inf")}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            RegionNoise(**changes)
    with pytest.raises(ValueError, match="vocabulary"):
        NoisyTruth(WORLD[0], RegionNoise(), [], np.random.default_rng(0))


# Models of Hugging Face -----------------------------------------------------------------------------------------------


def test_owlv2_detects():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder("nano-clip"))
    config = transformers.Owlv2Config(
        text_config={**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Owlv2ForObjectDetection(config)
    processor = transformers.Owlv2Processor(
        transformers.Owlv2ImageProcessor(size={"height": 32, "width": 32}), tokenizer
    )
    found = Owlv2Detector(model, processor, threshold=0.0).detect(IMAGE, ["a dog", "a cat"])
    assert found.boxes.shape == (4, 4)  # one for each of the 2 × 2 patches
    assert found.scores.shape == found.labels.shape == (4,)
    assert set(found.labels.tolist()) <= {0, 1}
    assert centres(found.boxes).isfinite().all()


def test_llava_answers_what_generate_answers(tmp_path):
    place = save_llava(tmp_path / "llava")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(place)
    processor = transformers.AutoProcessor.from_pretrained(place)
    answer = LlavaCaptioner(model, processor, max_new_tokens=5).answer(IMAGE, SUBJECT)
    content = [{"type": "image"}, {"type": "text", "text": SUBJECT}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=IMAGE, text=prompt, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    whole = processor.decode(written[0], skip_special_tokens=True)
    assert answer
    assert whole.endswith(answer)
    assert answer != whole
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        LlavaCaptioner(model, processor, 0)
