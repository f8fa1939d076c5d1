"""GLOV's question as a list for small language models to go on with, see `foveal.adapt.base_continue`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from foveal.llm import Turn

FORM = ("my <category>", "one <category> there")
"""Templates that show the form and recommend nothing."""
BETTER = 5
"""By how many points the next template is said to be better."""


def as_list(messages: Sequence[Turn]) -> str:
    """The prompts of a message of `build_meta_prompt`, from the worst to the best, after two that show the form."""
    shown = re.findall(r"^accuracy (-?\d+): (.*)$", messages[-1]["content"], re.MULTILINE)
    rows = [("0", form) for form in FORM] + sorted(shown, key=lambda row: int(row[0]))
    lines = [f"accuracy {score}: {prompt}" for score, prompt in rows]
    return "\n".join(["Templates for pictures, better and better:", *lines, f"accuracy {int(rows[-1][0]) + BETTER}:"])
