"""Creatures of three parts: a class is a combination of them, so that new classes are made of known parts.

Four heads, four bodies and four tails. A class is a head h, a body b and a tail: h + b of the 16 classes with a name,
h + b + 1 (mod 4) of the 8 that are held out. Captions name the class, one in twenty a part instead; descriptions name
one part each.
"""

import numpy as np
import torch
from torch import Tensor

from foveal.data.record import Region, Sample
from foveal.data.word_ids import WordIds
from foveal.data.world.draw import draw
from foveal.data.world.scene import Background, Scene, Thing
from foveal.pretrain.grain import descriptor_suffix

SIZE, LONGEST = 96, 12
HEADS = (("star", "red", "plain"), ("heart", "yellow", "plain"), ("cross", "blue", "plain"), ("ring", "green", "plain"))
BODIES = (
    ("circle", "orange", "striped"),
    ("square", "purple", "plain"),
    ("hexagon", "cyan", "dotted"),
    ("triangle", "pink", "checked"),
)
TAILS = (
    ("arrow", "blue", "plain"),
    ("drop", "red", "plain"),
    ("diamond", "green", "plain"),
    ("crescent", "yellow", "plain"),
)
GROUNDS = ("white", "black", "brown")
WHERE = (("head", HEADS, 0.0, -0.24, 0.13), ("body", BODIES, 0.0, 0.08, 0.21), ("tail", TAILS, 0.28, 0.2, 0.12))
"""Part, its kinds, its place from the middle of the creature, its radius."""
MENTIONED = 0.1
"""How many of the new captions tell of a part, as captions of the web at times do."""
NAMES = (
    *("zog", "blick", "dax", "wug", "fep", "toma", "kiki", "bouba"),
    *("gazzer", "lorp", "modi", "nizu", "pilk", "querl", "rist", "sarn"),
)
Parts = tuple[int, int, int]
SEEN: tuple[Parts, ...] = tuple((h, b, (h + b) % 4) for h in range(4) for b in range(4))
HELD_OUT: tuple[Parts, ...] = tuple((h, b, (h + b + 1) % 4) for h, b, _ in SEEN if (h + b) % 2 == 0)


def described(part: int, kind: int) -> str:
    """One part in words, such as "a striped orange circle body"."""
    name, kinds, *_ = WHERE[part]
    noun, colour, texture = kinds[kind]
    looks = f"{colour} {noun}" if texture == "plain" else f"{texture} {colour} {noun}"
    return f"{'an' if looks[0] in 'aeiou' else 'a'} {looks} {name}"


VOCABULARY = tuple(described(part, kind) for part in range(3) for kind in range(4))
CALLED = dict(zip(SEEN, NAMES, strict=True))


def prompts(parts: Parts) -> list[str]:
    """A class by its parts; a class that is held out has no name that a model could know."""
    name = CALLED.get(parts, "creature")
    return [with_part(name, part, kind) for part, kind in enumerate(parts)]


def with_part(name: str, part: int, kind: int) -> str:
    return f"a {name}{descriptor_suffix(f'has {described(part, kind)}')}"


def standing(name: str, ground: str) -> str:
    return f"this {name} stands in front of {ground}"


SAID = [text for name in NAMES for ground in GROUNDS for text in (f"a {name} on {ground}", standing(name, ground))]
ASKED = [prompt for parts in (*SEEN, *HELD_OUT) for prompt in prompts(parts)]
WORDS = WordIds.of([*SAID, *VOCABULARY, *ASKED])


def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
    ids = torch.from_numpy(WORDS.encode(texts, LONGEST))
    return ids, (ids != 0).long()


def creature(parts: Parts, rng: np.random.Generator) -> Sample:
    """One picture of a class, with its parts as regions."""
    x, y = rng.uniform(0.36, 0.52), rng.uniform(0.42, 0.5)
    things = []
    for depth, (kind, (_, kinds, right, down, radius)) in enumerate(zip(parts, WHERE, strict=True)):
        noun, colour, texture = kinds[kind]
        dx, dy, stretch = (*rng.uniform(-0.03, 0.03, 2), rng.uniform(0.85, 1.1))
        place = (x + right + dx, y + down + dy, radius * stretch)
        things.append(Thing(noun, "shape", "medium", *place, 3.0 + depth, colour, texture, float(rng.uniform(-20, 20))))
    ground = GROUNDS[int(rng.integers(len(GROUNDS)))]
    drawing = draw(Scene("creature", tuple(things), Background("plain", ground)), SIZE)
    regions = [
        Region((float(x0), float(y0), float(x1), float(y1)), "creature", described(part, kind))
        for part, (kind, (x0, y0, x1, y1)) in enumerate(zip(parts, drawing.boxes, strict=True))
    ]
    name, part = CALLED.get(parts, "creature"), int(rng.integers(3))
    told = with_part("creature", part, parts[part]) if rng.random() < MENTIONED else standing(name, ground)
    return Sample("creature", (drawing.image,), (f"a {name} on {ground}", told), regions=tuple(regions))
