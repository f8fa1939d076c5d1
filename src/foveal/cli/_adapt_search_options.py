"""Options that both searches for prompts have, `foveal adapt glov` and `foveal adapt llm_bbo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """A search adds its own, and may word or set some of these anew.

    Args:
        model: nano-clip, a folder made by save_pretrained, or a hub id owner/name; a CLIP, SigLIP or their like.
        train: CSV file with the columns image (path, from the file's folder) and label; a few pictures a class.
        budget: replies of the language model in all.
        classes: text file with a class name a line; by default the labels of --train.
        test: such a CSV file, of other pictures, on which the prompts that were found are measured.
        lm: smollm2, openai:URL[#model] (key: $OPENAI_API_KEY) or scripted:FILE.json.
        out: folder for what is written.
        seed: of the replies.
        batch_size: most pictures or texts at once.
        device: cpu, cuda, cuda:1, mps; auto is a GPU if there is one.
        json: print prompts.json instead of a table.
    """

    model: str
    train: Path
    budget: int = 60
    classes: Path | None = None
    test: Path | None = None
    lm: str = "smollm2"
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    seed: int = 0
    batch_size: int = 32
    device: str = "auto"
    json: bool = False
