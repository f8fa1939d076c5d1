"""`foveal curate tldr`: shards (or a file of codes, scores and captions) to a quarter of their size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from foveal.curate.tldr import Choice
    from foveal.curate.tldr_shards import Parts, Reduced

FIRST, EVERY = 64, 2
"""Default batch size, and which member of a cluster stays when neither ``every`` nor ``fraction`` is given."""


def tldr(
    shards: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    out: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None,
    manifest: Path | None = None,
    clusters: int = 1000,
    every: int | None = None,
    fraction: float | None = None,
    itm_fraction: float = 0.5,
    kind: str = "index",
    whiten: int | None = None,
    captioner: Path | None = None,
    matcher: str = "nano-clip",
    describe: str = "captioner",
    steps: int = 2000,
    batch_size: int = FIRST,
    device: str = "auto",
    seed: int = 0,
    jpeg_quality: int | None = None,
    json: bool = False,
) -> None:
    """TL;DR: keep a few pictures of every cluster, of these the well matching ones, and append generated captions.

    Writes shards, report.json, report.md and pictures of examples. After Ctrl-C the same command goes on with the shard
    it was in.

    Args:
        shards: tar shards, also with braces: "train-{0000..0331}.tar".
        out: folder for the reduced shards and the report; with --manifest a .jsonl file.
        manifest: instead of shards, a .jsonl file with one sample a line: "codes" (list of numbers), "itm" (a number),
            "caption", "generated" and whatever else; the kept lines are written with their new captions.
        clusters: of k-means; some thousand pictures a cluster is usual.
        every: keep the members number 0, N, 2N … of a cluster; 2 when no fraction is given.
        fraction: instead, keep this share of every cluster, drawn at random.
        itm_fraction: the part of the whole set whose captions match well enough.
        kind: what clusters see of the codes: index (as released) or histogram (how often each occurs).
        whiten: whiten to this many axes first.
        captioner: folder of a trained codebook captioner; by default one is trained on the shards, in OUT/captioner.
        matcher: dual encoder that scores pictures and captions: nano-clip, a folder or a hub id.
        describe: who writes the captions to append: captioner, none, or a vision-language model's folder or hub id.
        steps: of the captioner's training.
        batch_size: most pictures at once.
        device: of matcher and describer: cpu, cuda, cuda:1, mps; auto is a GPU if there is one.
        seed: of training, clusters and random choice.
        jpeg_quality: 1 to 95 for the written pictures; by default they are lossless PNG.
        json: print the report as one JSON document.
    """
    if out is None:
        raise ValueError("out is missing: say where to write, -o FOLDER (with --manifest, -o FILE.jsonl)")
    if bool(shards) == (manifest is not None):
        raise ValueError("give either shards or --manifest, the latter with codes, scores and captions ready")
    from foveal.curate.tldr import Choice

    choice = Choice(
        clusters, EVERY if every is None and fraction is None else every, fraction, itm_fraction, kind, whiten
    )
    if manifest is not None:
        from foveal.cli._curate_manifest import reduce_manifest

        report, written = reduce_manifest(manifest, out, choice, seed), [out]
    else:
        models = (captioner, matcher, describe, steps, batch_size, device)
        report, written = _reduce(shards, out, choice, models, seed, jpeg_quality)
    if json:
        from foveal.cli import print_json

        print_json(report)
        return
    _show(report, written)


def _reduce(
    shards: tuple[str, ...], out: Path, choice: Choice, models: tuple[Any, ...], seed: int, jpeg_quality: int | None
) -> tuple[dict[str, Any], list[Path]]:
    from foveal.cli._pictures import progress

    with progress() as watch:
        from foveal.curate.tldr_shards import reduce_shards
        from foveal.data.webdataset import Shards

        paths = Shards(list(shards)).paths
        if missing := [path for path in paths if not path.is_file()]:
            raise ValueError(f"shards hold {str(missing[0])!r}, which does not exist: check the path and the braces")
        watch("training the captioner", 0, 1)
        parts = _parts(paths, out, *models, seed=seed)
        batch_size = models[4]
        reduced = reduce_shards(
            paths, out, parts, choice, seed=seed, batch_size=batch_size, jpeg_quality=jpeg_quality, watch=watch
        )
    return reduced.report, [*_write_report(out, reduced), *reduced.shards[:3]]


def _parts(
    paths: list[Path],
    out: Path,
    captioner: Path | None,
    matcher: str,
    describe: str,
    steps: int,
    batch_size: int,
    device: str,
    *,
    seed: int,
) -> Parts:
    """The three functions that look at pictures, of models that are opened here."""
    import hashlib

    from foveal.curate.tldr import load_captioner
    from foveal.curate.tldr_shards import Parts
    from foveal.curate.tldr_train import captioner_pixels, train_captioner
    from foveal.evaluate.models import open_model
    from foveal.nn.cosine import unit_rows

    dual: Any = open_model(matcher, device=device, batch_size=batch_size)
    if dual.kind != "dual encoder":
        raise ValueError(f"matcher={matcher!r} is a {dual.kind} model: give a dual encoder such as nano-clip")
    teller: Any = None
    if describe not in ("captioner", "none"):
        teller = open_model(describe, device=device, batch_size=batch_size)
        if teller.kind != "vision-language":
            raise ValueError(f"describe={describe!r} is a {teller.kind} model: give one that writes, captioner or none")
    size = {"steps": steps, "batch_size": batch_size, "seed": seed}
    folder = captioner or out / "captioner"
    model, tokenizer = load_captioner(folder) if captioner else train_captioner(paths, folder, **size)
    codebook = hashlib.sha256(model.codebook.detach().numpy().tobytes()).hexdigest()[:16]

    def match(pictures: Any, captions: Any) -> Any:
        rows = unit_rows(dual.model.image_features(pictures)), unit_rows(dual.model.text_features(captions))
        return (rows[0] * rows[1]).sum(1).numpy()

    def write(pictures: Any) -> list[str]:
        if teller is not None:
            return teller.model.answer([([picture], "Describe the picture in one sentence.") for picture in pictures])
        return model.generate(captioner_pixels(pictures, model), tokenizer, prompt="")

    model.to(dual.model.model.device)
    return Parts(
        codes=lambda pictures: model.codes(captioner_pixels(pictures, model)).cpu().numpy(),
        num_codes=len(model.codebook),
        match=match,
        describe=None if describe == "none" else write,
        measured_by=f"captioner {codebook}, matcher {dual.name} {dual.sha256[:16]}",
        described_by={"none": "nobody", "captioner": f"captioner {codebook}"}.get(describe, describe),
    )


def _write_report(out: Path, reduced: Reduced) -> list[Path]:
    """report.json, report.md and one picture for each reason."""
    import json as json_module

    from foveal.curate.tldr import MISMATCHED
    from foveal.data.files import write_atomically
    from foveal.lab.figures import picture_grid, png

    pictures: dict[str, bytes] = {}
    for reason in dict.fromkeys(example.reason for example in reduced.examples):
        shown, said = [], []
        for example in (example for example in reduced.examples if example.reason == reason):
            score = f"[{example.itm:.2f}] " if reason == MISMATCHED else ""
            shown.append(example.picture)
            said.append(score + example.caption)
            if example.instead is not None:
                shown.append(example.instead)
                said.append("kept instead")
        pictures[reason] = png(picture_grid(shown, said, columns=6))
    names = {reason: f"{reason.split()[0]}.png" for reason in pictures}
    text = (json_module.dumps(reduced.report, indent=1, ensure_ascii=False) + "\n").encode()
    files = {"report.json": text, **{names[reason]: content for reason, content in pictures.items()}}
    files["report.md"] = _markdown(reduced.report, names).encode()
    for name, content in files.items():
        write_atomically(out / name, content)
    return [out / name for name in files]


def _markdown(report: dict[str, Any], pictures: dict[str, str]) -> str:
    title = f"# TL;DR: {report['kept']:,} of {report['samples']:,} samples kept"
    lines = [title, "", "| why | samples |", "| --- | ---: |"]
    counts = {**report["reasons"], **{f"not read: {reason}": count for reason, count in report["skipped"].items()}}
    lines += [f"| {reason} | {count:,} |" for reason, count in counts.items()]
    codes, clusters, itm = report["codes"], report["clusters"], report["itm"]
    lines += [
        "",
        f"- Codes: {codes['used']} of {codes['of']} used, perplexity {codes['perplexity']:.1f}.",
        f"- Clusters: {clusters['filled']} of {clusters['of']} filled, at most {clusters['largest']:,} in one.",
        f"- Match: mean {itm['mean']:.3f}, of the kept {itm['mean of the kept']:.3f}.",
        "- Settings: " + ", ".join(f"{name} {value}" for name, value in report["settings"].items()) + ".",
    ]
    for reason, file in pictures.items():
        lines += ["", f"## {reason.capitalize()}", "", f"![{reason}]({file})"]
    return "\n".join(lines) + "\n"


def _show(report: dict[str, Any], written: list[Path]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("why")
    table.add_column("samples", justify="right")
    for reason, count in {**report["reasons"], **report.get("skipped", {})}.items():
        table.add_row(reason, f"{count:,}")
    console = Console()
    console.print(table)
    codes = report["codes"]
    console.print(f"codes: {codes['used']} of {codes['of']} used, perplexity {codes['perplexity']:.1f}")
    for path in written:
        console.print(f"[dim]wrote[/] {path}", highlight=False, soft_wrap=True)
