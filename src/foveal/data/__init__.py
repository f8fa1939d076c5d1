"""Records and where they come from: the one `Sample`, readers of users' files, and the procedural world."""

from foveal._lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __path__)
