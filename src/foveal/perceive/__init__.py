"""Segmentation, detection, depth, places, 3-D."""

from foveal._lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __path__)
