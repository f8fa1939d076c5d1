"""From what a language model knows of a class to captions that CLIP can read: questions, parsing, putting together."""

import re
from collections.abc import Mapping, Sequence

from foveal.llm import LanguageModel, Turn

TAXONOMY = {"scientific_name": "scientific name", "family": "family", "order": "order"}
"""Ranks that are said, in this order."""
REPLY_TOKENS = 512
"""Room for an exhaustive list of sentences."""
_MARKER = re.compile(r"(?:\d+[.)]|[-*•])\s+")
_ARTICLE = re.compile(r"(?:the|an|a)\s+", re.IGNORECASE)


def caption_lines(reply: str, *, drop: Sequence[str] = ("scientific name",), strip_quotes: bool = False) -> list[str]:
    """The sentences of a reply, one a line, made ready to follow the name of a class.

    A leading "1.", "1)", "-", "*" or "•" goes when a blank follows it, then one leading article; the first letter
    becomes small. Empty lines and those that hold one of the phrases of ``drop`` (in any case) are left out.

    Args:
        strip_quotes: take away every " and '; models like to put sentences on places in quotation marks.
    """
    if not isinstance(reply, str):
        raise ValueError(f"reply={reply!r}: must be the text that the language model wrote")
    if isinstance(drop, str):
        raise ValueError(f"drop={drop!r} is one phrase: pass a list of phrases")
    phrases = [phrase.lower() for phrase in drop]
    found = []
    for line in reply.splitlines():
        text = _without(_MARKER, line.lstrip())
        text = (re.sub("[\"']", "", text) if strip_quotes else text).strip()
        if not text or any(phrase in text.lower() for phrase in phrases):
            continue
        text = _without(_ARTICLE, text)
        found.append(text[0].lower() + text[1:])
    return found


def _without(start: re.Pattern[str], text: str) -> str:
    match = start.match(text)
    return text[match.end() :] if match else text


def class_captions(
    class_name: str,
    *,
    visual: Sequence[str] = (),
    location: Sequence[str] = (),
    taxonomy: Mapping[str, str] | None = None,
    kind: str = "",
    template: str = "a photo of a {}",
) -> list[str]:
    """All captions of a class: its looks, where it is found, its taxonomy; its name alone when nothing is known.

    Args:
        class_name: "_" is written as a blank.
        visual, location: as `caption_lines` gives them.
        taxonomy: any of "scientific_name", "family" and "order"; other ranks are not said.
        kind: of thing, such as "bird"; it follows the name where the taxonomy is said.
        template: with ``{}`` in the place of the name.
    """
    if "{}" not in template:
        raise ValueError(f"template={template!r} has no '{{}}' for the class name")
    for name, lines in (("visual", visual), ("location", location)):
        if isinstance(lines, str):
            raise ValueError(f"{name}={lines!r} is one text: pass a list of sentences")
    head = template.replace("{}", class_name.replace("_", " "))
    captions = [f"{head} {line}" for line in (*visual, *location)]
    whole = f"{head} {kind}" if kind else head
    for key, words in TAXONOMY.items():
        if taxonomy and taxonomy.get(key):
            captions.append(f"{whole}, {words} {taxonomy[key]}")
    return captions or [head]


def shorten_caption(text: str, max_words: int = 30) -> str:
    """``text``, or when it has more words, what stands before its first ";", ":" or ",", whichever is shortest."""
    if max_words < 1:
        raise ValueError(f"max_words={max_words}: must be at least 1")
    if len(text.split()) <= max_words:
        return text
    return min((text.split(mark)[0] for mark in ";:,"), key=len).removesuffix(".") + "."


def description_messages(class_name: str, domain: str, kind: str = "visual") -> list[Turn]:
    """What to ask a language model about a class.

    Args:
        domain: what the classes are, in the singular: "bird", "car".
        kind: "visual" (looks) or "location" (habitat and range, without naming the class).
    """
    if kind not in ("visual", "location"):
        raise ValueError(f"kind={kind!r}: must be 'visual' or 'location'")
    for label, value in (("class_name", class_name), ("domain", domain)):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{label}={value!r}: must be a text with at least one letter")
    name = class_name.replace("_", " ")
    thing = f"{'an' if domain[0].lower() in 'aeiou' else 'a'} {domain}"
    form = "Answer with a list of single sentences, one on each line, each of the form"
    if kind == "visual":
        expert = f"You are an expert who recognises every kind of {domain} in a photo."
        ask = (
            f"Which features tell {name} from any other {domain} in a photo? Name every attribute that can be seen, "
            f'exhaustively. {form} "{thing} with <feature>".'
        )
    else:
        expert = f"You are an expert who knows where every kind of {domain} is found."
        ask = (
            f"Where is {name} found? Name all habitats and geographical regions that help to identify it. "
            f'{form} "{thing} which <place>". Do not write the name {name} in any sentence.'
        )
    return [{"role": "system", "content": expert}, {"role": "user", "content": ask}]


def generate_captions(
    class_names: Sequence[str],
    lm: LanguageModel,
    domain: str,
    *,
    location: bool = False,
    template: str = "a photo of a {}",
) -> dict[str, list[str]]:
    """Captions of each class, from one question on its looks and, with ``location``, one on where it is found.

    A class of which the model says nothing that can be read gets its name alone. Keys are the names as given.

    Raises ValueError for no name and for duplicates.
    """
    if isinstance(class_names, str) or not len(class_names):
        raise ValueError(f"class_names={class_names!r}: give a list of at least one name")
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"class_names={list(class_names)!r} holds a name more than once")
    captions = {}
    for name in class_names:
        visual = caption_lines(_ask(lm, description_messages(name, domain)))
        places = []
        if location:
            places = caption_lines(_ask(lm, description_messages(name, domain, "location")), strip_quotes=True)
        captions[name] = class_captions(name, visual=visual, location=places, template=template)
    return captions


def _ask(lm: LanguageModel, messages: list[Turn]) -> str:
    return lm.complete(messages, max_new_tokens=REPLY_TOKENS, temperature=0.0)
