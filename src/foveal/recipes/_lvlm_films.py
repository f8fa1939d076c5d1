"""Questions about short films, answered from some of their frames."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from foveal.data.record import Question
from foveal.data.world.clips import clip
from foveal.data.world.draw import draw
from foveal.data.world.narrate import clip_questions
from foveal.evaluate.models.vision_language import VisionLanguage
from foveal.evaluate.tasks.answers import is_right
from foveal.evaluate.tasks.worlds import LLAVA_WORLD, held_out
from foveal.lab import Run
from foveal.recipes._lvlm import host

FRAMES, FILMS = 4, 120
Film = tuple[list[UInt8[np.ndarray, "h w 3"]], Question]


def films(run: Run) -> list[Film]:
    """Held-out films of four frames with a question each, for `Run.shared`."""
    seed, found, index = held_out(run.seed, 60), list[Film](), 0
    while len(found) < (1 if run.smoke else FILMS):
        rng = np.random.default_rng((seed, index, 2))
        film = clip(LLAVA_WORLD, seed, index, FRAMES)
        index += 1
        if asked := clip_questions(film, rng):
            frames = [draw(frame, LLAVA_WORLD.size).image for frame in film.frames]
            found.append((frames, asked[int(rng.integers(len(asked)))]))
    return found


def film_accuracy(run: Run, frames: Sequence[int]) -> float:
    """Percentage right when the host sees these frames; a reducer may be attached to it."""
    nano, shown = run.shared(host), run.shared(films)
    model = VisionLanguage(nano.model, nano.processor, 24)
    answers = model.answer([([pictures[i] for i in frames], question.text) for pictures, question in shown], 16)
    right = [is_right(said, question.answers) for said, (_, question) in zip(answers, shown, strict=True)]
    return 100 * sum(right) / len(right)
