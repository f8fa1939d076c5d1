"""ALIGN: do four times as many noisy pairs teach more than few clean ones, in the same number of steps?

*Scenes* of two things at 32 px with their captions. ``clean`` has 1,000 pairs, ``noisy`` as many of which 40 % are
spoilt (half got a caption of another picture, half a phrase that stands everywhere on the web), ``noisy_4n`` 4,000 such
pairs, ``filtered_4n`` those that `frequency_filter` leaves of them, ``unsmoothed_4n`` trains without label smoothing,
``shuffled_4n`` on captions of other pictures. Same towers, same steps, same batch. ``r@1``: how often picture and
caption of 500 new pairs find each other.

*Composed queries*: a picture of a shape and the words "something red" are to find the same shape in red, on the same
ground, among pictures of every (shape, colour, ground). ``composed`` and ``composed_equal`` add the text with weight 2
and 1; ``picture_alone`` and ``words_alone`` ask with one of both. The learning rate is CLIP's.
"""

from functools import partial
from itertools import compress

import torch
from torch import Tensor

from foveal.data import world
from foveal.data.transforms import to_tensor
from foveal.data.word_ids import WordIds
from foveal.lab import Claim, Recipe, Run
from foveal.pretrain.align import frequency_filter
from foveal.recipes._align_composed import composed
from foveal.recipes._align_towers import pixels, trained
from foveal.recipes._recall import distinct_pairs, recall_at_1

SHOWN = ("dog", "frog", "parrot", "fish", "apple", "banana", "carrot", "pizza", "car", "bus", "tree", "clock")
SCENES = world.WorldConfig(size=32, things=(2, 2), nouns=SHOWN, min_visible=0.8, radius=(0.2, 0.28), tint=0.0)
N = 1000


def pool(run: Run, n: int, noise: float) -> tuple[Tensor, list[str]]:
    found = world.pairs(run.seed, run.size(n), SCENES)
    spoilt = world.boilerplate(found.captions, noise / 2, run.seed).captions
    return to_tensor(found.images), world.swap_captions(spoilt, noise / (2 - noise), run.seed + 1).captions


def unseen(run: Run) -> tuple[Tensor, list[str]]:
    drawn, captions = distinct_pairs(10_000 + run.seed, run.size(500), SCENES)
    return pixels(drawn), captions


def scenes(
    run: Run, n: int, noise: float = 0.4, filtered: bool = False, smoothing: float = 0.1, shuffled: bool = False
) -> dict[str, float]:
    images, captions = run.shared(pool, n, noise)
    if shuffled:
        captions = [captions[i] for i in torch.randperm(len(captions), generator=run.generator("shuffle"))]
    words = WordIds.of([*captions, *world.BOILERPLATE])
    if filtered:
        sizes = [SCENES.shape] * len(captions)
        keep = frequency_filter(captions, range(len(captions)), sizes, min_side=16, max_words=30).tolist()
        images, captions = images[keep], list(compress(captions, keep))
    model = trained(run, images, captions, smoothing, words)
    run.cost(model)
    images, true = run.shared(unseen)
    with torch.no_grad():
        found = recall_at_1(model.encode_image(images), model.texts(true))
    return {"r@1": found, "pairs": float(len(captions))}


RECIPE = Recipe(
    paper="align",
    arms={
        "clean": partial(scenes, n=N, noise=0.0),
        "noisy": partial(scenes, n=N),
        "noisy_4n": partial(scenes, n=4 * N),
        "filtered_4n": partial(scenes, n=4 * N, filtered=True),
        "unsmoothed_4n": partial(scenes, n=4 * N, smoothing=0.0),
        "shuffled_4n": partial(scenes, n=4 * N, shuffled=True),
        "composed": partial(composed, image_weight=1.0, text_weight=2.0),
        "composed_equal": partial(composed, image_weight=1.0, text_weight=1.0),
        "picture_alone": partial(composed, image_weight=1.0, text_weight=0.0),
        "words_alone": partial(composed, image_weight=0.0, text_weight=1.0),
    },
    claims=[
        Claim("noisy_4n", beats="clean", on="r@1", published="4 times CC-3M, but noisy, does better than clean CC-3M"),
        Claim("clean", beats="noisy", on="r@1", published="as much noisy data does worse"),
        Claim("filtered_4n", beats="noisy_4n", on="r@1"),
        Claim("noisy_4n", beats="unsmoothed_4n", on="r@1"),
        Claim("composed", beats="picture_alone", on="composed r@1"),
        Claim("composed", beats="words_alone", on="composed r@1"),
    ],
    controls=("shuffled_4n", "picture_alone", "words_alone"),
    real="foveal train clip-like --objective align --data shards.tar --model openai/clip-vit-base-patch16 -o tuned",
    example="""
import torch
from torch import Tensor
from foveal.pretrain.align import ALIGNObjective, compose_query, retrieve

maps, hidden = torch.randn(4, 1280, 7, 7), torch.randn(4, 12, 384)  # such as EfficientNet-Lite0 and MiniLM give
objective = ALIGNObjective(1280, 384)  # ALIGNModel.from_transformers(AlignModel) has towers, too
objective(maps, hidden).loss.backward()
objective.clamp_()  # after every optimiser step
query = compose_query(objective.embed_image(maps), objective.embed_text(hidden))  # these pictures, with that added
print(retrieve(query, objective.embed_image(maps), k=2)[1])
""",
)
