"""Prefill and decoding with fewer visual tokens: ``python benchmarks/compress.py --tokens 576 --batch 4``.

A LLaVA with a decoder of SmolLM2-135M's size (random weights, float32) reads 576 or 2,880 image tokens and a short
question. Every method processes about a quarter of the image tokens on average over the layers. Every row comes from a
process of its own, in which prefills with and without the method take turns and the fastest of each counts: other
programs can only slow one down. So the first row, the model against itself, shows what the machine adds to a ratio.

"choosing" is the part of a method's prefill in which it ranks, merges or pools tokens, also as a share of the
unmodified prefill; FoPru's, in the vision tower, is small here as the tower is. "limit" is the speed-up that the FLOPs
allow, the method's own ranking included, and attention counted as its causal kernel computes it: half of all pairs of
tokens ("GFLOPs" is torch's own count for the prefill, of all pairs). "of it" is the measured share of the limit.
"smaller picture" is the unmodified model on a picture of a quarter of the tokens: what this machine makes of that
allowance when nothing has to be chosen. One short prompt fills its matrix products badly (on two cores 150 rows were
multiplied at 88 % of the speed of 600), a loss of no method's making, which a batch does not have.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

SMALLER = "smaller picture"
LAYERS, HIDDEN, FEED_FORWARD, VOCABULARY, IMAGE = 30, 576, 1536, 49152, 49151
HEADS, KEY_VALUE_HEADS = 9, 3
TEXT_TOKENS, ANSWER_TOKENS = 32, 16
REPEATS = 8
"""Pairs of prefills in a process."""


def reducers(side: int) -> dict[str, Callable[[], Any]]:
    """Name -> a reducer that keeps a quarter, mean over the layers; None is the model as it is."""
    from foveal.compress.aim import AIM
    from foveal.compress.baselines import AveragePool, FastV, RandomDrop
    from foveal.compress.fopru import FoPru
    from foveal.compress.gsearch import LayerwiseKeep, fit_center, p_sigmoid
    from foveal.compress.pyramiddrop import PyramidDrop

    last = (0.25 * LAYERS - 2) / (LAYERS - 2)
    stages = (3, 10, 20)
    first = (0.25 * LAYERS - 3) / (7 + 10 / 2 + 10 / 4)
    rates = p_sigmoid(LAYERS, 8.0, fit_center(LAYERS, 8.0, 0.25))
    merged = 0.25 * LAYERS / (15 + 3.5)  # up to layer 14, then an eighth less after each
    return {
        "unmodified": lambda: None,
        SMALLER: lambda: None,
        "FastV": lambda: FastV(2, last),
        "PyramidDrop": lambda: PyramidDrop(stages, (first, first / 2, first / 4)),
        "LayerwiseKeep": lambda: LayerwiseKeep(rates, "compact"),
        "AIM": lambda: AIM(merged, 14),
        "FoPru": lambda: FoPru(0.25),
        "random tokens": lambda: RandomDrop((0,), (0.25,)),
        "average pooling": lambda: AveragePool(side // 2),
    }


def build(tokens: int, batch: int) -> tuple[Any, dict[str, Any]]:
    """The model, whose vision tower is next to nothing, and prompts of one text about different pictures."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    side = round(tokens**0.5)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=4 * side,
        patch_size=4,
    )
    text = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=side * side)
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.pad_token_id = 0
    words = torch.randint(100, 40_000, (TEXT_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = torch.tensor([[1, *[IMAGE] * (side * side), *words]] * batch)
    pictures = torch.randn(batch, 3, 4 * side, 4 * side)
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures}


def measure(name: str, tokens: int, batch: int) -> dict[str, float]:
    """Seconds of prefill, selection and each further token; FLOPs, share kept, MiB that the prefill adds at most."""
    import torch

    from foveal.train.meters import Meter

    whole, everything = build(tokens, batch)
    model, inputs = build(tokens // 4, batch) if name == SMALLER else (whole, everything)
    reducer = reducers(round(tokens**0.5))[name]()
    spent = [0.0]
    for part in ("select", "annotate", "_read"):  # the latter two are FoPru's, in the vision tower
        if hasattr(reducer, part):
            setattr(reducer, part, timed(getattr(reducer, part), spent))

    def attached() -> Any:
        return reducer.attached(model) if reducer is not None else nullcontext()

    with torch.no_grad():
        with attached(), Meter(flops=False) as meter:  # also warms up
            model(**inputs, logits_to_keep=1)
        unmodified, reduced = [], []
        for _ in range(REPEATS):
            unmodified.append(prefilled(whole, everything))
            with attached():
                spent[0] = 0.0
                reduced.append((prefilled(model, inputs), spent[0]))
        prefill, selection = min(reduced)
        with attached():
            first, generation = (generated(model, inputs, length) for length in (1, ANSWER_TOKENS))
        with attached(), Meter(flops=True) as counted:
            model(**inputs, logits_to_keep=1)
    lengths = [inputs["input_ids"].shape[1]] * LAYERS
    found = {
        "unmodified prefill": min(unmodified),
        "prefill": prefill,
        "selection": selection,
        "token": (generation - first) / (ANSWER_TOKENS - 1),
        "generation": generation,
        "MiB": meter.peak_memory_bytes / 2**20,
        "GFLOPs": counted.flops / 1e9,
    }
    ranking = 0.0
    if reducer is not None:
        report = reducer.report()
        ranking = report.flops_selection / batch
        lengths = [everything["input_ids"].shape[1] - report.image_tokens_full + n for n in report.image_tokens]
        found["kept"] = sum(report.image_tokens) / len(report.image_tokens) / report.image_tokens_full
    full = LAYERS * layer_flops(everything["input_ids"].shape[1])
    return {**found, "limit": full / (sum(map(layer_flops, lengths)) + ranking)}


def layer_flops(length: int) -> int:
    """Of one decoder layer; of the pairs of tokens a causal kernel computes the half with the key first."""
    linear = 2 * HIDDEN * (2 * HIDDEN + 2 * HIDDEN * KEY_VALUE_HEADS // HEADS + 3 * FEED_FORWARD)
    return length * linear + 2 * length**2 * HIDDEN


def prefilled(model: Any, inputs: dict[str, Any]) -> float:
    """Seconds for the prompt alone."""
    start = time.perf_counter()
    model(**inputs, logits_to_keep=1)
    return time.perf_counter() - start


def generated(model: Any, inputs: dict[str, Any], length: int) -> float:
    """Seconds for an answer of so many tokens."""
    start = time.perf_counter()
    model.generate(**inputs, max_new_tokens=length, min_new_tokens=length, do_sample=False)
    return time.perf_counter() - start


def timed(function: Callable, spent: list[float]) -> Callable:
    """The same function; its seconds are added to ``spent[0]``."""

    def call(*args: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args)
        finally:
            spent[0] += time.perf_counter() - start

    return call


def rows(rounds: list[dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """Medians over the rounds; ratios to the unmodified model are taken within each."""
    found: list[dict[str, Any]] = []
    for name in rounds[0]:
        middle = {key: statistics.median(results[name][key] for results in rounds) for key in rounds[0][name]}
        wholes = [results[name]["unmodified prefill"] for results in rounds]
        faster = statistics.median(whole / results[name]["prefill"] for whole, results in zip(wholes, rounds))
        share = statistics.median(results[name]["selection"] / whole for whole, results in zip(wholes, rounds))
        found.append({"name": name, **middle, "share": share, "speed-up": faster})
    return found


def draw(found: list[dict[str, Any]], file: Path, title: str) -> None:
    """Prefill, selection and 16 tokens of decoding as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 0.5 * len(found) + 1.2), layout="constrained")
    names = [row["name"] for row in found][::-1]
    left = [0.0] * len(found)
    parts = {
        "prefill": [row["prefill"] - row["selection"] for row in found][::-1],
        "of it choosing tokens": [row["selection"] for row in found][::-1],
        f"{ANSWER_TOKENS - 1} further tokens": [row["token"] * (ANSWER_TOKENS - 1) for row in found][::-1],
    }
    for label, widths in parts.items():
        axes.barh(names, widths, left=left, label=label)
        left = [start + width for start, width in zip(left, widths)]
    axes.set_xlabel("seconds")
    axes.set_title(title, fontsize="medium", loc="right")
    axes.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=576, help="image tokens; the next square number is taken")
    parser.add_argument("--batch", type=int, default=1, help="prompts at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chart", type=Path, help="PNG file for a picture of the table; its numbers go to FILE.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.tokens, options.batch)))
        return
    side = round(options.tokens**0.5)
    command = [sys.executable, __file__, f"--tokens={options.tokens}", f"--batch={options.batch}", "--one"]
    console = Console(stderr=True)
    rounds = [
        {
            name: json.loads(subprocess.run([*command, name], stdout=subprocess.PIPE, check=True).stdout)
            for name in reducers(side)
        }
        for _ in track(range(options.rounds), "measuring", console=console, disable=not sys.stderr.isatty())
    ]
    prompts = f"batch of {options.batch}" if options.batch > 1 else "one prompt"
    title = f"{side * side} image tokens, {prompts}, decoder of SmolLM2-135M's size, float32, {os.cpu_count()} cores"
    table = Table(title=title)
    headers = (
        "method",
        "kept",
        "GFLOPs",
        "prefill s",
        "choosing s",
        "choosing of prefill %",
        "s a token",
        "16 tokens s",
        "MiB",
        "faster",
        "limit",
        "of it",
    )
    for header in headers:
        table.add_column(header, justify="left" if header == "method" else "right")
    found = rows(rounds)
    for row in found:
        kept = f"{row['kept']:.0%}" if "kept" in row else ""
        seconds = [f"{row[key]:.3f}" for key in ("prefill", "selection", "token", "generation")]
        seconds.insert(2, f"{100 * row['share']:.2f}")
        speed = [f"{row['speed-up']:.2f}×", f"{row['limit']:.2f}×", f"{row['speed-up'] / row['limit']:.0%}"]
        table.add_row(row["name"], kept, f"{row['GFLOPs']:,.0f}", *seconds, f"{row['MiB']:.0f}", *speed)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if options.chart:
        draw(found, options.chart, title)
        record = {"title": title, "rounds": options.rounds, "rows": found}
        options.chart.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
