"""The shortest phrase that picks out one thing of a scene, as in "the small star left of the ring"."""

from __future__ import annotations

from collections.abc import Iterator

from foveal.data.world.phrases import ALIKE, DETAILS, attribute_words, noun_phrase, position, spoken
from foveal.data.world.relations import SPATIAL, holds
from foveal.data.world.scene import Scene

# Attributes to add to the noun, fewest words first.
_DETAILS: tuple[tuple[str, ...], ...] = (
    (),
    *(("colour",), ("size",), ("texture",)),
    *(("size", "colour"), ("colour", "texture"), ("size", "texture")),
    DETAILS,
)


def unique_phrase(scene: Scene, index: int, avoid: str | None = None) -> str | None:
    """ "the red star": noun and attributes that fit ``things[index]`` alone, or None.

    ``avoid``: an attribute, or "noun", that must not be used, because it is what a question asks for.
    """
    _check(scene, index)
    thing = scene.things[index]
    for detail in _DETAILS:
        if avoid in detail or _fitting(scene, index, detail, any_noun=avoid == "noun") != [index]:
            continue
        if avoid != "noun":
            return f"the {noun_phrase(scene, thing, detail)}"
        return f"the {' '.join([*attribute_words(scene, thing, detail), 'thing'])}"
    return None


def referring_expression(scene: Scene, index: int) -> str | None:
    """The shortest unambiguous phrase for ``things[index]``, or None when there is none.

    Tried in turn: noun and attributes, then the noun phrase with its place in the picture, then a relation to a thing
    that its own words identify. IndexError: no such thing.
    """
    simple = unique_phrase(scene, index)
    if simple is not None:
        return simple
    candidates = sorted({*_by_position(scene, index), *_by_relation(scene, index)}, key=lambda text: (len(text), text))
    return candidates[0] if candidates else None


def _fitting(scene: Scene, index: int, detail: tuple[str, ...], any_noun: bool = False) -> list[int]:
    """Things that the words with ``detail`` could mean."""
    words = [(part, spoken(scene, scene.things[index], part)) for part in detail]
    said = [(part, word) for part, word in words if word is not None]
    nouns = ALIKE[scene.things[index].noun] | {scene.things[index].noun}
    return [
        other
        for other, thing in enumerate(scene.things)
        if (any_noun or thing.noun in nouns)
        and all(_could_be(word, part, spoken(scene, thing, part)) for part, word in said)
    ]


def _could_be(word: str, part: str, own: str | None) -> bool:
    """A medium thing might be called small, one in its own colours might be called brown; plain is never striped."""
    return own == word or (own is None and part != "texture")


def _by_position(scene: Scene, index: int) -> Iterator[str]:
    place = position(scene.things[index])
    if place is None:
        return
    for detail in _DETAILS:
        others = [other for other in _fitting(scene, index, detail) if other != index]
        # an alike thing on the border of the same part of the picture would be doubtful
        if all(_clearly_elsewhere(scene, index, other) for other in others):
            yield f"the {noun_phrase(scene, scene.things[index], detail)} {place}"
            return


def _clearly_elsewhere(scene: Scene, index: int, other: int) -> bool:
    place = position(scene.things[other])
    return place is not None and place != position(scene.things[index])


def _by_relation(scene: Scene, index: int) -> Iterator[str]:
    thing = scene.things[index]
    landmarks = [(j, unique_phrase(scene, j)) for j in range(len(scene.things)) if j != index]
    for detail in _DETAILS:
        others = [other for other in _fitting(scene, index, detail) if other != index]
        phrase = noun_phrase(scene, thing, detail)
        for landmark, name in landmarks:
            if name is None or landmark in others:
                continue
            for relation in SPATIAL:
                if holds(thing, relation, scene.things[landmark], scene.aspect) and all(
                    _clearly_not(scene, other, relation, landmark) for other in others
                ):
                    yield f"the {phrase} {relation} {name}"


def _clearly_not(scene: Scene, other: int, relation: str, landmark: int) -> bool:
    """Its centre lies on the other side of the landmark, visibly so."""
    a, b = scene.things[other], scene.things[landmark]
    ahead = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}[relation]
    return ahead <= -0.05


def _check(scene: Scene, index: int) -> None:
    if not 0 <= index < len(scene.things):
        raise IndexError(f"index={index}: the scene has {len(scene.things)} things")
