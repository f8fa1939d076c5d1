"""nano-llava describes pictures for itself, as STIC asks for it, and what its short captions get right."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from foveal.align.batches import Pair
from foveal.align.stic import BAD_PROMPTS, DESCRIPTION_PROMPTS
from foveal.align.stic_data import build_preference_pairs
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.phrases import ALIKE, spoken
from foveal.data.world.scene import Scene
from foveal.data.world.vocabulary import COLOURS
from foveal.evaluate.models.vision_language import VisionLanguage
from foveal.evaluate.tasks.captions import caption_metrics
from foveal.evaluate.tasks.mentions import world_lexicon
from foveal.evaluate.tasks.worlds import LLAVA_WORLD, held_out
from foveal.lab import Run
from foveal.recipes._lvlm import BATCH, host
from foveal.zoo.nano import Nano
from foveal.zoo.nano.conversations import PROMPTS

WORLD = 9000
LONG = "Please describe this image in detail."
LONGEST = 64
CAPTIONS = 48
LEXICON = world_lexicon()


def short(prompt: str) -> str:
    """What the host was taught to answer in one line, for each of STIC's neutral prompts."""
    return PROMPTS["short"][DESCRIPTION_PROMPTS.index(prompt) % len(PROMPTS["short"])].replace("picture", "image")


def wrote(nano: Nano, asked: Sequence[tuple[np.ndarray, str]]) -> list[str]:
    model = VisionLanguage(nano.model, nano.processor, BATCH)
    return model.answer([([picture], prompt) for picture, prompt in asked], LONGEST)


def _described(nano: Nano, asked: Sequence[tuple[Tensor, str]]) -> list[str]:
    """STIC's prompts in words that the host knows. It follows no misleading one: it then tells of a grey picture."""
    rows = []
    for image, prompt in asked:
        picture = (255 * image).round().byte().permute(1, 2, 0).contiguous().numpy()
        if prompt in BAD_PROMPTS:
            picture = np.full_like(picture, 128)
        rows.append((picture, short(prompt) if prompt in DESCRIPTION_PROMPTS else LONG))
    return wrote(nano, rows)


def self_pairs(run: Run, count: int) -> tuple[list[Pair], float]:
    """Pairs on unlabelled scenes, and the share (in percent) whose rejected caption is in fact the worse one."""
    nano, scenes = run.shared(host), [lay_out(LLAVA_WORLD, WORLD + run.seed, i) for i in range(count)]
    pictures = [draw(scene, LLAVA_WORLD.size).image for scene in scenes]
    images = [torch.from_numpy(picture).permute(2, 0, 1) / 255 for picture in pictures]
    made = build_preference_pairs(images, lambda asked: _described(nano, asked), run.seed)
    worse = [_f1(pair.rejected, scene) < _f1(pair.chosen, scene) for pair, scene in zip(made, scenes)]
    pairs = [Pair(picture, short(p.prompt), p.chosen, p.rejected) for picture, p in zip(pictures, made, strict=True)]
    return [pair for pair in pairs if pair.chosen and pair.rejected], 100 * float(np.mean(worse))


def _f1(caption: str, scene: Scene) -> float:
    named, there = set(LEXICON.mentions(caption)), {thing.noun for thing in scene.things}
    return 2 * len(named & there) / (len(named) + len(there))


def told(run: Run, nano: Nano) -> dict[str, float]:
    """Captions of held-out scenes under a short prompt: F1 of coloured things, F1 and errors of objects, words."""
    scenes = [lay_out(LLAVA_WORLD, held_out(run.seed, 31), i) for i in range(2 if run.smoke else CAPTIONS)]
    asked = [(draw(scene, LLAVA_WORLD.size).image, short(DESCRIPTION_PROMPTS[0])) for scene in scenes]
    captions = wrote(nano, asked)
    objects = [[thing.noun for thing in scene.things] for scene in scenes]
    metrics = {m.name: m.value for m in caption_metrics(captions, objects, LEXICON, lambda noun: ALIKE[noun])[0]}
    said = [{(colour, noun) for colour, noun in _coloured(caption)} for caption in captions]
    true = [{(c, t.noun) for t in scene.things if (c := spoken(scene, t, "colour"))} for scene in scenes]
    both = sum(len(a & b) for a, b in zip(said, true))
    total = sum(map(len, said)) + sum(map(len, true))
    shares = {name: 100 * metrics[name] for name in ("object F1", "object recall", "CHAIR_i", "CHAIR_s")}
    return {"attribute F1": 200 * both / max(1, total), **shares, "words": metrics["mean length"]}


def _coloured(caption: str) -> list[tuple[str, str]]:
    found = []
    for start, _, noun in LEXICON.located(caption):
        colours = [word for word in caption[:start].lower().split()[-3:] if word in COLOURS]
        found += [(colours[-1], noun)] if colours else []
    return found
