"""Pictures made from prompts: a dual encoder judges whether the objects and colours that were asked for are there.

The judge errs, so it also judges pictures that the world draws of the same scenes: a generator can hardly do better.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from foveal.data.world.captions import prompts
from foveal.data.world.layout import scene as lay_out
from foveal.data.world.phrases import counted, ground, listed
from foveal.data.world.vocabulary import BASE_NOUNS, SPRITE
from foveal.evaluate.base import Better, Item, Json, Metric, Scored, Setting, Task, ratio, share
from foveal.evaluate.models import open_model
from foveal.evaluate.tasks.embedding import cosines, ranks
from foveal.evaluate.tasks.worlds import SD_WORLD, held_out, picture
from foveal.nn.zero_shot import ensemble_text_features

JUDGE = "nano-clip"


@cache
def judge() -> Any:
    """The dual encoder that looks at the pictures."""
    return open_model(JUDGE).model


def prompt_items(setting: Setting) -> list[Item]:
    """n held-out scenes of different things as prompts, such as "a red star on grass"."""
    seed = held_out(setting.seed, 50)
    items: list[Item] = []
    index = 0
    while len(items) < setting.n:
        scene = lay_out(SD_WORLD, seed, index)
        index += 1
        nouns = [thing.noun for thing in scene.things]
        if not nouns or len(set(nouns)) < len(nouns):
            continue
        said = listed([counted(scene, thing, ("colour",)) for thing in scene.things])
        things = [{"noun": thing.noun, "colour": thing.colour} for thing in scene.things]
        truth = {"things": things, "seed": setting.seed}
        items.append(Item(scene.key, (f"{said} {ground(scene)}",), picture(scene, SD_WORLD), truth))
    return items


def generate(model: Any, items: Sequence[Item]) -> list[Json]:
    """The pictures as PNG files in base 64."""
    seeds = {item.truth["seed"] for item in items}
    made = model.pictures([item.texts[0] for item in items], [item.key for item in items], seeds.pop())
    return [{"png": png_text(image)} for image in made]


def judged(items: Sequence[Item], outputs: Sequence[Json]) -> Scored:
    """Shares of asked-for objects and colours that the judge recognises, and the same in drawn pictures.

    An object counts when it is among the best m classes of all base nouns, where m things were asked for; a colour when
    "a red star" fits better than the star in any other colour.
    """
    made = [image_of(output["png"]) for output in outputs]
    drawn = [item.pictures()[0] for item in items if item.pictures]
    metrics: list[Metric] = []
    rows: list[Json] = [{"key": item.key, "prompt": item.texts[0], **output} for item, output in zip(items, outputs)]
    for name, images in (("", made), ("in drawn pictures: ", drawn)):
        found = _recognised(items, images)
        better: Better = "neither" if name else "higher"
        for what in ("object", "sprite", "colour"):
            hits = [(hit, chance) for _, kind, hit, chance in found if kind == what]
            if hits:
                chance = sum(chance for _, chance in hits) / len(hits)
                metrics.append(share(f"{name}{what} recognised", [hit for hit, _ in hits], chance, better))
        if not name:
            for i, what, hit, _ in found:
                rows[i].setdefault(what, []).append(hit)
    return Scored(metrics, rows)


def _recognised(
    items: Sequence[Item], images: Sequence[UInt8[np.ndarray, "_ _ 3"]]
) -> list[tuple[int, str, bool, float]]:
    """Number of the picture, "object", "sprite" (an object that is no plain shape) or "colour", seen or not, chance."""
    encoder = judge()
    features = encoder.image_features(images)
    texts = [prompts(noun) for noun in BASE_NOUNS]
    flat = encoder.text_features([text for group in texts for text in group])
    classes = cosines(features, ensemble_text_features(flat.unflatten(0, (len(texts), -1))))
    found = []
    for i, item in enumerate(items):
        things = item.truth["things"]
        for thing in things:
            rank = ranks(classes[i : i + 1], [BASE_NOUNS.index(thing["noun"])])[0]
            seen, chance = bool(rank <= len(things)), len(things) / len(BASE_NOUNS)
            found.append((i, "object", seen, chance))
            if thing["noun"] in SPRITE:
                found.append((i, "sprite", seen, chance))
            if thing["colour"] is None:
                continue
            named = encoder.text_features([f"a {colour} {thing['noun']}" for colour in SD_WORLD.colours])
            right = SD_WORLD.colours.index(thing["colour"])
            first = bool(ranks(cosines(features[i : i + 1], named), [right])[0] == 1)
            found.append((i, "colour", first, 1 / len(SD_WORLD.colours)))
    return found


def scene_items(setting: Setting) -> list[Item]:
    """n held-out scenes, to be encoded and decoded."""
    seed = held_out(setting.seed, 51)
    scenes = [lay_out(SD_WORLD, seed, index) for index in range(setting.n)]
    return [Item(scene.key, pictures=picture(scene, SD_WORLD)) for scene in scenes]


def reconstruct(model: Any, items: Sequence[Item]) -> list[Json]:
    """PSNR of each picture after the autoencoder, and of its mean colour alone."""
    images = [item.pictures()[0] for item in items if item.pictures]
    back = model.reconstructions(images).permute(0, 2, 3, 1).double().numpy()
    rows = []
    for image, again in zip(images, back):
        truth = image / 255.0
        rows.append({"psnr": psnr(truth, again), "flat": psnr(truth, truth.mean((0, 1)) + 0 * truth)})
    return rows


def psnr(truth: np.ndarray, other: np.ndarray) -> float:
    """10 · log10(1 / mean squared difference) of values from 0 to 1, in dB; at most 100."""
    return float(10 * np.log10(1 / max(float(((truth - other) ** 2).mean()), 1e-10)))


def psnr_scores(items: Sequence[Item], outputs: Sequence[Json]) -> Scored:
    """Mean over pictures; chance is the mean colour of each."""
    chance = sum(output["flat"] for output in outputs) / len(outputs)
    metric = ratio("PSNR", [output["psnr"] for output in outputs], chance=chance, unit="dB")
    return Scored([metric], [{"key": item.key, **output} for item, output in zip(items, outputs)])


def png_text(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """The picture as a PNG file in base 64."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def image_of(text: str) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of `png_text`."""
    with Image.open(io.BytesIO(base64.b64decode(text)), formats=("PNG",)) as file:
        return np.array(file.convert("RGB"))


TASKS = (
    Task(
        name="world-generation",
        kind="text-to-image",
        summary="n prompts, the captions of held-out scenes: objects and colours that the judge recognises",
        size=1000,
        scorer=(
            f"{JUDGE}, zero-shot: an object is among the best m of {len(BASE_NOUNS)} where m are asked for. It hardly "
            "tells plain shapes from each other: compare with what it makes of drawn pictures"
        ),
        make=prompt_items,
        ask=generate,
        score=judged,
    ),
    Task(
        name="reconstruction",
        kind="text-to-image",
        summary="n held-out scenes through the autoencoder and back",
        size=200,
        scorer="PSNR over all pixels and channels, averaged over pictures",
        make=scene_items,
        ask=reconstruct,
        score=psnr_scores,
    ),
)
