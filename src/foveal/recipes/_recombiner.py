"""A writer of templates by rule: it recombines good ones and avoids the words of bad ones."""

import random
from collections.abc import Sequence

from foveal.adapt.llm_bbo_list import sections
from foveal.adapt.llm_bbo_pool import DEFAULT_POOL
from foveal.llm import Turn

TRIES = 50


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
