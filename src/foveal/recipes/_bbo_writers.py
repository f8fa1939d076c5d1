"""Who writes templates: SmolLM2 going on with a list of them, and a rule that recombines good ones."""

import random
import re
from collections.abc import Sequence

from foveal.adapt.llm_bbo_pool import DEFAULT_POOL
from foveal.llm import Turn

TRIES = 50
FORM = ("my {}", "one {} there")


def sections(messages: Sequence[Turn]) -> tuple[list[str], list[str]]:
    """The good and the bad templates that a message of the search shows."""
    text = messages[-1]["content"]
    found = []
    for kind in ("good", "bad"):
        block = re.search(rf"^These templates are {kind}:\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
        found.append(block[1].split("\n") if block else [])
    return found[0], found[1]


def as_list(messages: Sequence[Turn]) -> str:
    """Bad templates, then good ones up to the best, after two that show the form."""
    good, bad = sections(messages)
    lines = [*(f"- {form}" for form in FORM), *(f"- {template}" for template in bad)]
    return "\n".join(
        ["Bad templates for captions:", *lines, "", "Good templates:", *(f"- {t}" for t in good[::-1]), "-"]
    )


class Recombiner:
    """The beginning of one template and the end of another: of good ones or, every second time, of any.

    Words of bad templates that no good one has are avoided. What is shown already is not said again.
    """

    def complete(
        self, messages: Sequence[Turn], *, max_new_tokens: int = 128, temperature: float = 0.0, seed: int | None = None
    ) -> str:
        good, bad = sections(messages)
        chance = random.Random(seed)
        avoided = {word for template in bad for word in template.split()}
        avoided -= {word for template in good for word in template.split()}
        said = ""
        for _ in range(TRIES):
            sources = [good if good and chance.random() < 0.5 else DEFAULT_POOL for _ in range(2)]
            begin, end = (chance.choice(source).split("{}", 1) for source in sources)
            said = f"{begin[0]}{{}}{end[1]}"
            if said not in (*good, *bad) and not avoided & set(said.split()):
                break
        return f"- {said}"
