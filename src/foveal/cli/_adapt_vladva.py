"""`foveal adapt vladva`: a chatting vision-language model becomes one that also embeds pictures and texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from foveal.cli._adapt_vladva_pairs import Pair, Watch

MOST_TESTED = 500


def vladva(
    data: Path,
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))],
    model: str = "nano-llava",
    merge: bool = False,
    rank: int = 16,
    alpha: float = 16.0,
    dropout: float = 0.0,
    held_out: float = 0.1,
    steps: int = 1000,
    lr: float = 1e-4,
    batch_size: int = 32,
    device: str = "auto",
    seed: int = 0,
    json: bool = False,
) -> None:
    """VladVA: soft prompts and LoRA turn a LLaVA-family model into an embedding model that can still talk.

    Short captions (fewer than 30 tokens) are learned contrastively, long ones (30 to 500) are to be written. Writes
    OUT/adapter.safetensors, for foveal.adapt.vladva_encoder.VladvaEncoder.load, and OUT/report.json with the recall on
    held-out pairs before and after. After Ctrl-C the same command goes on from its last hundred steps.

    Args:
        data: .jsonl file; each line has "image" (a path as seen from the file) and "caption" or "captions" (a list).
        out: folder for what is written.
        model: nano-llava, a folder or a hub id of a LLaVA, LLaVA-NeXT, LLaVA-OneVision or Qwen2-VL model.
        merge: also write OUT/merged, the model with LoRA in its weights. It loads without foveal and talks as adapted;
            to embed it needs the soft prompts of the adapter too.
        rank: of LoRA.
        alpha: of LoRA, which scales it by alpha / rank.
        dropout: of LoRA's inputs.
        held_out: share of the pairs to test on, at most 500.
        steps: of training.
        lr: peak learning rate; 1e-4 for large models, up to 3e-3 for tiny ones.
        batch_size: pairs a step, which are each other's negatives.
        device: cpu, cuda, cuda:1, mps; auto is a GPU if there is one.
        seed: of LoRA's start, the split and the order of pairs.
        json: print the report as one JSON document.
    """
    from foveal.cli._pictures import end, progress

    if not data.is_file():
        raise ValueError(f"data={str(data)!r}: no such file; give a .jsonl with a picture and its captions a line")
    if steps < 1 or batch_size < 2:
        raise ValueError(f"steps={steps}, batch_size={batch_size}: must be at least 1 and 2")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out}: must be a share between 0 and 1")
    if (out / "report.json").exists():
        raise ValueError(f"out={str(out)!r} holds a finished run: give another folder, nothing is overwritten")
    lora = {"rank": rank, "alpha": alpha, "dropout": dropout}
    training = {"steps": steps, "lr": lr, "batch_size": batch_size, "seed": seed}
    with progress() as watch:
        report, errors = _adapt(data, out, model, merge, lora, held_out, training, device, watch)
    if json:
        from foveal.cli import print_json

        print_json(report)
    else:
        _show(report, out)
    end(errors, report["pairs"])


def _adapt(
    data: Path,
    out: Path,
    model: str,
    merge: bool,
    lora: dict[str, Any],
    held_out: float,
    training: dict[str, Any],
    device: str,
    watch: Watch,
) -> tuple[dict[str, Any], dict[Any, Any]]:
    import json
    from itertools import islice

    import torch

    from foveal.adapt.vladva_encoder import VladvaEncoder
    from foveal.cli._adapt_vladva_pairs import read_pairs, readable, recalls
    from foveal.data.files import write_atomically
    from foveal.evaluate.models import open_model

    opened = open_model(model, device=device)
    if opened.kind != "vision-language":
        raise ValueError(f"model={model!r} is a {opened.kind} model: give a LLaVA-family model such as nano-llava")
    host: Any = opened.model
    generator = torch.Generator().manual_seed(training["seed"])
    encoder = VladvaEncoder(host.model, host.processor, **lora, generator=generator)
    said, without = read_pairs(data, lambda text: len(host.tokenizer(text, add_special_tokens=False).input_ids))
    pairs, errors = readable(said, watch) if said else ([], {})
    tests = min(max(2, round(held_out * len(pairs))), MOST_TESTED)
    if len(pairs) - tests < training["batch_size"]:
        raise ValueError(
            f"data={str(data)!r} has {len(pairs)} pairs with a short caption ({without} lines have none), of which "
            f"{tests} are for testing: fewer than one batch of {training['batch_size']} is left; lower --batch-size"
        )
    order = iter(torch.randperm(len(pairs), generator=generator).tolist())
    held = [pairs[i] for i in islice(order, tests)]
    learned = [pairs[i] for i in order]
    before = recalls(encoder, held, watch, "before")
    seconds = _train(encoder, learned, out, training)
    after = recalls(encoder, held, watch, "after")
    encoder.save(out / "adapter.safetensors")
    trained = sum(p.numel() for p in encoder.model.parameters() if p.requires_grad)
    report = {
        "model": {"name": opened.name, "class": opened.class_name, "sha256": opened.sha256},
        "pairs": len(pairs),
        "with a long caption": sum(pair.long is not None for pair in pairs),
        "without a short caption": without,
        "unreadable": len(errors),
        "tested on": tests,
        "before": before,
        "after": after,
        "trained parameters": trained,
        "parameters": opened.parameters,
        "seconds": round(seconds, 1),
        "settings": {**lora, **training, "held_out": held_out},
    }
    if merge:
        encoder.model.merge().save_pretrained(out / "merged")
        host.processor.save_pretrained(out / "merged")
    write_atomically(out / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    return report, errors


def _train(encoder: Any, pairs: list[Pair], out: Path, training: dict[str, Any]) -> float:
    """Seconds, those before a resume included."""
    from foveal.adapt.vladva import VladvaModel
    from foveal.data.images import read_image
    from foveal.train import FitConfig, fit

    def batch(rows: list[int]) -> dict[str, Any]:
        chosen = [pairs[row] for row in rows]
        long = [pair.long for pair in chosen]
        images = [read_image(pair.file) for pair in chosen]
        return encoder.batch(images, [pair.short for pair in chosen], long if any(long) else None)

    def loss(model: VladvaModel, inputs: dict[str, Any]) -> dict[str, Any]:
        found = model(**inputs)
        return {"loss": found.loss, "contrastive": found.contrastive, "autoregressive": found.autoregressive}

    config = FitConfig(
        lr=training["lr"],
        batch_size=training["batch_size"],
        weight_decay=0.0,
        seed=training["seed"],
        save_every=100,
        keep=1,
        collate=batch,
        after_step=VladvaModel.clamp_,
    )
    rows = list(range(len(pairs)))
    report = fit(encoder.model, rows, steps=training["steps"], loss=loss, config=config, out=out / "checkpoints")
    return report.seconds_in_all


def _show(report: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"on {report['tested on']} held-out pairs")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    for way, value in report["before"].items():
        table.add_row(way, f"{value:.1f} %", f"{report['after'][way]:.1f} %")
    console = Console()
    console.print(table)
    share = report["trained parameters"] / report["parameters"]
    console.print(f"trained {report['trained parameters']:,} parameters ({share:.1%}) on {report['pairs']:,} pairs")
    if report["with a long caption"] == 0:
        console.print("no caption has 30 tokens or more: nothing kept the model talking but its frozen weights")
    for name in ("adapter.safetensors", "report.json"):
        console.print(f"[dim]wrote[/] {out / name}", highlight=False, soft_wrap=True)
