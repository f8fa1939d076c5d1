"""Which objects a caption names: words to object names by a list of synonyms, one line for each object.

The list has the official format of CHAIR: the name first, its synonyms after it, separated by commas.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from foveal.data.world.vocabulary import NOUNS, PLURALS

_WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")  # "man's" names a man, "dog-like" no dog
_QUOTED = re.compile(r'"[^"]*"|“[^”]*”')
_IRREGULAR = {
    "people": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "mice": "mouse",
    "geese": "goose",
    "oxen": "ox",
    "teeth": "tooth",
    "feet": "foot",
    "knives": "knife",
    "wives": "wife",
    "leaves": "leaf",
    "scarves": "scarf",
    "loaves": "loaf",
    "shelves": "shelf",
    "calves": "calf",
}
_SAME = ("ss", "us", "is")  # glass, bus, tennis
WORLD_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "airplane": ("plane", "aeroplane", "jet"),
    "bicycle": ("bike",),
    "boat": ("ship", "sailboat"),
    "bulb": ("light bulb", "lightbulb"),
    "chicken": ("hen", "rooster"),
    "computer": ("laptop",),
    "crescent": ("moon",),
    "drop": ("droplet", "teardrop"),
    "hamburger": ("burger",),
    "ladybug": ("ladybird",),
    "motorcycle": ("motorbike",),
    "mouse": ("rat",),
    "palm": ("palm tree",),
    "rabbit": ("bunny",),
    "soccer ball": ("football",),
    "telephone": ("phone",),
    "television": ("tv",),
    "truck": ("lorry",),
}
"""What other models than ours call the things of the world."""


class Lexicon:
    """Words and pairs of words that name objects.

    Args:
        names: word -> name of the object, in the singular. Words of two parts are looked for first.
        plurals: further forms -> the singular, beside the usual ones.
    """

    def __init__(self, names: Mapping[str, str], plurals: Mapping[str, str] | None = None) -> None:
        if not names:
            raise ValueError("names is empty: give at least one word for an object")
        self.names, self.plurals = dict(names), {**_IRREGULAR, **(plurals or {})}

    def mentions(self, caption: str) -> list[str]:
        """The objects that are named, in order, as often as they are. What stands in double quotes is writing."""
        return [name for _, _, name in self.located(caption)]

    def located(self, caption: str) -> list[tuple[int, int, str]]:
        """The same with where each is named: from and to which character of the caption, then the object."""
        words = list(_WORD.finditer(_QUOTED.sub(lambda quoted: " " * len(quoted[0]), _lowered(caption))))
        found: list[tuple[int, int, str]] = []
        place = 0
        while place < len(words):
            for length in (3, 2, 1):
                phrase = words[place : place + length]
                name = self._name([word[0] for word in phrase]) if len(phrase) == length else None
                if name is not None:
                    found.append((phrase[0].start(), phrase[-1].end(), name))
                    place += length
                    break
            else:
                place += 1
        return found

    def _name(self, words: Sequence[str]) -> str | None:
        """The object that the phrase names, its last word in the plural or the singular."""
        *first, last = words
        for form in (last, *self._singulars(last)):
            name = self.names.get(" ".join([*first, form]))
            if name is not None:
                return name
        return None

    def _singulars(self, word: str) -> Iterable[str]:
        if word in self.plurals:
            yield self.plurals[word]
        if word.endswith("ies"):
            yield f"{word[:-3]}y"
        if word.endswith("es"):
            yield word[:-2]
        if word.endswith("s") and not word.endswith(_SAME):
            yield word[:-1]


def _lowered(caption: str) -> str:
    """In lower case and as long as before, which "İ" would not be."""
    return "".join(small if len(small := letter.lower()) == 1 else letter for letter in caption)


def world_lexicon() -> Lexicon:
    """The nouns of the world, their plurals, and what others call them."""
    names = {noun: noun for noun in NOUNS}
    names |= {other: noun for noun, others in WORLD_SYNONYMS.items() for other in others}
    return Lexicon(names, {plural: noun for noun, plural in PLURALS.items() if " " not in plural})


def read_synonyms(path: Path) -> dict[str, str]:
    """Word -> object name, from a list in CHAIR's official format.

    Raises:
        ValueError: the file is missing or holds no words.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read synonyms {path}: {error}; give CHAIR's synonyms.txt") from error
    names: dict[str, str] = {}
    for line in lines:
        words = [word.strip().lower() for word in line.split(",") if word.strip()]
        for word in words:
            names[word] = words[0]  # as in the official code, the last line that holds a word decides
    if not names:
        raise ValueError(f"synonyms {path} holds no words: one line for each object, its name first, then commas")
    return names
