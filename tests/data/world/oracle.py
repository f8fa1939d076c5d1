"""A second opinion on what is true: phrases are resolved by their words, relations measured in pixels."""

import re

import numpy as np

from foveal.data.world.draw import draw
from foveal.data.world.phrases import COLOURLESS
from foveal.data.world.relations import WORDINGS
from foveal.data.world.vocabulary import COLOURS, NOUNS, PLURALS, SIZES, TEXTURES

SIDE = 128
NOUN = "|".join(sorted((*NOUNS, *PLURALS.values(), "thing"), key=len, reverse=True))
WORD = "|".join((*SIZES, *COLOURS, *TEXTURES))
PHRASE = rf"the (?:(?:{WORD}) )*(?:{NOUN})"
RELATION = {wording: name for name, wordings in WORDINGS.items() for wording in wordings}


class Picture:
    """A drawn scene and its measures: centres of what is seen of each thing, and the whole mask of each."""

    def __init__(self, scene, side=SIDE):
        self.scene, self.drawing = scene, draw(scene, side)
        seen = [np.nonzero(self.drawing.instance == i + 1) for i in range(len(scene.things))]
        height, width = self.drawing.instance.shape
        self.centres = [(xs.mean() / width, ys.mean() / height) for ys, xs in seen]
        alone = [draw(scene.with_(things=(thing,), writings=()), side).instance == 1 for thing in scene.things]
        self.whole = alone
        self.extent = [max(np.ptp(axis) + 1 for axis in np.nonzero(mask)) for mask in alone]

    def true(self, i, name, j):
        """Is "i ``name`` j" what the pixels say?"""
        (ax, ay), (bx, by) = self.centres[i], self.centres[j]
        near, far = self.scene.things[i].depth, self.scene.things[j].depth
        touching = bool((self.whole[i] & self.whole[j]).any())
        return {
            "left of": ax < bx - 0.04,
            "right of": ax > bx + 0.04,
            "above": ay < by - 0.04,
            "below": ay > by + 0.04,
            "in front of": touching and near < far,
            "behind": touching and near > far,
            "bigger than": self.extent[i] > self.extent[j] and self.whole[i].sum() > self.whole[j].sum(),
            "smaller than": self.extent[i] < self.extent[j] and self.whole[i].sum() < self.whole[j].sum(),
            "nearer than": near < far,
            "farther than": near > far,
        }[name]


def resolve(scene, phrase):
    """Things that "the small red star" can mean, judged by its words alone."""
    match = re.fullmatch(rf"the ((?:(?:{WORD}) )*)({NOUN})", phrase)
    assert match, phrase
    words, noun = match[1].split(), match[2]
    found = []
    for i, thing in enumerate(scene.things):
        own = {thing.size, thing.texture, None if scene.style in COLOURLESS else thing.colour}
        if noun in (thing.noun, "thing") and own.issuperset(words):
            found.append(i)
    return found


def one(scene, phrase):
    """The thing that the phrase means; fails when it could mean another."""
    found = resolve(scene, phrase[0].lower() + phrase[1:])
    assert len(found) == 1, (phrase, found, scene)
    return found[0]


def relation_in(text):
    """Both phrases and the name of the relation in "... the star left of the ring"."""
    wordings = "|".join(sorted(RELATION, key=len, reverse=True))
    match = re.search(rf"({PHRASE}) (?:is )?({wordings}) ({PHRASE})", text[0].lower() + text[1:])
    return match and (match[1], RELATION[match[2]], match[3])
