"""Pictures with a caption and with phrases for their regions, said anew each time: what nano-clip learns from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch.utils.data import Dataset

from foveal.data import twemoji
from foveal.data.world.captions import TEMPLATES, long_caption, region_caption, short_caption
from foveal.data.world.phrases import article, pick
from foveal.data.world.vocabulary import NOVEL_NOUNS
from foveal.zoo.nano.scenes import DrawnScenes

EMOJI_EVERY = 10
"""Every tenth sample is an emoji."""
LONG = 0.1
"""Share of scenes that are described by a long caption."""


def emoji_names() -> tuple[twemoji.Emoji, ...]:
    """Emoji of the training families whose names hold no novel noun."""
    novel = set(NOVEL_NOUNS)
    return tuple(
        emoji for emoji in twemoji.emojis() if twemoji.split(emoji) == "train" and not novel & set(emoji.name.split())
    )


def emoji_picture(emoji: twemoji.Emoji, size: int, rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "s s 3"], Any]:
    """The emoji somewhere on a plain ground of any colour, at half the picture's size or more; and its box."""
    side = int(rng.integers(size // 2, size + 1))
    left, top = rng.integers(0, size - side + 1, 2).tolist()
    picture = Image.new("RGBA", (size, size), (*rng.integers(0, 256, 3).tolist(), 255))
    picture.alpha_composite(Image.fromarray(twemoji.rgba(emoji, side)), (left, top))
    return np.array(picture.convert("RGB")), np.array([[left, top, left + side, top + side]], np.int16)


@dataclass(frozen=True)
class CaptionedScenes(Dataset[dict[str, Any]]):
    """``length`` samples from fewer scenes. Sample i is a function of (scenes, i) and never said like another.

    A sample has ``image`` (h, w, 3), ``caption``, ``boxes`` (k, 4) in pixels and k ``phrases``.
    """

    scenes: DrawnScenes
    length: int
    _emoji: tuple[twemoji.Emoji, ...] = field(default_factory=emoji_names, repr=False)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is out of range for length {self.length}")
        rng = np.random.default_rng((self.scenes.seed, index, 5))  # (seed, i) alone is how scene i was laid out
        if index % EMOJI_EVERY == EMOJI_EVERY - 1:
            return self._named(rng)
        number = index % len(self.scenes)
        scene = self.scenes.scene(number)
        long = rng.random() < LONG
        caption = " ".join(part.text for part in long_caption(scene, rng)) if long else short_caption(scene, rng)
        count = len(scene.things)
        phrases = [region_caption(scene, i, rng) for i in range(count)]
        return {
            "image": self.scenes.images[number],
            "caption": caption,
            "boxes": self.scenes.boxes[number, :count],
            "phrases": phrases,
        }

    def _named(self, rng: np.random.Generator) -> dict[str, Any]:
        emoji = self._emoji[int(rng.integers(len(self._emoji)))]
        image, box = emoji_picture(emoji, self.scenes.config.shape[0], rng)
        name = emoji.name if rng.random() < 0.5 else f"{article(emoji.name)} {emoji.name}"
        caption = name if rng.random() < 0.3 else pick(rng, TEMPLATES).format(name)
        return {"image": image, "caption": caption, "boxes": box, "phrases": [name]}


def corpus(scenes: DrawnScenes, n: int = 20_000) -> Iterator[str]:
    """What nano-clip's tokenizer is made from: texts of the first scenes, and names of emoji."""
    for number in range(min(n, len(scenes))):
        scene, rng = scenes.scene(number), np.random.default_rng((scenes.seed, number, 1))
        yield short_caption(scene, rng)
        yield " ".join(part.text for part in long_caption(scene, rng))
    for emoji in emoji_names():
        yield emoji.name
