"""The head noun of an English emoji name: the one word that a caption of the picture must not miss.

English names put the head last ("red apple"), unless something follows it: a phrase ("cup with straw"), a participle
("person rowing boat"), an adverb ("thumbs up"), or, for people, a list of hair, partners or skin tone ("man red hair").
`head_noun` cuts off what follows and takes the last word, in the singular. Faces of an animal are the animal.
"""

import re

from foveal.data.text import singular, words

# A phrase that follows the head begins with one of these.
AFTER = frozenset(
    words("a an and as at behind beneath but for from in into of on or over to under with without pointed tilted not")
)
TRAILING = frozenset(words("up down left right off done together away horizontally vertically arrival departure"))
LAST_ANYHOW = frozenset(words("button flag sign"))  # "free of charge button", "Isle of Man flag"
PEOPLE = frozenset(words("man woman person men women people"))
LOOKS = frozenset(words("bald beard hair blond curly red white"))
GROUPS = frozenset(words("family kiss couple"))
MEMBERS = PEOPLE | frozenset(words("adult boy child girl heart with"))
FACES = frozenset(words("cat cow dog dragon horse monkey moon mouse pig rabbit tiger"))
COMPOUNDS = frozenset({"hot dog", "ice cream", "ping pong", "yin yang"})  # the last word alone misleads
# Looked up for the whole name and again for what is left of it.
EXCEPTIONS = {
    "backhand index": "finger",
    "index": "finger",
    "locked": "lock",
    "unlocked": "lock",
    "moon viewing ceremony": "ceremony",
    "mount fuji": "mountain",
    "raised back of hand": "hand",
    "rolling on the floor laughing": "face",
    "sad but relieved face": "face",
    "speaker high volume": "speaker",
    "speaker low volume": "speaker",
    "speaker medium volume": "speaker",
    "star-struck": "face",
}
SKIN_TONE = re.compile(r" (light|medium-light|medium|medium-dark|dark) skin tone")  # "woman dark skin tone beard"


def head_noun(name: str) -> str:
    """The head noun of an English emoji name, lower case, singular; one word, or two where one misleads ("hot dog").

    Raises:
        ValueError: when ``name`` has no word.
    """
    plain = SKIN_TONE.sub("", re.sub(r"\(.*?\)", "", name.lower())).strip()
    found = words(plain)
    if not found:
        raise ValueError(f"name={name!r} has no word: give the name of an emoji")
    if plain in EXCEPTIONS:
        return EXCEPTIONS[plain]
    if found[0] in PEOPLE and (set(found[1:]) <= LOOKS or any(map(_is_participle, found))):
        return singular(found[0])
    if found[0] in GROUPS and set(found[1:]) <= MEMBERS:
        return found[0]
    found = _up_to_head(found)
    if found[-1] == "face" and len(found) > 1 and found[-2] in FACES:
        found = found[:-1]
    last, last_two = found[-1], " ".join(found[-2:])
    if last_two in COMPOUNDS:
        return last_two
    return EXCEPTIONS.get(" ".join(found)) or ("clock" if last.endswith(("o'clock", "-thirty")) else singular(last))


def _up_to_head(found: list[str]) -> list[str]:
    """The words without the phrase, participle, adverb or number that follows the head."""
    if found[-1] in LAST_ANYHOW:
        return found
    for index in range(1, len(found)):
        # "loudly crying face", "no smoking": the head is yet to come
        qualifies = found[index - 1].endswith(("ing", "ly", "wards")) or found[index - 1] == "no"
        if found[index] in AFTER or (_is_participle(found[index]) and not qualifies):
            found = found[:index]
            break
    while len(found) > 1 and (found[-1] in TRAILING or found[-1].isdigit()):
        found = found[:-1]
    return found


def _is_participle(word: str) -> bool:
    return word.endswith("ing") and len(word) > 5 and word != "building"
