"""Whether a text speaks of a thing: what captions and answers are measured with, without a language model."""

import re

IRREGULAR = {
    "axes": "axe",
    "buses": "bus",
    "canoes": "canoe",
    "children": "child",
    "cookies": "cookie",
    "feet": "foot",
    "geese": "goose",
    "horses": "horse",
    "houses": "house",
    "knives": "knife",
    "leaves": "leaf",
    "lenses": "lens",
    "loaves": "loaf",
    "men": "man",
    "mice": "mouse",
    "movies": "movie",
    "noses": "nose",
    "people": "person",
    "pies": "pie",
    "roses": "rose",
    "selfies": "selfie",
    "shelves": "shelf",
    "shoes": "shoe",
    "skis": "ski",
    "teeth": "tooth",
    "ties": "tie",
    "vases": "vase",
    "wolves": "wolf",
    "women": "woman",
}


def words(text: str) -> list[str]:
    """Lower-case words and numbers; a hyphen or an apostrophe within a word stays: "T-Rex's" gives t-rex's."""
    return re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", text.lower().replace("’", "'"))


UNCHANGED = frozenset(
    words(
        "always aries briefs christmas clothes gas has jeans lens news pisces rhinoceros scissors series shorts "
        "species trousers was yes"
    )
)


def singular(word: str) -> str:
    """The singular of an English noun by rule, without a possessive 's; any other word comes back as it is."""
    word = word.removesuffix("'s")
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word in UNCHANGED or len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "sses", "xes", "zzes", "oes")):
        return word[:-2]
    return word[:-1]


def mentions(text: str, noun: str) -> bool:
    """Whether the words of ``noun`` stand in the text side by side, singular or plural. Never true within a word.

    Raises:
        ValueError: when ``noun`` has no word.
    """
    wanted = [singular(word) for word in words(noun)]
    if not wanted:
        raise ValueError(f"noun={noun!r} has no word: give at least one")
    said = [singular(word) for word in words(text)]
    return any(said[start : start + len(wanted)] == wanted for start in range(len(said) - len(wanted) + 1))
