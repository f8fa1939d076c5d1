"""TL;DR on a file of codes, scores and captions that were made elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.curate.tldr import Choice

FIELDS: dict[str, tuple[type, ...]] = {"codes": (list,), "itm": (int, float), "caption": (str,)}


def reduce_manifest(manifest: Path, out: Path, choice: Choice, seed: int) -> dict[str, Any]:
    """Write the kept lines with their refined captions; returns the report. ValueError names a bad line."""
    import torch

    from foveal.curate.tldr import choose, refine_caption
    from foveal.data.files import write_atomically

    if out.suffix != ".jsonl":
        raise ValueError(f"out={str(out)!r}: with --manifest give a file that ends in .jsonl")
    lines = manifest.read_text(encoding="utf-8").split("\n")
    rows = [_row(manifest, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ValueError(f"{manifest} holds no line")
    if len({len(row["codes"]) for row in rows}) > 1:
        raise ValueError(f"{manifest}: the lists of codes differ in length; every picture has as many")
    codes, scores = torch.tensor([row["codes"] for row in rows]), torch.tensor([float(row["itm"]) for row in rows])
    chosen = choose(codes, scores, choice, torch.Generator().manual_seed(seed))
    kept = []
    for number in chosen.keep.tolist():
        row = rows[number]
        caption = refine_caption(row["caption"], row.get("generated", ""))
        kept.append(json.dumps({**row, "caption": caption, "original": row["caption"]}, ensure_ascii=False) + "\n")
    write_atomically(out, "".join(kept).encode())
    return {"method": "tldr", **chosen.report, "settings": {**vars(choice), "seed": seed}}


def _row(manifest: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{manifest}, line {number}: not JSON ({error})") from error
    for name, kind in FIELDS.items():
        if not isinstance(row, dict) or not isinstance(row.get(name), kind):
            kinds = " or ".join(part.__name__ for part in kind)
            raise ValueError(f'{manifest}, line {number}: needs "{name}" ({kinds}), see foveal curate tldr --help')
    if not row["codes"] or not all(type(code) is int and 0 <= code < 2**31 for code in row["codes"]):
        raise ValueError(f'{manifest}, line {number}: "codes" must be whole numbers in [0, 2^31), at least one')
    if not isinstance(row.get("generated", ""), str):
        raise ValueError(f'{manifest}, line {number}: "generated" must be a text, or left out')
    return row
