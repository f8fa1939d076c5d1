"""Adapt a CLIP or vision-language model to your own classes: descriptions, prompts, few labels, small adapters."""

from __future__ import annotations

from typing import Annotated, Any

import tyro

from foveal.cli._adapt_adaptclipzs import adaptclipzs
from foveal.cli._adapt_dclip import dclip
from foveal.cli._adapt_glov import glov
from foveal.cli._adapt_llm_bbo import llm_bbo
from foveal.cli._adapt_pcb import pcb
from foveal.cli._adapt_svfit import svfit
from foveal.cli._adapt_vladva import vladva

# one line for each method
main = (
    Annotated[Any, tyro.conf.subcommand("adaptclipzs", constructor=adaptclipzs)]
    | Annotated[Any, tyro.conf.subcommand("dclip", constructor=dclip)]
    | Annotated[Any, tyro.conf.subcommand("glov", constructor=glov)]
    | Annotated[Any, tyro.conf.subcommand("llm_bbo", constructor=llm_bbo)]
    | Annotated[Any, tyro.conf.subcommand("pcb", constructor=pcb)]
    | Annotated[Any, tyro.conf.subcommand("svfit", constructor=svfit)]
    | Annotated[Any, tyro.conf.subcommand("vladva", constructor=vladva)]
)
