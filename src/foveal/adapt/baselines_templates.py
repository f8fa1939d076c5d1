"""The 80 prompts of CLIP's zero-shot ensemble: a name in many kinds of photographs and of pictures that are none.

Radford et al. (CLIP), ICML 2021, arXiv 2103.00020; the list is that of openai/CLIP (MIT), grouped by form.
"""

_OF_BOTH = (
    *("bad photo", "low resolution photo", "cropped photo", "bright photo", "dark photo", "close-up photo"),
    *("black and white photo", "pixelated photo", "jpeg corrupted photo", "blurry photo", "good photo", "photo"),
    *("sculpture", "rendering", "tattoo", "drawing", "painting", "doodle", "sketch", "rendition"),
)
_LOOKS = ("hard to see", "clean", "dirty", "cool", "large", "nice", "weird", "small")
_MADE = ("embroidered", "plastic", "origami", "toy", "cartoon", "plushie")
_ARTICLES = ("a", "the")

IMAGENET_TEMPLATES: tuple[str, ...] = (
    *(f"a {what} of {article} {{}}." for what in _OF_BOTH for article in _ARTICLES),
    *(f"a photo of {article} {look} {{}}." for look in _LOOKS for article in _ARTICLES),
    *(f"{article} {how} {{}}." for how in _MADE for article in _ARTICLES),
    *(f"{what} of {article} {{}}." for what in ("graffiti", "art", "itap") for article in _ARTICLES),
    *(f"{article} {{}} in a video game." for article in _ARTICLES),
    *(f"a photo of {what} {{}}." for what in ("many", "my", "one")),
    "itap of my {}.",
)
"""Strings with ``{}`` in the place of the name, for `foveal.nn.zero_shot.build_zero_shot_classifier`."""
