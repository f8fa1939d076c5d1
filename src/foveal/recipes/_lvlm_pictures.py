"""What a reducer keeps of a picture, to be looked at, and whether an encoder's attention is where the things are."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from foveal.compress.fopru import encoder_attention, token_significance
from foveal.compress.runtime import PrefillReducer
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene as lay_out
from foveal.evaluate.models.vision_language import VisionLanguage
from foveal.evaluate.tasks.worlds import LLAVA_WORLD, held_out
from foveal.lab import Run, figures
from foveal.recipes._lvlm import QUESTIONS, host
from foveal.recipes._lvlm_worlds import asked

SHOWN = 4
DARKEST = 0.12


def kept_patches(run: Run, reducers: Mapping[str, Callable[[], PrefillReducer]]) -> tuple[Figure, str]:
    """Four questions with their pictures, below under each budget: the longer a patch stays, the brighter it is."""
    nano = run.shared(host)
    items = run.shared(asked, "colour", QUESTIONS["colour"], "clear")[:SHOWN]
    model = VisionLanguage(nano.model, nano.processor)
    scenes = [item.pictures()[0] for item in items if item.pictures]
    pictures, captions = list(scenes), [item.texts[0].split("?")[0] + "?" for item in items]
    for budget, make in reducers.items():
        with make().attached(nano.model) as reducer:
            for item, image in zip(items, scenes, strict=True):
                [answer] = model.answer([([image], item.texts[0])], 8)
                prompt = nano.processor(text="<image>", images=image, return_tensors="pt")
                pictures.append(_dimmed(image, _stay(reducer, int(prompt["input_ids"].shape[1]))))
                captions.append(f"{budget}: {answer}")
    line = "Brightness: in how many decoder layers a patch is kept; below, the budget and the answer."
    return figures.picture_grid(pictures, captions, columns=SHOWN), line


def _stay(reducer: PrefillReducer, about: int) -> Float[np.ndarray, "side side"]:
    """Share of the layers that processed each patch of the one picture in the last prompt."""
    times = torch.cat(reducer.kept[0]).bincount()
    patches = int(reducer.report().image_tokens_full)
    # the prompt is "<s> USER: <image>…": the picture's tokens follow the two of its beginning
    first = about - patches + 1
    share = times[first : first + patches].float() / len(reducer.layer_lengths)
    return share.view(round(patches**0.5), -1).numpy()


def _dimmed(image: UInt8[np.ndarray, "h w 3"], share: Float[np.ndarray, "side side"]) -> UInt8[np.ndarray, "h w 3"]:
    light = DARKEST + (1 - DARKEST) * np.kron(share, np.ones([image.shape[0] // len(share)] * 2))
    return (image * light[..., None]).astype(np.uint8)


@torch.no_grad()
def significance_of_things(run: Run, pictures: int = 64) -> float:
    """Correlation over patches, mean over pictures: attention by the class token with the share that things cover."""
    nano = run.shared(host)
    tower, layer = nano.model.model.vision_tower, nano.model.config.vision_feature_layer
    tower = getattr(tower, "vision_model", tower)
    drawn = [draw(lay_out(LLAVA_WORLD, held_out(run.seed, 50), i), LLAVA_WORLD.size) for i in range(pictures)]
    pixels = nano.processor.image_processor([one.image for one in drawn], return_tensors="pt").pixel_values
    block = tower.encoder.layers[layer]
    hidden = tower(pixels, output_hidden_states=True).hidden_states[layer - 1]
    significance = token_significance(encoder_attention(block.self_attn, block.layer_norm1(hidden), [0]))
    side = round(significance.shape[1] ** 0.5)
    found = []
    for one, values in zip(drawn, significance.numpy(), strict=True):
        cells = (one.instance > 0).reshape(side, len(one.instance) // side, side, -1).mean((1, 3)).ravel()
        if cells.std() > 0:
            found.append(np.corrcoef(cells, values)[0, 1])
    return float(np.mean(found))
