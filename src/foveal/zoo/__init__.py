"""Real pretrained parts from package wheels (SmolLM2, EfficientNet-Lite0, MiniLM) and the slots of the nano-* models.

``foveal.zoo.load("smollm2")`` is the short way; each part lives in the file of its name.
"""

from foveal.zoo.parts import PARTS, Card, load

__all__ = ["PARTS", "Card", "load"]
