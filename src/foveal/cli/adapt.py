"""Adapt a CLIP or vision-language model to your own classes: descriptions, prompts, few labels, small adapters."""

from __future__ import annotations

from typing import Annotated, Any

import tyro

from foveal.cli._adapt_dclip import dclip
from foveal.cli._adapt_svfit import svfit

# one line for each method
main = (
    Annotated[Any, tyro.conf.subcommand("dclip", constructor=dclip)]
    | Annotated[Any, tyro.conf.subcommand("svfit", constructor=svfit)]
)
