"""Batches for nano-llava: many exchanges about one picture share the picture's tokens.

A row is a prefix, ``<s>USER: <image>…``, and behind it several branches, each one exchange or a short dialogue. A
branch sees the prefix and itself, and its positions go on from the prefix's end: it is computed exactly as it would be
if it were alone, while the 144 tokens of a picture are paid once for a dozen answers instead of once for each. (Were
the exchanges one long dialogue, a caption would give the later answers away.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from transformers import LlavaProcessor

from foveal.train.order import StepOrder
from foveal.zoo.nano.chat import ASSISTANT, USER
from foveal.zoo.nano.conversations import Exchange, clip_exchanges, exchanges
from foveal.zoo.nano.films import LENGTHS, DrawnFilms
from foveal.zoo.nano.scenes import DrawnScenes

FILM_EVERY = 10
"""Every tenth batch is about clips, if there are any."""
DIALOGUES = 0.2
"""Share of the branches that are dialogues of two or three exchanges rather than one."""
ROUNDS = 3
"""Rounds of exchanges that a row may take to fill its budget."""
SHORTEST = 10
"""No branch has fewer tokens."""


@dataclass(frozen=True)
class Branch:
    """Tokens after the prefix; ``weights[t]`` is that of predicting ``ids[t]``, 0 in prompts."""

    ids: list[int]
    weights: list[float]


class Writer:
    """Exchanges as tokens and pictures as pixels, both as the processor makes them, only faster."""

    def __init__(self, processor: LlavaProcessor, image_tokens: int) -> None:
        self.tokenizer, self.image_tokens = processor.tokenizer, image_tokens
        self.image = processor.image_token_id
        images = processor.image_processor
        self.mean, self.std = (torch.tensor(value)[:, None, None] for value in (images.image_mean, images.image_std))

    def pixels(self, pictures: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures that have the model's size already."""
        return (torch.tensor(pictures).permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std

    def prefix(self, images: int) -> list[int]:
        """The tokens of ``<s>USER: <image>\\n`` with so many images."""
        ids = self.tokenizer(f"{USER} " + "<image>\n" * images).input_ids
        return list(chain.from_iterable([i] * self.image_tokens if i == self.image else [i] for i in ids))

    def branch(self, dialogue: list[Exchange]) -> Branch:
        """The exchanges one after the other; an answer of n tokens, its end included, weighs √n in all.

        That is between a mean over tokens, where captions drown the short answers, and a mean over answers (the
        square averaging of InternVL 2.5, arXiv 2412.05271).
        """
        texts = list(chain.from_iterable(self._turns(item, first=item is dialogue[0]) for item in dialogue))
        pieces = self.tokenizer(texts, add_special_tokens=False).input_ids
        ids: list[int] = []
        weights: list[float] = []
        for place, piece in enumerate(pieces):
            ids += piece
            weights += [len(piece) ** -0.5 if place % 2 else 0.0] * len(piece)
        return Branch(ids, weights)

    def _turns(self, exchange: Exchange, first: bool) -> tuple[str, str]:
        prompt = f"{exchange.prompt} {ASSISTANT}"
        return (prompt if first else f"{USER} {prompt}"), f" {exchange.answer}{self.tokenizer.eos_token}"


@dataclass(frozen=True)
class Lessons:
    """Batch b is a function of (the settings, b): what `foveal.train.fit` takes as samples, one a step.

    Attributes:
        scenes, films: what the exchanges are about; no films, no clips.
        writer: makes the tokens.
        steps: number of batches.
        rows: pictures in a batch; of clips it holds as many as give about as many tokens.
        budget: tokens of the branches of a row at most.
        tasks: for `exchanges`.
        seed: of everything.
    """

    scenes: DrawnScenes
    films: DrawnFilms | None
    writer: Writer
    steps: int
    rows: int
    budget: int
    tasks: Mapping[str, int]
    seed: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index, 4))  # (seed, i) alone is how scene i was laid out
        turn, of_films = divmod(index, FILM_EVERY)
        if self.films is not None and of_films == FILM_EVERY - 1:
            return self._film_batch(turn, rng)
        numbers = StepOrder(len(self.scenes), self.rows, self.seed).indices(index)
        rows = [self._row(1, self._scene_rounds(number, rng), rng) for number in numbers.tolist()]
        return {**stacked(rows), "pixel_values": self.writer.pixels(self.scenes.images[numbers])}

    def _film_batch(self, turn: int, rng: np.random.Generator) -> dict[str, Tensor]:
        assert self.films is not None
        kind = turn % len(LENGTHS)
        frames = LENGTHS[kind]
        alike = len(range(kind, len(self.films), len(LENGTHS)))
        images, text = frames * self.writer.image_tokens, self.budget // 2  # there is less to say of a clip
        rows = max(1, self.rows * (self.writer.image_tokens + self.budget) // (images + text))
        numbers = kind + len(LENGTHS) * StepOrder(alike, rows, self.seed).indices(turn // len(LENGTHS))
        packed = [self._row(frames, self._film_rounds(i, rng), rng, text) for i in numbers.tolist()]
        pictures = self.films.images[numbers, :frames]
        return {**stacked(packed), "pixel_values": self.writer.pixels(pictures.reshape(-1, *pictures.shape[-3:]))}

    def _scene_rounds(self, number: int, rng: np.random.Generator) -> Iterator[list[Exchange]]:
        scene, boxes = self.scenes.scene(number), self.scenes.boxes[number]
        for _ in range(ROUNDS):
            yield exchanges(scene, boxes, self.scenes.config, rng, self.tasks)

    def _film_rounds(self, number: int, rng: np.random.Generator) -> Iterator[list[Exchange]]:
        assert self.films is not None
        clip = self.films.clip(number)
        for _ in range(ROUNDS):
            yield clip_exchanges(clip, rng)

    def _row(
        self, images: int, rounds: Iterator[list[Exchange]], rng: np.random.Generator, budget: int | None = None
    ) -> dict[str, np.ndarray]:
        """Branches that fit the budget, until it is all but used up; the first is always in."""
        left, said = budget or self.budget, set()
        branches: list[Branch] = []
        for dialogue in _dialogues(rounds, rng):
            key = tuple((item.prompt, item.answer) for item in dialogue)
            branch = self.writer.branch(dialogue)
            if key in said or (branches and len(branch.ids) > left):
                continue
            said.add(key)
            branches.append(branch)
            left -= len(branch.ids)
            if left < SHORTEST:
                break
        return packed_row(self.writer.prefix(images), branches)


def _dialogues(rounds: Iterator[list[Exchange]], rng: np.random.Generator) -> Iterator[list[Exchange]]:
    for found in rounds:
        while found:
            length = 2 + int(rng.integers(2)) if rng.random() < DIALOGUES else 1
            yield found[:length]
            found = found[length:]


def packed_row(prefix: list[int], branches: list[Branch]) -> dict[str, np.ndarray]:
    """One row: tokens, their positions, the branch of each (0: the prefix) and the weight of predicting it."""
    parts = [(prefix, [0.0] * len(prefix)), *((branch.ids, branch.weights) for branch in branches)]
    starts = [0] + [len(prefix)] * len(branches)
    lengths = [len(ids) for ids, _ in parts]
    return {
        "ids": np.array(list(chain.from_iterable(ids for ids, _ in parts)), np.int64),
        "positions": np.concatenate([start + np.arange(n) for start, n in zip(starts, lengths)]),
        "branches": np.repeat(np.arange(len(parts)), lengths),
        "weights": np.array(list(chain.from_iterable(weights for _, weights in parts)), np.float32),
    }


def stacked(rows: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """Rows padded on the right to the longest; padding is the token 0 in the branch −1."""
    longest = max(len(row["ids"]) for row in rows)
    batch = {}
    for name, fill in (("ids", 0), ("positions", 0), ("branches", -1), ("weights", 0)):
        padded = [np.pad(row[name], (0, longest - len(row[name])), constant_values=fill) for row in rows]
        batch[name] = torch.from_numpy(np.stack(padded))
    return batch


def branch_mask(branches: Int[Tensor, "b t"]) -> Bool[Tensor, "b 1 t t"]:
    """Which tokens (last axis) a token sees: itself, and before it the prefix and its own branch."""
    length = branches.shape[1]
    before = torch.ones(length, length, dtype=torch.bool).tril()
    own = branches[:, :, None] == branches[:, None, :]
    shared = (branches == 0)[:, None, :] & (branches >= 0)[:, :, None]
    alone = torch.eye(length, dtype=torch.bool)  # padding sees itself, since no row of a softmax may be empty
    return (((own | shared) & before & (branches >= 0)[:, None, :]) | alone)[:, None]
