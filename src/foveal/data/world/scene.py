"""The typed description of a scene. Whatever can be drawn, said or asked about it follows from these values.

Lengths are shares of the picture (x of its width, y of its height, radii of its short side), so that one scene can be
drawn at any size from 32 to 8192 pixels. Every name comes from `foveal.data.world.vocabulary`.

The camera is a pinhole: something 1 m across at a depth of 1 m fills the short side. What is behind everything is a
plane that stands (walls, sky) or falls back (floors); when the camera has moved, `Background.camera` says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Thing:
    """One object. ``noun`` is a shape ("star") or the word of a sprite ("dog")."""

    noun: str
    category: str
    """``"shape"``, or the category of the sprite, such as ``"animal"``."""
    size: str
    """``"small"``, ``"medium"`` or ``"large"``: how big it is, which its distance makes look smaller."""
    x: float
    y: float
    """Centre, from the left and from the top."""
    radius: float
    """Half the side of the square it is drawn in, perspective included."""
    depth: float
    """Metres from the camera, 1 to 10; nearer things cover farther ones."""
    colour: str | None = None
    """None: a sprite in its own colours."""
    texture: str = "plain"
    angle: float = 0.0
    """Degrees, anticlockwise."""

    def with_(self, **changes: Any) -> Thing:
        """A copy with some fields replaced."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Background:
    """What is behind everything: ``kind`` is ``"plain"``, ``"gradient"`` (both named by a colour) or ``"place"``."""

    kind: str
    name: str
    variant: int = 0
    """Seed of its texture and tint."""
    camera: tuple[float, float] = (0.0, 0.0)
    """Metres that the camera has moved right and down since the background filled the picture exactly."""
    zoom: float = 1.0
    """Focal length over that at which the background filled the picture exactly."""


@dataclass(frozen=True, slots=True)
class Writing:
    """Text in the picture, in front of everything. It has no depth: it is written on the picture, not in the world."""

    text: str
    x: float
    y: float
    """Centre."""
    height: float
    """Height of the letters, as a share of the short side."""
    colour: str
    script: str = "latin"
    """``"latin"`` or ``"cjk"``."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A whole picture before it is drawn. ``things`` are in the order in which they are spoken of, nearest first."""

    key: str
    things: tuple[Thing, ...]
    background: Background
    style: str = "flat"
    writings: tuple[Writing, ...] = ()
    variant: int = 0
    """Seed of whatever the style draws at random (noise, strokes)."""
    aspect: float = 1.0
    """Width of the picture over its height: what the shares of the two sides stand for."""

    def with_(self, **changes: Any) -> Scene:
        """A copy with some fields replaced."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens in a clip to ``things[thing]``, over frames ``start`` to ``end`` (both included).

    ``kind``: "appears", "disappears", "moves left", "moves right", "moves up", "moves down", "grows", "shrinks",
    "changes colour" (``to`` is the new colour).
    """

    kind: str
    thing: int
    start: int
    end: int
    to: str | None = None


@dataclass(frozen=True, slots=True)
class Clip:
    """A short film. ``things`` are all that ever appear; a frame's scene holds those that are there at that time."""

    key: str
    things: tuple[Thing, ...]
    frames: tuple[Scene, ...]
    events: tuple[Event, ...]
    """In the order in which they happen; one is over before the next begins."""
    present: tuple[tuple[int, ...], ...]
    """For each frame, which of ``things`` its scene's things are."""
