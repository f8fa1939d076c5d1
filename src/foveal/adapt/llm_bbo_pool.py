"""The templates from which a search may start: captions as people write them, with a blank for what they show."""

from itertools import product

FRAMES = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "a drawing of a {}",
    "an illustration of a {}",
    "an image of one {}",
    "a close-up of a {}",
    "a small {}",
    "a large {}",
    "the {} up close",
    "a sketch of a {}",
    "a cartoon of a {}",
    "a simple icon of a {}",
    "a painting of a {}",
    "a scene with a {}",
    "a bright picture of the {}",
    "a dark picture of the {}",
)
PLACES = (
    "",
    " on grass",
    " on sand",
    " in the snow",
    " in the street",
    " by the water",
    " against the sky",
    " in front of a brick wall",
    " on a plain background",
    " on white paper",
    " in black and white",
    " in the centre",
    " for sale",
)
DEFAULT_POOL: tuple[str, ...] = tuple(frame + place for frame, place in product(FRAMES, PLACES))
"""234 of our own, at most 12 words each, every one with a single "{}"."""
