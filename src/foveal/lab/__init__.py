"""The lab: a recipe's arms run over seeds, paired statistics, result files, figures and method pages."""

from foveal._lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __path__)
