"""The 87 papers: what each is for, how far foveal has it (`status`), and `find` for a need in one's own words."""

from foveal._lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __path__)
