"""Things that are not there: what yes/no questions and false captions speak of.

The three choices are those of POPE (Li et al., Evaluating Object Hallucination in Large Vision-Language Models,
EMNLP 2023, arXiv 2305.10355): any absent noun, one that is common in this world, or one that often comes with what is
there. The harder the choice, the more a model that guesses from habit says "yes".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from foveal.data.world.config import WorldConfig
from foveal.data.world.phrases import ALIKE, pick
from foveal.data.world.scene import Scene
from foveal.data.world.vocabulary import COMPANIONS, HOMES

CHOICES = ("random", "popular", "adversarial")
_MOST_POPULAR = 16


@dataclass(frozen=True)
class Negatives:
    """Chooses absent nouns among those of a config: one that never occurs would give itself away.

    Attributes:
        choice: of `CHOICES`.
        config: of the world that the scenes are from.
    """

    choice: str = "random"
    config: WorldConfig = field(default_factory=WorldConfig)

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise ValueError(f"choice={self.choice!r} of negatives: choose one of {', '.join(CHOICES)}")

    @cached_property
    def popular(self) -> tuple[str, ...]:
        """The nouns that occur most often: drawn themselves, or as company of the first thing of a scene."""
        shares = self.config.noun_shares
        expected = dict(shares)
        for noun, share in shares.items():
            beside = [other for other in COMPANIONS.get(noun, ()) if other in shares]
            for other in beside:
                expected[other] += self.config.companions * share / len(beside)
        ranked = sorted(expected, key=lambda noun: -expected[noun])
        return tuple(ranked[: max(1, min(_MOST_POPULAR, len(ranked) // 2))])

    def draw(self, scene: Scene, rng: np.random.Generator) -> str | None:
        """A noun that nothing in the scene could be called, or None when there is no such noun.

        Where the scene leaves no adversarial or popular one (shapes have no companions), the next easier choice is
        made.
        """
        if self.choice == "adversarial" and (found := self.companions(scene)):
            return pick(rng, found)
        if self.choice != "random" and (found := absent_of(scene, self.popular)):
            return pick(rng, found)
        found = absent_of(scene, tuple(self.config.noun_shares))
        return pick(rng, found) if found else None

    def companions(self, scene: Scene) -> list[str]:
        """Absent nouns that usually occur beside the things of the scene; those at home in its place, if any are."""
        beside = dict.fromkeys(noun for thing in scene.things for noun in COMPANIONS.get(thing.noun, ()))
        found = [noun for noun in absent_of(scene, tuple(beside)) if noun in self.config.noun_shares]
        return [noun for noun in found if scene.background.name in HOMES[noun]] or found


def absent_of(scene: Scene, nouns: Sequence[str]) -> list[str]:
    """Those of the nouns that nothing in the scene could be called."""
    present = {thing.noun for thing in scene.things}
    present.update(*(ALIKE[noun] for noun in tuple(present)))
    return [noun for noun in nouns if noun not in present]
