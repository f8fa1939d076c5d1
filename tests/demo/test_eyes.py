"""What the joined parts say of real photos, none of which any part of the join has seen."""

import numpy as np
import torch

from foveal.data.photos import photos
from foveal.data.text import mentions, singular
from foveal.demo.eyes import Eyes


def test_half_of_the_photos_are_named_by_one_of_four_words(eyes):
    """17 of 35; the words of the photo before name 5 of them."""
    pictures = list(photos())
    said = [" ".join(eyes.words(photo.images[0])) for photo in pictures]
    hits = [any(mentions(text, noun) for noun in photo.meta["nouns"]) for text, photo in zip(said, pictures)]
    shifted = [any(mentions(text, n) for n in photo.meta["nouns"]) for text, photo in zip(said[-1:] + said, pictures)]
    assert sum(hits) >= 15
    assert sum(hits) >= 2 * sum(shifted)


def test_words_are_whole_and_differ(eyes, cat):
    words = eyes.words(cat)
    assert "cat" in words
    assert len({singular(word)[:5] for word in words}) == 4
    assert eyes.words(cat, 6)[:4] == words
    taught = {token for ids in eyes._class_tokens() for token in ids}
    assert " stup" not in {eyes.language.tokenizer.decode(token) for token in taught}


def test_caption_is_the_best_candidate(eyes, cat):
    candidates = eyes.captions(cat)
    caption = eyes.caption(cat)
    assert mentions(caption, "cat")
    assert caption == candidates[0][0]
    assert [score for _, score in candidates] == sorted((score for _, score in candidates), reverse=True)


def test_nothing_is_printed(eyes, cat, capfd):
    eyes.caption(cat)
    assert capfd.readouterr() == ("", "")


def test_labels_are_probabilities(eyes, church):
    labels = eyes.labels(church, 1000)
    assert labels[0][0] == "church"
    assert labels[:3] == eyes.labels(church)
    assert np.isclose(sum(p for _, p in labels), 1, atol=1e-4)


def test_feature_is_a_mixture_of_class_rows(eyes, cat, church):
    feature = eyes.feature([cat, church])
    assert feature.shape == (2, 1280)
    torch.testing.assert_close(feature[1:], eyes.feature([church]), rtol=1e-3, atol=1e-4)
    rows = eyes.vision.classifier_weight
    assert (feature <= rows.max(0).values).all()
    assert (feature >= rows.min(0).values).all()


def test_loading_tells_its_steps(monkeypatch, eyes):
    parts = {"efficientnet-lite0": eyes.vision, "smollm2": eyes.language}
    monkeypatch.setattr("foveal.zoo.load", lambda name: parts[name])
    told = []
    Eyes.load(lambda what, done, total: told.append((done, total)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
