"""The question for a better template as a list for small models to go on with, see `foveal.adapt.base_continue`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from foveal.llm import Turn

FORM = ("my {}", "one {} there")
"""Templates that show the form and recommend nothing."""


def sections(messages: Sequence[Turn]) -> tuple[list[str], list[str]]:
    """The good and the bad templates that a message of `feedback_messages` shows."""
    found = []
    for kind in ("good", "bad"):
        block = re.search(
            rf"^These templates are {kind}:\n(.*?)\n\n", messages[-1]["content"], re.MULTILINE | re.DOTALL
        )
        found.append(block[1].split("\n") if block else [])
    return found[0], found[1]


def as_list(messages: Sequence[Turn]) -> str:
    """Bad templates, two of which show the form, then good ones up to the best."""
    good, bad = sections(messages)
    lines = ["Bad templates for captions:", *(f"- {template}" for template in (*FORM, *bad))]
    return "\n".join([*lines, "", "Good templates:", *(f"- {template}" for template in reversed(good)), "-"])
