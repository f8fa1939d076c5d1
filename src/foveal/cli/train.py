"""Train a CLIP of yours on your own data with any of our objectives, or one of foveal's reference models anew."""

from __future__ import annotations

from typing import Annotated, Any

import tyro

from foveal.cli._train_clip_like import clip_like
from foveal.cli._train_nano import nano

main = (
    Annotated[Any, tyro.conf.subcommand("clip-like", constructor=clip_like)]
    | Annotated[Any, tyro.conf.subcommand("nano-clip", constructor=nano("nano-clip"))]
    | Annotated[Any, tyro.conf.subcommand("nano-llava", constructor=nano("nano-llava"))]
    | Annotated[Any, tyro.conf.subcommand("nano-sd", constructor=nano("nano-sd"))]
    | Annotated[Any, tyro.conf.subcommand("smol-vl", constructor=nano("smol-vl"))]
)
