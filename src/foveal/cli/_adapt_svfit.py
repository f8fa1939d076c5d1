"""`foveal adapt svfit`: a CLIP or an image classifier learns the user's classes by its singular values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from foveal.cli._adapt_svfit_pictures import Watch

TEMPLATE = "a photo of a {}"


def svfit(
    data: Path,
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))],
    model: str = "nano-clip",
    merge: bool = False,
    rank: int | None = None,
    energy: float = 0.99,
    targets: str = "",
    template: str = TEMPLATE,
    held_out: float = 0.25,
    steps: int = 200,
    lr: float = 0.03,
    batch_size: int = 32,
    device: str = "auto",
    seed: int = 0,
    json: bool = False,
) -> None:
    """SVFit: train only the singular values of query and value projections, and see on held-out pictures what it gave.

    A dual encoder (CLIP, SigLIP) stays one: its picture side learns to score the names of the classes. Any other
    image model (ViT, DINOv2 …) gets a new linear head; "before" is then that head alone, trained for as many steps.
    Writes a report and OUT/adapter, a folder of peft (import foveal.adapt.svfit_peft, then PeftModel.from_pretrained).
    After Ctrl-C the same command goes on from its last hundred steps.

    Args:
        data: a folder with one sub-folder a class, or a .csv with the columns image (path) and label.
        out: new folder for what is written.
        model: nano-clip, a folder or a hub id.
        merge: also write OUT/model, a plain checkpoint that loads without foveal and peft.
        rank: singular values of each matrix that are trained; by default as many as hold --energy.
        energy: share of the squared singular values, up to 1 (all of them).
        targets: names of layers with commas between them, e.g. q_proj,v_proj; by default query and value of pictures.
        template: what a dual encoder reads for a class; {} stands for its name.
        held_out: share of the pictures of every class to test on.
        steps: of training.
        lr: learning rate of the singular values; 0.01 to 0.1 is usual.
        batch_size: pictures a step.
        device: cpu, cuda, cuda:1, mps; auto is a GPU if there is one.
        seed: of the split, the order of pictures and a new head.
        json: print the report as one JSON document.
    """
    from foveal.cli._pictures import progress

    if out.exists():
        raise ValueError(f"out={str(out)!r} exists already: give a new folder, nothing is overwritten")
    if "{}" not in template:
        raise ValueError(f"template={template!r}: must hold {{}} in the place of the class")
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps={steps}, batch_size={batch_size}: must be at least 1")
    names = [name.strip() for name in targets.split(",") if name.strip()]
    training = {"steps": steps, "lr": lr, "batch_size": batch_size, "seed": seed}
    with progress() as watch:
        report = _adapt(data, out, model, merge, (rank, energy, names), template, held_out, training, device, watch)
    if json:
        from foveal.cli import print_json

        print_json(report)
        return
    _show(report, out)


def _adapt(
    data: Path,
    out: Path,
    model: str,
    merge: bool,
    what: tuple[int | None, float, list[str]],
    template: str,
    held_out: float,
    training: dict[str, Any],
    device: str,
    watch: Watch,
) -> dict[str, Any]:
    from foveal.adapt.svfit_peft import SVFitConfig
    from foveal.cli._adapt_svfit_pictures import read_labelled, split
    from foveal.cli._adapt_svfit_train import open_task

    rank, energy, names = what
    config = SVFitConfig(rank=rank, energy=energy)  # refuses bad settings before anything is read
    labelled = read_labelled(data, watch)
    train, held = split(labelled.labels, held_out, training["seed"])
    rows = [(path, label) for path, label in zip(labelled.paths, labelled.labels)]
    sets = [rows[row] for row in train], [rows[row] for row in held]
    watch("loading the model", 0, 1)
    task = open_task(model, labelled.classes, template, device, training["seed"])
    config.target_modules = names or task.targets
    aside = out.with_name(f".{out.name}.part")
    report = {
        "method": "svfit",
        "model": model,
        "classes": labelled.classes,
        "pictures": {"train": len(train), "held out": len(held)},
        "skipped": labelled.skipped,
        **task.adapt(config, *sets, aside, merge, training, watch),
        "settings": {**training, "rank": rank, "energy": energy, "held_out": held_out},
    }
    _finish(report, template, aside, out)
    return report


def _finish(report: dict[str, Any], template: str, aside: Path, out: Path) -> None:
    """The folder appears whole or not at all."""
    import json as json_module

    from foveal.data.files import write_atomically

    names = {"classes": report["classes"], "template": template}
    for file, content in (("report.json", report), ("classes.json", names)):
        write_atomically(aside / file, (json_module.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    aside.replace(out)


def _show(report: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    held = report["pictures"]["held out"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in (f"accuracy on {held} held-out pictures", "%"):
        table.add_column(header, justify="right" if header == "%" else "left")
    for name in ("before", "after"):
        table.add_row(f"{name}: {report[name]['what']}", f"{report[name]['accuracy']:.1f}")
    console = Console()
    console.print(table)
    numbers = report["parameters"]
    console.print(
        f"{numbers['trained']:,} of {numbers['all']:,} numbers trained, in {numbers['layers']} layers; "
        f"LoRA with r = 8 would train {numbers['lora of rank 8']:,}"
    )
    for reason, count in report["skipped"].items():
        console.print(f"skipped: {count} ({reason})", highlight=False)
    for path in sorted(out.iterdir()):
        console.print(f"[dim]wrote[/] {path}", highlight=False, soft_wrap=True)
