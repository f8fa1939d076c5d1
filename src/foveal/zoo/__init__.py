"""Real pretrained parts from package wheels (SmolLM2, EfficientNet-Lite0, MiniLM) and the slots of the nano-* models."""

from foveal._lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __path__)
