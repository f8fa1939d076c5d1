import numpy as np
import pytest
import torch
import transformers

from foveal.data.record import Region, Sample
from foveal.data.world import World, WorldConfig
from foveal.pretrain.cloc_vesl import (
    DetectorNoise,
    NoisyRegions,
    Owlv2Scorer,
    annotate_regions,
    extract_phrases,
    vesl_select,
)

torch.set_num_threads(1)


def test_phrases():
    assert extract_phrases(["A small Dog on the t-shirt, with a cat's toy!", "The small dog; 2 cups."]) == [
        "small dog",
        "t-shirt",
        "cat's toy",
        "2 cups",
    ]
    assert extract_phrases(["one two three four five six on grass"]) == ["grass"]
    assert extract_phrases(["big red dog on grass"], max_words=2) == ["grass"]
    assert extract_phrases(["snake_case and naïve café"]) == ["snake", "case", "naïve café"]
    assert extract_phrases(["", "the of", "..."]) == []
    assert extract_phrases([]) == []
    for arguments, match in ((("a dog",), "must be a list"), ((["a dog"], 0), "max_words=0")):
        with pytest.raises(ValueError, match=match):
            extract_phrases(*arguments)


def test_selection():
    boxes = torch.arange(20.0).view(5, 4)
    scores = torch.tensor([[0.1, 0.05], [0.2, 0.4], [0.8, 0.0], [0.4, 0.39], [0.0, 0.11]])
    found = vesl_select(boxes, scores)
    assert found.index.tolist() == [2, 1, 3, 4]  # 0.1 is not above the threshold; 0.4 comes twice, in their order
    assert found.phrase.tolist() == [0, 1, 0, 1]
    assert found.score.tolist() == pytest.approx([0.8, 0.4, 0.4, 0.11])
    assert torch.equal(found.boxes, boxes[found.index])
    assert vesl_select(boxes, scores, max_regions=2).index.tolist() == [2, 1]
    assert vesl_select(boxes, scores, min_top=0.8).index.tolist() == [2, 1, 3, 4]
    for top in (0.1, 0.7, 0.9):  # float32 holds 0.1 a little higher, 0.7 and 0.9 a little lower
        assert len(vesl_select(boxes[:1], torch.tensor([[top]]), 0.0, top).index) == 1
    for nothing in (
        vesl_select(boxes, scores / 4),
        vesl_select(boxes[:0], scores[:0]),
        vesl_select(boxes, scores[:, :0]),
    ):
        assert nothing.boxes.shape == (0, 4)
        assert len(nothing.phrase) == len(nothing.score) == len(nothing.index) == 0
    for arguments, match in (
        ((boxes, scores[:4]), r"\(Q, P\)"),
        ((boxes[:, :3], scores), r"\(Q, 4\)"),
        ((boxes, scores * torch.nan), "NaN"),
        ((boxes, scores, 0.1, 0.3, 0), "max_regions=0"),
    ):
        with pytest.raises(ValueError, match=match):
            vesl_select(*arguments)


class Scripted:
    def __init__(self, said, boxes, scores):
        self.said, self.boxes, self.scores, self.phrases = said, boxes, scores, None

    def answer(self, image, question):
        return self.said

    def score(self, image, phrases):
        self.phrases = list(phrases)
        return self.boxes, self.scores


def test_annotation():
    sample = Sample("a", (np.zeros((10, 20, 3), np.uint8),), ("my dog Rex",), regions=(Region((0, 0, 1, 1)),))
    model = Scripted(
        " A dog\non grass. ",
        torch.tensor([[0.0, 0, 0.5, 0.5], [0.1, 0.2, 0.3, 1.2]]),
        torch.tensor([[0.0, 0.2, 0.0], [0.9, 0.1, 0.0]]),
    )
    found = annotate_regions(sample, model, model)
    assert model.phrases == ["dog", "grass", "my dog rex"]
    assert found.captions == ("A dog on grass.", "my dog Rex")
    assert [region.caption for region in found.regions] == ["dog", "grass"]
    assert found.regions[0].box == pytest.approx((2, 2, 6, 10))
    assert annotate_regions(sample, model, model, min_top=0.95) is None
    silent = Sample("b", sample.images)
    assert annotate_regions(silent, Scripted("", None, None), model) is None
    with pytest.raises(ValueError, match="3 phrases"):
        annotate_regions(sample, model, Scripted("", model.boxes, model.scores[:, :2]))


def scenes():
    return list(World(WorldConfig(size=64, things=(2, 4)), 0, 12))


def test_noise_errs_at_its_rates():
    rng = np.random.default_rng(0)
    samples = scenes()
    perfect = DetectorNoise(missed=0, jitter=0, confused=0, invented=0)
    total, kept, invented = 0, 0, 0
    for sample in samples:
        total += len(sample.regions)
        truth = NoisyRegions(sample, perfect, rng)
        height, width = sample.image.shape[:2]
        expected = torch.tensor([region.box for region in sample.regions]) / torch.tensor(
            [width, height, width, height]
        )
        torch.testing.assert_close(truth.boxes, expected.float())
        for _ in range(20):
            noisy = NoisyRegions(sample, DetectorNoise(missed=0.25, invented=0.5), rng)
            kept += len(noisy.texts)
            invented += len(noisy.boxes) - len(noisy.texts)
            assert ((noisy.boxes >= 0) & (noisy.boxes <= 1)).all()
            assert (noisy.boxes[:, 2:] >= noisy.boxes[:, :2]).all()
    assert kept / (20 * total) == pytest.approx(0.75, abs=0.05)
    assert invented / (20 * len(samples)) == pytest.approx(0.5, abs=0.15)
    for field, value in (("missed", 1.5), ("jitter", -1.0), ("confused", float("inf")), ("invented", float("nan"))):
        with pytest.raises(ValueError, match=f"{field}="):
            DetectorNoise(**{field: value})


def test_pipeline_on_the_world():
    """With little noise most regions are found where they are and called what they are."""
    rng, right, total = np.random.default_rng(0), 0, 0
    for sample in scenes():
        source = NoisyRegions(sample, DetectorNoise(missed=0, jitter=0.02, confused=0.02, invented=0), rng)
        found = annotate_regions(sample.with_(captions=()), source, source)
        total += len(sample.regions)
        for region in found.regions if found else ():
            centre = np.array(region.box).reshape(2, 2).mean(0)
            inside = [
                other
                for other in sample.regions
                if other.box[0] <= centre[0] <= other.box[2] and other.box[1] <= centre[1] <= other.box[3]
            ]
            words = set(region.caption.split())
            right += any(words & set((other.caption or other.label).split()) for other in inside)
    assert right > 0.6 * total


def tiny_owlv2():
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Owlv2Config(
        text_config={**size, "vocab_size": 30, "max_position_embeddings": 6, "bos_token_id": 28, "eos_token_id": 29},
        vision_config={**size, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.Owlv2ForObjectDetection(config)


class Letters:
    """A processor of the real image processor and a tokenizer of letters."""

    def __init__(self):
        self.image_processor = transformers.Owlv2ImageProcessor(size={"height": 32, "width": 32})

    def __call__(self, text, images, return_tensors, truncation):
        ids = torch.tensor([[28, *(ord(c) % 26 + 1 for c in phrase[:3].ljust(3)), 29] for phrase in text[0]])
        made = self.image_processor(images=images, return_tensors=return_tensors)
        made["input_ids"], made["attention_mask"] = ids, torch.ones_like(ids)
        return made


def test_on_transformers_owlv2():
    """Boxes are shares of the picture, not of the padded square that the model sees."""
    model, processor = tiny_owlv2(), Letters()
    picture = np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8)
    scorer = Owlv2Scorer(model, processor)
    boxes, scores = scorer.score(picture, ["dog", "cat", "sun"])
    assert (boxes.shape, scores.shape) == ((16, 4), (16, 3))
    assert ((scores >= 0) & (scores <= 1)).all()
    inputs = processor([["dog", "cat", "sun"]], picture, "pt", True)
    with torch.no_grad():
        outputs = model(**inputs)
    post = processor.image_processor.post_process_object_detection(outputs, 0.0, torch.tensor([[20, 40]]))[0]
    theirs = torch.cat([post["boxes"][:, :2].clamp(min=0), post["boxes"][:, 2:]], 1) / torch.tensor([40.0, 20, 40, 20])
    torch.testing.assert_close(boxes, theirs.clamp(0, 1))
    torch.testing.assert_close(scores.amax(1), post["scores"])
