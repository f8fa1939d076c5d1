"""The training loop on accelerate: schedules, exact resume, atomic checkpoints, meters."""

from foveal._lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __path__)
