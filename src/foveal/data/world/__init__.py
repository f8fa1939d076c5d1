"""The procedural world: drawn scenes with every ground truth, said, asked and corrupted on request."""

from foveal._lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __path__)
