"""DITO: does pretraining the detector's own head on captions help it to find things that never had a box?

Scenes of one to three things at 64 px; captions name 12 base and 6 novel nouns, boxes are known of base nouns alone.
All arms begin with the same image-level contrast on 3,000 captioned scenes, and end with the same detector trained on
the base boxes of 800 scenes, with a frozen copy of the first model as its second opinion. In between:

``image_level``: as many further steps of the first phase; pyramid and head of the detector start from nothing.
``dito``: pyramid and head learn from 8 random regions a level, towers frozen; ``dito_swl``: with shifted windows.
``whole_image``: the same parts and steps, but the one region is always the whole image.
``dito_even``: the detector of ``dito`` with β = α, the frozen model's weight for base classes, also for novel ones.

``novel_ap50``, ``base_ap50``: by pycocotools on 200 new scenes; ``pointing``: how often, before any box was seen, the
place that fits a noun best lies in its box. Learning rates are the same in all arms.

Not reproduced: in so few steps the largest of random regions do not learn to point, and what pyramid and head learn
instead hinders the detector; a backbone that goes on with whole images for as long serves it better.
"""

from dataclasses import replace
from functools import partial

from foveal.lab import Claim, Recipe, Run, figures
from foveal.pretrain.dito_detector import DitoDetector
from foveal.recipes._open_detector import SETTINGS, contrast, detector, new_parts, regions
from foveal.recipes._open_scenes import NOUNS, scenes
from foveal.recipes._open_scores import pointing, precision

FIRST, SECOND, THIRD = 150, 160, 240
"""Steps of the three phases."""


def trained(run: Run, phase: str, shift: int = 0) -> tuple[DitoDetector, float]:
    """The detector, and how well its model points before it sees a box."""
    if phase == "image":
        first = run.shared(contrast, FIRST + SECOND)
        points = pointing(run, first, None)
        return detector(run, first.backbone, run.build(new_parts), first, THIRD), points
    first = run.shared(contrast, FIRST)
    second = regions(run, first, shift, phase == "whole", SECOND)
    points = pointing(run, first, second)
    return detector(run, second.backbone, (second.pyramid, second.head), first, THIRD), points


def arm(run: Run, phase: str, shift: int = 0, even: bool = False) -> dict[str, float]:
    model, points = run.shared(trained, phase, shift)
    run.cost(model)
    frozen = run.shared(contrast, FIRST + SECOND if phase == "image" else FIRST)
    model.config = replace(SETTINGS, beta=SETTINGS.alpha) if even else SETTINGS
    metrics = precision(run, model, frozen) | {"pointing": points}
    if run.arm == "dito":
        data = run.shared(scenes, 10_000, 200)
        said = [", ".join(NOUNS[label - 1] for label in one.labels) for one in data.truth[:8]]
        shown = data.pixels[:8].permute(0, 2, 3, 1) / 4 + 0.5
        run.figure("scenes.png", figures.picture_grid(list(shown), said))
    return metrics


RECIPE = Recipe(
    paper="dito",
    arms={
        "image_level": partial(arm, phase="image"),
        "dito": partial(arm, phase="regions"),
        "dito_swl": partial(arm, phase="regions", shift=2),
        "dito_even": partial(arm, phase="regions", even=True),
        "whole_image": partial(arm, phase="whole"),
    },
    claims=[
        Claim("dito", beats="image_level", on="novel_ap50", by=1.0, published="+6.5 mask AP of rare classes on LVIS"),
        Claim("dito_swl", beats="dito", on="novel_ap50"),
        Claim("dito", beats="dito_even", on="novel_ap50"),
        Claim("dito", beats="image_level", on="pointing"),
    ],
    controls=("whole_image",),
    real="foveal run dito",
    example="""
import torch
from foveal.pretrain.dito import DitoRegionHead, SimpleFeaturePyramid, WindowViT
from foveal.pretrain.dito_detector import DitoDetector, FrozenMap

vit = WindowViT(image_size=64, patch_size=8, width=32, layers=3, heads=4, grid=2, shift=2)  # or a CLIPVisionModel
pyramid, head = SimpleFeaturePyramid(32, 16, levels=(3, 4)), DitoRegionHead(16, 7, 64, embed_dim=32)
detector = DitoDetector(vit, pyramid, head, FrozenMap(vit), channels=16).eval()
text = torch.randn(4, 32)  # vectors of "background" and of three classes, from the text tower of the same model
for found in detector(torch.randn(2, 3, 64, 64), text):
    print(found.boxes.shape, found.labels[:3].tolist())
""",
)
