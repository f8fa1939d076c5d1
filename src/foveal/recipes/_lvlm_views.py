"""AGLA's views by nano-clip's maps or another question's, and where those maps point."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from foveal import zoo
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.decode.agla import adaptive_mask, augmented_view, smooth_map
from foveal.decode.agla_clip import ClipMatcher
from foveal.evaluate.tasks.worlds import LLAVA_WORLD, held_out
from foveal.lab import Run
from foveal.zoo.nano import Nano

POINTED = 96
Maps = tuple[Float[Tensor, "b h w"], Float[Tensor, " b"]]


def matcher(run: Run) -> tuple[ClipMatcher, Any]:
    """nano-clip with its processor, for `Run.shared`."""
    clip = zoo.load("nano-clip")
    clip.model.set_attn_implementation("eager")
    return ClipMatcher(clip.model), clip.processor


def host_views(
    run: Run, nano: Nano, inputs: Any, shift: int = 0, ratio: float | None = None
) -> Float[Tensor, "b 3 h w"]:
    """The view of each prompt's picture, as the host takes it; ``shift`` takes the map of another prompt."""
    pictures = seen(nano, inputs["pixel_values"])
    questions = nano.processor.batch_decode(inputs["input_ids"], skip_special_tokens=True)
    images = [(255 * picture).round().byte().permute(1, 2, 0).numpy() for picture in pictures]
    cams, cosines = maps(run, images, [question.strip() for question in questions])
    return normalised(nano, views(pictures, (cams.roll(shift, 0), cosines.roll(shift)), ratio))


def maps(run: Run, images: Sequence[UInt8[np.ndarray, "h w 3"]], texts: Sequence[str]) -> Maps:
    match, processor = run.shared(matcher)
    inputs = processor(text=list(texts), images=list(images), padding=True, truncation=True, return_tensors="pt")
    return match(inputs["pixel_values"], inputs["input_ids"], inputs["attention_mask"])


def seen(nano: Nano, pixel_values: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "3 h w"]]:
    """Pixels in [0, 1] of what the host's processor has normalised."""
    images: Any = nano.processor.image_processor
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (images.image_mean, images.image_std))
    return list((pixel_values * std + mean).clamp(0, 1))


def normalised(nano: Nano, views: Sequence[Float[Tensor, "3 h w"]]) -> Float[Tensor, "b 3 h w"]:
    images: Any = nano.processor.image_processor
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (images.image_mean, images.image_std))
    return (torch.stack(list(views)) - mean) / std


def views(
    pictures: Sequence[Float[Tensor, "3 h w"]], found: Maps, ratio: float | None = None
) -> list[Float[Tensor, "3 h w"]]:
    """By the paper's share, or by a fixed one."""
    if ratio is None:
        return [augmented_view(image, cam, float(cos))[0] for image, cam, cos in zip(pictures, *found, strict=True)]
    masks = [
        adaptive_mask(smooth_map(cam, (image.shape[1], image.shape[2])), ratio)
        for image, cam in zip(pictures, found[0])
    ]
    return [image * mask for image, mask in zip(pictures, masks, strict=True)]


def pointing(run: Run) -> dict[str, float]:
    """How often the top of the map of "a <noun>" lies in that thing, and how often a random pixel does."""
    scenes = [lay_out(LLAVA_WORLD, held_out(run.seed, 70), i) for i in range(POINTED)]
    drawn = [draw(scene, LLAVA_WORLD.size) for scene in scenes]
    rng = run.rng("pointing")
    things = [int(rng.integers(len(scene.things))) for scene in scenes]
    texts = [f"a {scene.things[i].noun}" for scene, i in zip(scenes, things)]
    cams, _ = maps(run, [one.image for one in drawn], texts)
    hits, chance = [], []
    for cam, one, scene, i in zip(cams, drawn, scenes, things):
        alike = [j + 1 for j, thing in enumerate(scene.things) if thing.noun == scene.things[i].noun]
        there = np.isin(one.instance, alike)
        y, x = np.unravel_index(int(smooth_map(cam, there.shape).argmax()), there.shape)
        hits.append(there[y, x])
        chance.append(there.mean())
    return {"pointing": 100 * float(np.mean(hits)), "pointing by chance": 100 * float(np.mean(chance))}
