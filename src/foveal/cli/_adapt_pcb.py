"""`foveal adapt pcb`: learn your classes from as few labels as possible, chosen by the model itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


def pcb(
    pool: Path,
    classes: Path,
    oracle: str,
    model: str = "nano-clip",
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("pcb"),
    method: Literal["random", "entropy", "coreset", "badge"] = "badge",
    rounds: int = 8,
    n_query: int | None = None,
    gamma: float = 0.1,
    plain: bool = False,
    missing: Literal["official", "advance"] = "official",
    epochs: int = 200,
    n_ctx: int = 16,
    lr: float = 0.002,
    batch_size: int = 32,
    device: str = "auto",
    seed: int = 0,
    json: bool = False,
) -> None:
    """PCB: active learning. The model chooses pictures to label, evenly over its guesses, and learns prompts.

    Writes OUT/predictions.json (every picture of the pool with its class), OUT/context.safetensors (the learnt context)
    and, when you are asked, OUT/labels.json. After Ctrl-C the same command asks only for what has no answer yet.

    Args:
        pool: folder of pictures without labels.
        classes: text file with a class name a line.
        oracle: ask, to be asked in the terminal beside a sheet of the pictures, or a .csv with the columns image (path
            within the pool) and label.
        model: nano-clip, a folder made by save_pretrained, or a hub id; a CLIP, SigLIP or their like.
        out: folder for what is written.
        method: which pictures are candidates.
        rounds: of labelling; a new learner starts from all labels after each.
        n_query: labels in a round; by default as many as there are classes.
        gamma: share of the pool that become candidates in a round.
        plain: do not balance, take the candidates as the method orders them.
        missing: when no candidate looks like the rarest class: official or advance (to the next class).
        epochs: of each learner.
        n_ctx: context vectors of each class.
        lr: learning rate of the context.
        batch_size: most pictures or texts at once.
        device: cpu, cuda, cuda:1, mps; auto is a GPU if there is one.
        seed: of everything random.
        json: print the report as one JSON document.
    """
    learner = {"epochs": epochs, "lr": lr, "n_ctx": n_ctx, "seed": seed}
    asking: dict[str, Any] = {"method": method, "rounds": rounds, "n_query": n_query, "gamma": gamma}
    asking |= {"balance": not plain, "missing": missing}
    _adapt((pool, classes, out), oracle, (model, device, batch_size), learner, asking, json)


def _adapt(
    places: tuple[Path, Path, Path],
    oracle: str,
    opening: tuple[str, str, int],
    learner: dict[str, Any],
    asking: dict[str, Any],
    json: bool,
) -> None:
    from foveal.cli._adapt_dclip_words import class_names
    from foveal.cli._adapt_pcb_labels import Asked, labels_of_csv
    from foveal.cli._pictures import progress

    (pool, classes, out), (model, device, batch_size) = places, opening
    names = class_names(classes, None)
    if oracle != "ask" and not oracle.endswith(".csv"):
        raise ValueError(f"oracle={oracle!r}: must be ask, or a .csv file with the columns image and label")
    with progress() as watch:
        encoder, features, keys, paths, skipped = _features(model, pool, device, batch_size, watch)
    labels: Any = Asked(out, names, keys, paths) if oracle == "ask" else labels_of_csv(Path(oracle), names, keys)
    result = _learn(encoder, features, names, labels, oracle == "ask", learner, asking)
    report = {"model": model, "pictures": len(keys), "skipped": skipped, **_write(out, names, keys, features, result)}
    _show(report | {"settings": {**asking, **learner}}, names, out, json)


def _learn(
    encoder: Any,
    features: Any,
    names: list[str],
    labels: Callable[[Any], list[int]],
    asked: bool,
    learner: dict[str, Any],
    asking: dict[str, Any],
) -> Any:
    """All rounds, behind a bar that goes away while somebody is ``asked``."""
    import torch

    from foveal.adapt.pcb import CoOpLearner, active_prompt_learning
    from foveal.cli._pictures import progress

    done, watch = count(), None
    with ExitStack() as bar:

        def oracle(indices: Any) -> list[int]:
            nonlocal watch
            if asked:
                bar.close()
            found = labels(indices)
            if asked or watch is None:
                watch = bar.enter_context(progress())
            watch("learning, rounds", next(done), asking["rounds"])
            return found

        return active_prompt_learning(
            lambda: CoOpLearner(encoder, names, **learner),
            features,
            oracle,
            num_classes=len(names),
            generator=torch.Generator().manual_seed(learner["seed"]),
            **asking,
        )


def _features(model: str, pool: Path, device: str, batch_size: int, watch: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Encoder, features of all readable pictures, their names and files, and why others were left out."""
    import torch

    from foveal.data.faults import SampleError
    from foveal.data.folder import ImageFolder
    from foveal.data.images import read_image
    from foveal.evaluate.models import open_model

    folder = ImageFolder(pool)
    watch("loading the model", 0, 1)
    opened: Any = open_model(model, device=device, batch_size=batch_size)
    if opened.kind != "dual encoder":
        raise ValueError(f"model={model!r} is a {opened.kind} model: give a dual encoder such as nano-clip")
    rows, kept = [], []
    for start in range(0, len(folder.paths), batch_size):
        watch("looking at the pool", start, len(folder.paths))
        pictures = []
        for index in range(start, min(start + batch_size, len(folder.paths))):
            try:
                pictures.append(read_image(folder.paths[index]))
            except SampleError as error:
                folder.faults.record(folder.keys[index], error)
            else:
                folder.faults.sound()
                kept.append(index)
        if pictures:
            rows.append(opened.model.image_features(pictures))
    folder.faults.finish()
    keys, paths = [folder.keys[i] for i in kept], [folder.paths[i] for i in kept]
    return opened.model, torch.cat(rows), keys, paths, dict(folder.faults.counts)


def _write(out: Path, names: list[str], keys: list[str], features: Any, result: Any) -> dict[str, Any]:
    import json as json_module

    import torch
    from safetensors.torch import save

    from foveal.data.files import write_atomically

    probs, bought = result.models[-1].predict_proba(features), torch.cat(result.labels)
    asked = {keys[i]: names[label] for i, label in zip(torch.cat(result.selected).tolist(), bought.tolist())}
    best = probs.max(1)
    predictions = [
        {"image": key, "class": asked.get(key, names[k]), "probability": round(p, 4), "labelled": key in asked}
        for key, k, p in zip(keys, best.indices.tolist(), best.values.tolist())
    ]
    write_atomically(out / "context.safetensors", save({"ctx": result.models[-1].prompt_.ctx.detach().cpu()}))
    write_atomically(
        out / "predictions.json", (json_module.dumps(predictions, indent=1, ensure_ascii=False) + "\n").encode()
    )
    rounds, counts = [], torch.zeros(len(names), dtype=torch.int64)
    for number, labels in enumerate(result.labels, 1):
        counts = counts + torch.bincount(labels, minlength=len(names))
        rounds.append(
            {"round": number, "labels": int(counts.sum()), "fewest": int(counts.min()), "most": int(counts.max())}
        )
    return {"rounds": rounds, "labels": dict(zip(names, counts.tolist()))}


def _show(report: dict[str, Any], names: list[str], out: Path, json: bool) -> None:
    if json:
        from foveal.cli import print_json

        print_json(report)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("round", "labels", "fewest of a class", "most of a class"):
        table.add_column(column, justify="right")
    for row in report["rounds"]:
        table.add_row(*map(str, row.values()))
    console = Console()
    console.print(table)
    console.print(f"{report['pictures']} pictures, {len(names)} classes; left out: {sum(report['skipped'].values())}")
    for name in ("predictions.json", "context.safetensors"):
        console.print(f"[dim]wrote[/] {out / name}", highlight=False, soft_wrap=True)
