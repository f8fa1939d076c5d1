"""Pictures with a word added: scenes of one plain shape in every colour on every ground, and the queries about them."""

from collections.abc import Sequence

import numpy as np
import torch

from foveal.data import world
from foveal.data.word_ids import WordIds
from foveal.lab import Run, figures
from foveal.pretrain.align import compose_query, retrieve
from foveal.recipes._align_towers import SmallALIGN, pixels, trained

NOUNS, GROUNDS = ("star", "heart", "ring", "cross", "arrow", "drop"), ("black", "white")
COLOURS = ("red", "green", "blue", "yellow")


def coloured(run: Run, first: int, n: int) -> tuple[list[world.Scene], list[tuple[str, str, str]]]:
    """Scenes of one plain shape, every (shape, colour, ground) as often as can be, and these three of each."""
    config = world.WorldConfig(size=32, things=(1, 1), nouns=NOUNS, backgrounds=("plain",), min_visible=1.0)
    laid = world.World(config, first + run.seed, n, extras=())
    kinds = [(noun, colour, ground) for noun in NOUNS for colour in COLOURS for ground in GROUNDS]
    scenes, found = [], []
    for index in range(n):
        noun, colour, ground = kinds[index % len(kinds)]
        scene = laid.scene(index)
        thing = scene.things[0].with_(noun=noun, colour=colour, texture="plain", radius=0.3, x=0.5, y=0.5)
        scenes.append(scene.with_(things=(thing,), background=world.Background("plain", ground)))
        found.append((noun, colour, ground))
    return scenes, found


def said(kinds: Sequence[tuple[str, str, str]], rng: np.random.Generator) -> list[str]:
    """Captions that say all, or only some of it: "a red star on black", "something red", "a star on black"."""
    forms = ("a {1} {0} on {2}", "something {1}", "a {0} on {2}")
    return [forms[int(rng.integers(3))].format(*kind) for kind in kinds]


def composer(run: Run) -> SmallALIGN:
    drawn, kinds = coloured(run, 0, run.size(2400))
    captions = said(kinds, run.rng("captions"))
    return trained(run, pixels(drawn), captions, 0.1, WordIds.of([*captions, "something", *COLOURS]))


def composed(run: Run, image_weight: float, text_weight: float) -> dict[str, float]:
    model = run.shared(composer)
    run.cost(model)
    drawn, kinds = coloured(run, 20_000, 48)
    asked = [(i, colour) for i, kind in enumerate(kinds) for colour in COLOURS if colour != kind[1]]
    places = torch.tensor([i for i, _ in asked])
    with torch.no_grad():
        gallery = model.encode_image(pixels(drawn))
    texts = model.texts([f"something {colour}" for _, colour in asked])
    query = compose_query(gallery[places], texts, image_weight=image_weight, text_weight=text_weight)
    found = retrieve(query, gallery, 5, exclude=places)[1]
    wanted = torch.tensor([kinds.index((kinds[i][0], colour, kinds[i][2])) for i, colour in asked])
    hits = 100 * (found == wanted[:, None]).float()
    if run.arm == "composed":
        shown = [(row, k) for row in (0, 50, 100) for k in range(4)]
        names = [f"+ {asked[row][1]}" if k == 0 else f"{k}." for row, k in shown]
        order = [int(found[row, k - 1]) if k else asked[row][0] for row, k in shown]
        run.figure("composed.png", figures.picture_grid([pixels(drawn)[i].permute(1, 2, 0) for i in order], names))
    return {"composed r@1": hits[:, 0].mean().item(), "composed r@5": hits.sum(1).mean().item()}
