"""The model card: what a checkpoint is, how it was made, what it can do and where it fails, all from result files.

Everything in it comes from ``training.json``, which the trainer wrote beside the weights, and from the result of
``foveal eval``. Whatever is not in them is not in the card.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from foveal.evaluate.base import Json, shown

RECORD = "training.json"
_SAMPLES, _COLUMNS = 24, 6
_LOADING = {
    "dual encoder": "nano = zoo.load({!r})\nmodel, processor = nano.model, nano.processor",
    "vision-language": "nano = zoo.load({!r})\nmodel, processor = nano.model, nano.processor",
    "text-to-image": "pipeline = zoo.load({!r})\npicture = pipeline('a red star on grass', guidance_scale=3).images[0]",
}


def read_record(folder: Path) -> Json:
    """What the trainer wrote beside the weights; ValueError when there is nothing, or something else."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({error}); a card needs the record that `foveal train` writes") from error
    needed = {"name", "command", "config", "data", "licence", "attribution", "limits", "seconds", "curves", "files"}
    if missing := sorted(needed - set(record)):
        raise ValueError(f"{path} lacks {', '.join(missing)}; train the model again with `foveal train`")
    return record


def card_files(stem: str, result: Json, record: Json, pictures: Sequence[tuple[str, str]] = ()) -> dict[str, bytes]:
    """The card and its pictures, by file name.

    Args:
        stem: file name of the card without ``.md``.
        result: from ``foveal eval``.
        record: from `read_record`.
        pictures: samples as (prompt, PNG in base 64).
    """
    name, model = str(record["name"]), result["model"]
    files: dict[str, bytes] = {}
    size = "" if result["n"] is None else f" --n {result['n']}"
    parts = [
        f"# {name}",
        f"A `{model['class_name']}` ({model['kind']}) with {model['parameters']:,} parameters, "
        f"{model['weight_bytes'] / 2**20:.1f} MB of safetensors. Written by `foveal eval {name}{size} --card`.",
        f"```python\nfrom foveal import zoo\n{_LOADING[model['kind']].format(name)}\n```",
        f"`foveal.zoo.{_folder(name)}` is its folder, for any `from_pretrained`.",
        _evaluation(result),
    ]
    if pictures:
        files[f"{stem}-samples.png"] = sample_grid(pictures)
        prompts = "; ".join(prompt for prompt, _ in pictures[:_SAMPLES])
        parts.append(f"## Samples\n\n![samples]({stem}-samples.png)\n\nRow by row, not chosen: {prompts}.")
    if record["curves"]:
        files[f"{stem}-curves.png"] = curves_figure(record["curves"])
    parts += _training(stem, record)
    parts += [f"## Limits and biases\n\n{record['limits']}", _hashes(result, record)]
    files[f"{stem}.md"] = ("\n\n".join(parts) + "\n").encode()
    return files


def curves_figure(curves: Mapping[str, Sequence[Sequence[float]]]) -> bytes:
    """One small panel for each curve of (step, value) pairs, as PNG; the same bytes every time."""
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows), dpi=120, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (name, points) in zip(panels, curves.items()):
        panel.plot([point[0] for point in points], [point[1] for point in points], color="#0072B2", linewidth=1)
        panel.set_title(name, loc="left", fontsize=9)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    return _png(figure)


def sample_grid(pictures: Sequence[tuple[str, str]]) -> bytes:
    """The first pictures in rows, enlarged without smoothing, as PNG."""
    images = [Image.open(io.BytesIO(base64.b64decode(text)), formats=("PNG",)) for _, text in pictures[:_SAMPLES]]
    side = 128
    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 4) - 4, rows * (side + 4) - 4), "white")
    for i, image in enumerate(images):
        place = (i % columns * (side + 4), i // columns * (side + 4))
        sheet.paste(image.convert("RGB").resize((side, side), Image.Resampling.NEAREST), place)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _folder(name: str) -> str:
    return "smol_vl.folder()" if name == "smol-vl" else f"nano.folder({name!r})"


def _evaluation(result: Json) -> str:
    lines = ["| task | metric | value | 95 % interval | chance | n |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for name, task in result["tasks"].items():
        for metric, row in task["metrics"].items():
            value, low, high, chance = (shown(row[part], row["unit"]) for part in ("value", "low", "high", "chance"))
            inside = f"{low} – {high}" if low else ""
            lines.append(f"| {name} | {metric} | {value} | {inside} | {chance} | {row['n']:,} |")
    meanings = [
        f"- `{name}`: {task['summary']}. Scored by: {task['scorer']}." for name, task in result["tasks"].items()
    ]
    settings = "".join(f", {name} {value}" for name, value in result["model"]["settings"].items())
    said = f"Seed {result['seed']}{settings}; worlds that it was not trained on. Chance is what knowing nothing gives."
    return "\n\n".join(["## Evaluation", said, "\n".join(lines), "\n".join(meanings)])


def _training(stem: str, record: Json) -> list[str]:
    hours, minutes = divmod(round(record["seconds"] / 60), 60)
    machine = f" on {record['machine']}" if record.get("machine") else ""
    parts = [f"## Training\n\n```bash\n{record['command']}\n```", f"Took {hours} h {minutes} min{machine}."]
    if record["curves"]:
        parts.append(f"![training curves]({stem}-curves.png)")
    parts.append(f"```json\n{json.dumps(record['config'], indent=1, ensure_ascii=False)}\n```")
    rights = f"Licence: {record['licence']}\n\nAttribution: {record['attribution']}"
    parts.append(f"## Data and licence\n\n{record['data']}\n\n{rights}")
    return parts


def _hashes(result: Json, record: Json) -> str:
    lines = ["| file | SHA-256 |", "| --- | --- |"]
    lines += [f"| `{name}` | `{digest}` |" for name, digest in record["files"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    made = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
    said = f"Evaluated with {versions}." + (f" Trained with {made}." if made else "")
    return "\n\n".join(["## Hashes and versions", "\n".join(lines), said])


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
