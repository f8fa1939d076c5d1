"""Choose, clean and rewrite image–text data, with a report of what was kept and why."""

from __future__ import annotations

from typing import Annotated, Any

import tyro

from foveal.cli._curate_tldr import tldr

# one line for each method; tyro asks for at least two choices, of which the second is never shown
main = Annotated[Any, tyro.conf.subcommand("tldr", constructor=tldr)] | Annotated[None, tyro.conf.Suppress]
