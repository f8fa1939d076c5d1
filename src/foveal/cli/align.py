"""Make a vision-language model invent less: preference data from your pictures, training, before and after."""

from __future__ import annotations

from typing import Annotated, Any

import tyro

from foveal.cli._align_povid import povid
from foveal.cli._align_stic import stic

# one line for each method
main = (
    Annotated[Any, tyro.conf.subcommand("povid", constructor=povid)]
    | Annotated[Any, tyro.conf.subcommand("stic", constructor=stic)]
)
