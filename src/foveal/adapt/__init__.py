"""Prompts, adapters, distillation, few-shot and active learning."""

from foveal._lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__, __path__)
