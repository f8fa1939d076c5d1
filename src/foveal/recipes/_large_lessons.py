"""What the language model of `lrs`'s host learns from: questions about tiles, and about the levels of pictures."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveal.recipes._large import COLOURS, QUESTION, SQUARES, words
from foveal.recipes._large_tiles import PATCHES, Drawn

TURNS, TILES, SIDE = 5, 4, PATCHES // 2
"""Questions about a picture; tiles of a level in a lesson; pooled tokens of a tile, a side."""
TURN = len(words(QUESTION.format(COLOURS[0]))) + 1
"""Tokens of a question with its answer."""
FIRST = 1 + PATCHES**2
"""Place of the first local token: behind the beginning and the thumbnail."""


@dataclass(frozen=True)
class Seen:
    """Pictures, and the features of their tiles as the tower gives them to the projector."""

    drawn: Drawn
    features: Float[Tensor, "n k patches d"]

    def text(self, rows: Int[Tensor, " b"], squares: Int[Tensor, "b t"]) -> Int[Tensor, "b l"]:
        """Questions about these squares with their answers, one after the other."""
        asked = torch.tensor([words(QUESTION.format(colour)) for colour in COLOURS])
        said = torch.tensor([words(colour) for colour in COLOURS])
        outer, inner = (colours[rows[:, None], squares] for colours in (self.drawn.outer, self.drawn.inner))
        return torch.cat([asked[outer], said[inner]], -1).flatten(1)


@dataclass(frozen=True)
class Lessons:
    """``steps`` batches of questions.

    Every other batch (none, unless ``single``) shows single tiles as whole pictures, with one question each. The others
    show ``rows`` times a thumbnail and four tiles of a level, with several. The tiles lie side by side, or anywhere in
    a level of up to 16 × 16 tiles, as tiles that were fetched; and their tokens have the positions of their places in
    the level, as the module is given them, or follow each other, as the language model reads what is left of a level.
    """

    seen: Seen
    steps: int
    rows: int
    seed: int
    single: bool = True

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rng = torch.Generator().manual_seed(self.seed)
        for step in range(self.steps):
            rows = torch.randint(len(self.seen.features), (self.rows * 3,), generator=rng)
            squares = torch.rand(len(rows), SQUARES, generator=rng).argsort(1)[:, :TURNS]
            if self.single and step % 2 == 0:
                yield lesson(self.seen, rows, squares[:, :1])
            else:
                yield lesson(self.seen, rows[: self.rows], squares[: self.rows], *self._layout(rng))

    def _layout(self, rng: torch.Generator) -> tuple[Int[Tensor, "b 4"], int, bool]:
        """Cells of the tiles, the level's tiles a side, and whether the tokens have the positions of their places."""
        grid = int(2 ** torch.randint(1, 5, (), generator=rng))
        cells = torch.rand(self.rows, grid**2, generator=rng).topk(TILES).indices
        spread = bool(torch.rand((), generator=rng) < 0.5)
        return (torch.arange(TILES).expand_as(cells) if grid == 2 else cells), grid, spread


def lesson(
    seen: Seen,
    rows: Int[Tensor, " b"],
    squares: Int[Tensor, "b t"],
    cells: Int[Tensor, "b 4"] | None = None,
    grid: int = 2,
    spread: bool = True,
) -> dict[str, Tensor]:
    """Questions about squares of some pictures, whose tiles lie in these cells of a level of ``grid`` × ``grid``.

    Without ``cells``, about one square of each, with the tile that has most of it in the place of the picture.
    """
    text, length = seen.text(rows, squares), TILES * SIDE**2
    found = {"thumbnail": seen.features[rows, 0], "text": text}
    if cells is None:
        there = (seen.drawn.squares[rows, 1:] == 1 + squares[:, :, None]).sum(-1)
        found["thumbnail"] = seen.features[rows, 1 + there.argmax(1)]
        return found | {"positions": torch.arange(FIRST + text.shape[1]).expand(len(rows), -1)}
    inner = torch.arange(SIDE)
    down, across = (SIDE * part[..., None] + inner for part in (cells // grid, cells % grid))
    places, order = (down[..., :, None] * SIDE * grid + across[..., None, :]).flatten(1).sort(1)
    end = (SIDE * grid) ** 2 if spread else length
    local = places if spread else torch.arange(length).expand_as(places)
    after = torch.arange(end, end + text.shape[1]).expand(len(rows), -1)
    positions = torch.cat([torch.arange(-FIRST, 0).expand(len(rows), -1), local, after], 1) + FIRST
    return found | {"tiles": seen.features[rows, 1:], "order": order, "positions": positions}
