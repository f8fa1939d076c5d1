"""The first thing a new user sees: real frozen parts, joined, on their own pictures."""

from foveal._lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __path__)
