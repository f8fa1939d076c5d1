"""Where a learner finds a phrase in a picture, and what it calls the content of a box."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from foveal.nn.boxes import corners, iou
from foveal.nn.cosine import unit_rows
from foveal.pretrain.filip import token_similarity
from foveal.recipes import _listed as data
from foveal.recipes._clip_learners import Learner
from foveal.recipes._clip_learners_dito import Dito
from foveal.recipes._clip_learners_m3i import M3i
from foveal.recipes._clip_learners_regions import Cloc, Grain
from foveal.recipes._clip_learners_texts import Filip
from foveal.recipes._pretrain_matrix_uniter import Uniter


def heat(learner: Learner, pixels: Float[Tensor, "b 3 s s"], phrases: Sequence[str]) -> Float[Tensor, "b m p"]:
    """How well every patch fits each of the M phrases of its picture.

    FILIP: its best word; UNITER: the mean over words; CLOC and DITO: the patch as a box; GRAIN: whether it is the
    middle of the box of the region that fits the phrase best; the others: the cosine of the patch.
    """
    shape = (len(pixels), -1)
    if isinstance(learner, Uniter):
        return learner.heat(pixels, phrases)
    if isinstance(learner, Filip):
        words, real = learner.words(phrases)
        words = unit_rows(learner.model.text_projection(words)).unflatten(0, shape)
        similar = torch.einsum("bpe,bmle->bmpl", unit_rows(learner.patches(pixels)), words)
        return similar.masked_fill(~real.unflatten(0, shape)[:, :, None], -torch.inf).amax(3)
    texts = unit_rows(learner.text_features(phrases)).unflatten(0, shape)
    if isinstance(learner, Grain):
        found = learner.found(pixels)
        best = (texts @ unit_rows(found.regions).mT).argmax(2)
        centre = found.boxes.gather(1, best[..., None].expand(-1, -1, 4))[..., :2]
        x, y = (data.GRID * centre).long().clamp(max=data.GRID - 1).unbind(-1)
        return torch.nn.functional.one_hot(data.GRID * y + x, data.GRID**2).float()
    if isinstance(learner, Cloc | Dito):
        return texts @ unit_rows(learner.regions(pixels, data.CELLS.expand(len(pixels), -1, -1))).mT
    return texts @ unit_rows(learner.patches(pixels)).mT


def region_scores(
    learner: Learner, pixels: Float[Tensor, "b 3 s s"], boxes: Float[Tensor, "b m 4"], texts: Sequence[str]
) -> Float[Tensor, "bm n"]:
    """How well the content of each box fits each text.

    FILIP scores the tokens of the patches in it, UNITER reads no others; CLOC prompts with it, DITO's head looks at it;
    GRAIN takes the region that overlaps it most; M3I pools the patches in it; the others take their mean.
    """
    inside = covered(boxes)
    within = (inside >= 0.5) | (inside == inside.amax(2, keepdim=True))
    if isinstance(learner, Uniter):
        return learner.similarity(pixels.repeat_interleave(boxes.shape[1], 0), texts, within.flatten(0, 1))
    if isinstance(learner, Filip):
        words, real = learner.words(texts)
        patches = learner.patches(pixels).repeat_interleave(boxes.shape[1], 0)
        words = learner.model.text_projection(words)
        sides = token_similarity(patches, words, image_mask=within.flatten(0, 1), text_mask=real)
        return sides[0] + sides[1]
    if isinstance(learner, Cloc | Dito):
        vectors = learner.regions(pixels, boxes)
    elif isinstance(learner, Grain):
        found = learner.found(pixels)
        overlap = iou(boxes[:, :, None], corners(found.boxes)[:, None])
        vectors = found.regions.gather(1, overlap.argmax(2)[..., None].expand(-1, -1, found.regions.shape[2]))
    elif isinstance(learner, M3i):
        tokens = learner.tokens(pixels).repeat_interleave(boxes.shape[1], 0)
        vectors = learner.objective.pool(tokens, within.flatten(0, 1)).unflatten(0, boxes.shape[:2])
    else:
        vectors = inside / inside.sum(2, keepdim=True).clamp(min=1e-6) @ learner.patches(pixels)
    return unit_rows(vectors.flatten(0, 1)) @ unit_rows(learner.text_features(texts)).mT


def covered(boxes: Float[Tensor, "b m 4"]) -> Float[Tensor, "b m p"]:
    """Share of every patch that lies in each box."""
    x, y = (
        (boxes[..., far, None].minimum(data.EDGES[1:]) - boxes[..., near, None].maximum(data.EDGES[:-1])).clamp(min=0)
        for near, far in ((0, 2), (1, 3))
    )
    return (y[..., :, None] * x[..., None, :]).flatten(2) * data.GRID**2
