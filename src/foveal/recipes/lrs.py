"""LRS: does a module that was distilled from the language model's attention fetch the tiles that a question asks about?

Pictures of 128, 256 and 512 px hold five squares of 12 to 16 px, each with a circle of half its size on it; "which
colour lies on the square of colour red" asks for the circle's. At the first level, of 64 px, a square is a dot of two
to eight pixels: its own colour is to be seen, that of the circle less and less. The host, a LLaVA of Hugging Face's
classes with tiles of 32 px, is trained for each seed on pictures of its own. ``crop`` is its accuracy on the 32 px
around the square: what there is to win. Where that is below 80 %, the other arms say little.

Every arm sees the thumbnail; ``thumbnail`` sees nothing else, ``base`` all tokens of the first level. The others go
down to the picture's own pixels: of each level the best quarter of the tokens vote for the tiles of the next, four in
all, and of the last a quarter is kept. The scores are chance (``random``), evenly spread (``uniform``), the attention
of two layers of the language model as they are (``copy``) or distilled (``distilled``), or nearness (``oracle``).

``accuracy`` is over all pictures, ``at_128`` over those of 128 px; ``hit``: how often, in percent, the tile with the
square's centre was encoded at full resolution; ``tiles``: how many were encoded, with the thumbnail.
"""

from functools import partial
from statistics import fmean
from typing import Any

from foveal.compress.lrs import build_pyramid, pyramid_plan
from foveal.lab import Claim, Recipe, Run
from foveal.recipes._large import BASE, TILE, normalised, prompt
from foveal.recipes._large_cases import cases, outcome, scores
from foveal.recipes._large_figure import where_it_looks
from foveal.recipes._large_host import host, region_focus
from foveal.recipes._large_rules import ByRule, Rule, chance, even, near

FOCUS: dict[str, Any] = {"base_long_side": BASE, "keep_ratio": 1 / 4, "max_level": 4}
FIGURE = (
    "Left: where the distilled module looks at the first level; the dotted frame is around the square asked about. "
    "Right: the tiles that were encoded of each finer level, thinner lines for finer ones."
)


def plain(run: Run, crop: bool) -> dict[str, float]:
    """The model as it is called without the plug-in: with one tile, the thumbnail or the crop around the square."""
    model, outcomes = run.shared(host).model, []
    tokens = model.config.image_seq_length
    run.cost(model, tokens=tokens)
    for picture in run.shared(cases):
        image = normalised(picture.crop() if crop else picture.image)
        thumbnail = build_pyramid(image, pyramid_plan(image.shape[1], image.shape[2], TILE, BASE)[:1], TILE)[0][0]
        ids = prompt(picture.squares[0], tokens)
        outcomes.append(outcome(picture, model(input_ids=ids, pixel_values=thumbnail).logits))
    found = scores(outcomes)
    return {"crop_accuracy": found["accuracy"]} if crop else found


def arm(run: Run, rule: Rule | None = None, distilled: bool = False, **changes: Any) -> dict[str, float]:
    """With the plug-in, whose tokens are scored by ``rule`` or by the module."""
    model, module, pictures = run.shared(host).model, run.shared(region_focus, distilled), run.shared(cases)
    plugin, rng, outcomes, tokens = ByRule(model, module, **(FOCUS | changes)), run.generator("chance"), [], []
    for picture in pictures:
        plugin.rule = None if rule is None else partial(rule, picture, rng)
        inputs = plugin.prepare(normalised(picture.image), prompt(picture.squares[0]))
        outcomes.append(outcome(picture, model(**inputs).logits, plugin))
        assert plugin.last is not None
        tokens.append(model.config.image_seq_length + len(plugin.last.tokens))
    run.cost(model, tokens=fmean(tokens))
    if distilled:
        run.figure("looks.png", where_it_looks(plugin, pictures[len(pictures) // 2]), FIGURE)
    return scores(outcomes)


RECIPE = Recipe(
    paper="lrs",
    arms={
        "crop": partial(plain, crop=True),
        "thumbnail": partial(plain, crop=False),
        "base": partial(arm, keep_ratio=1.0, max_level=1),
        "random": partial(arm, rule=chance),
        "uniform": partial(arm, rule=even),
        "copy": arm,
        "distilled": partial(arm, distilled=True),
        "oracle": partial(arm, rule=near),
    },
    claims=[
        Claim("distilled", beats="random", on="hit", by=5.0),
        Claim("distilled", beats="random", on="accuracy"),
        Claim("distilled", beats="copy", on="accuracy"),
        Claim("distilled", beats="base", on="accuracy"),
    ],
    controls=("random", "uniform"),
    real="foveal run lrs",
    example="""
import torch
from foveal.compress.lrs import LargeImageLlava, RegionFocusModule
from foveal.recipes._large import prompt
from foveal.recipes._large_model import build

model = build()  # or any LLaVA-1.5 or LLaVA-NeXT: LlavaForConditionalGeneration.from_pretrained(...)
module = RegionFocusModule.from_language_model(model, (2,))  # distil it: foveal.recipes._large_host.region_focus
large = LargeImageLlava(model, module, base_long_side=64, max_level=4, max_tiles=8)
picture = torch.rand(3, 512, 512)  # normalised; or large.open("scene.tif", mean, std), of which only windows are read
print(large.generate(picture, prompt("red"), max_new_tokens=1), large.last.tiles_encoded)
""",
)
