"""Blocks in plain torch that several methods share: attention, transformer, ViT."""

from foveal._lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __path__)
