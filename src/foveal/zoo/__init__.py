"""Real pretrained parts from package wheels (SmolLM2, EfficientNet-Lite0, MiniLM), and our own nano-* and smol-vl.

``foveal.zoo.load("smollm2")`` is the short way; each part lives in the file of its name.
"""

from foveal.zoo.parts import PARTS, Card, load

__all__ = ["PARTS", "Card", "load"]
