"""Preference pairs for POVID's recipe, made by the data builder of the method."""

import numpy as np

from foveal.align.batches import Pair
from foveal.align.povid import inject_hallucinations
from foveal.data.world.captions import long_caption
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.phrases import pick
from foveal.evaluate.tasks.worlds import LLAVA_WORLD
from foveal.lab import Run
from foveal.recipes._liar import Liar
from foveal.recipes._preferences import ROWS
from foveal.zoo.nano.conversations import PROMPTS

WORLD = 8000
"""Plus the seed: a world of which neither the host nor an evaluation has seen anything."""
STEPS = 24
"""Of each stage."""


def pairs(run: Run) -> list[Pair]:
    """Scenes with their true and their falsified caption, by the data builder of the method."""
    rng, samples, scenes = run.rng("captions"), [], {}
    for index in range(run.steps(2 * STEPS) * ROWS):
        scene = lay_out(LLAVA_WORLD, WORLD + run.seed, index)
        answer = " ".join(part.text for part in long_caption(scene, rng))
        scenes[answer] = scene
        instruction = pick(rng, PROMPTS["long"]).replace("picture", "image")
        samples.append({"id": str(index), "image": scene.key, "instruction": instruction, "answer": answer})
    found = []
    for record in inject_hallucinations(samples, Liar(scenes, np.random.default_rng(run.seed)), max_retries=8):
        (asked, true), (_, false) = record["conversations"], record["rejected_conversations"]
        picture = draw(scenes[true["value"]], LLAVA_WORLD.size).image
        found.append(Pair(picture, asked["value"].removeprefix("<image>\n"), true["value"], false["value"]))
    return found
