"""The captions of DreamLIP: long descriptions cut into sentences, of which every training step sees others.

A model that sees describes each picture twice, in detail and in short (`recaption`). The long description is split into
sub-captions; `sample_subcaptions` draws K texts from all that is known of the picture. See `foveal.pretrain.dreamlip`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from foveal.data.record import Sample
from foveal.pretrain.base_captioner import Captioner

DETAILED = "Describe the picture in detail, with all that can be seen in it."
SHORT = "Describe the picture in one short sentence."
"""What `recaption` asks; in the paper InstructBLIP, LLaVA-1.5 and ShareGPT4V answer, and their mixture is best."""

_END = re.compile(r"\.|\n|</s>")


@dataclass(frozen=True)
class Captions:
    """What is known of one picture: its caption from the web, short descriptions, and a long one."""

    raw: str
    short: tuple[str, ...]
    long: str

    def sample(self, k: int, generator: torch.Generator, *, always_raw: bool = True) -> list[str]:
        """See `sample_subcaptions`."""
        return sample_subcaptions(self.raw, self.short, self.long, k, generator, always_raw=always_raw)


def split_caption(text: str) -> list[str]:
    """The sub-captions of a long description: what stands between full stops, line ends and ``</s>``."""
    return [piece for part in _END.split(text) if (piece := part.strip())]


def sample_subcaptions(
    raw: str, short: Sequence[str], long: str, k: int, generator: torch.Generator, *, always_raw: bool = True
) -> list[str]:
    """K texts for one picture and one step; draw anew at every step.

    Args:
        raw: caption from the web.
        short: short descriptions.
        long: long description, which is split here.
        always_raw: the first text is ``raw`` and the others come from the descriptions, as in the released loader;
            False draws all of them from everything, as in the paper.

    Nothing is drawn twice unless there are fewer texts than wanted. Then the grouping loss, where the sub-captions of
    a picture compete, has targets that cannot be met: see `share_repeated`.

    Raises ValueError for k below 1, a blank ``raw`` that must be taken, and when there is nothing to draw from.
    """
    if k < 1:
        raise ValueError(f"k={k}: must be at least 1")
    if isinstance(short, str):
        raise ValueError(f"short={short!r}: must be a list of captions")
    if always_raw and not raw.strip():
        raise ValueError(f"raw={raw!r} is blank: give a caption, or always_raw=False")
    first = [raw] if always_raw else []
    pool = [text for text in [*([] if always_raw else [raw]), *short] if text.strip()] + split_caption(long)
    wanted = k - len(first)
    if wanted and not pool:
        raise ValueError(f"short={short!r} and long={long!r} hold no text, and k={k} asks for some: describe the image")
    if wanted <= len(pool):
        places = torch.randperm(len(pool), generator=generator)[:wanted]
    else:
        places = torch.randint(len(pool), (wanted,), generator=generator)
    return first + [pool[place] for place in places.tolist()]


def share_repeated(texts: Iterable[list[str]]) -> float:
    """Share of sampled texts that repeat another text of the same picture: keep it near 0, or lower K."""
    drawn = [Counter(of_one) for of_one in texts]
    total = sum(sum(counts.values()) for counts in drawn)
    return sum(sum(counts.values()) - len(counts) for counts in drawn) / total if total else 0.0


def recaption(samples: Iterable[Sample], captioner: Captioner, more: Iterable[Captioner] = ()) -> Iterator[Captions]:
    """Short and long descriptions for every sample, by one model or by several, whose descriptions are joined.

    The first caption of a sample is ``raw``. An answer that is blank adds nothing; a picture of which no model says
    anything keeps its ``raw`` alone.

    Raises ValueError for a sample without image or caption.
    """
    captioners = [captioner, *more]
    for sample in samples:
        answers = [(model.answer(sample.image, SHORT), model.answer(sample.image, DETAILED)) for model in captioners]
        short = tuple(dict.fromkeys(text.strip() for text, _ in answers if text.strip()))
        yield Captions(sample.caption, short, "\n".join(text.strip() for _, text in answers if text.strip()))
