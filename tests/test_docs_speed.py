"""The figures that docs/compress.md prints are those of the files that the benchmarks wrote."""

import json
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
FILES = ("speed-576.json", "speed-2880.json")


def test_table_of_speeds():
    records = [json.loads((DOCS / "compress" / name).read_text()) for name in FILES]
    wholes = [record["rows"][0] for record in records]
    lines = [
        f"| {both[0]['name']} | " + " | ".join(map(_cells, both, wholes)) + " |"
        for both in zip(*(record["rows"] for record in records), strict=True)
        if both[0]["name"] != "unmodified"
    ]
    assert len(lines) == 8
    assert "\n".join(lines) in (DOCS / "compress.md").read_text()


def _cells(row, whole):
    speed = row["speed-up"]
    shares = row["GFLOPs"] / whole["GFLOPs"], speed / row["limit"]
    return f"{100 * shares[0]:.0f} % | {speed:.2f}× | {100 * shares[1]:.0f} % | {100 * row['share']:.2f} %"


def test_table_of_large_images():
    rows = json.loads((DOCS / "compress" / "large-images.json").read_text())["rows"]
    lines = [f"| {' | '.join(_large(row))} |" for row in rows]
    assert len(lines) == 4
    assert "\n".join(lines) in (DOCS / "compress.md").read_text()


def _large(row):
    sizes = [f"{row[name]:,.0f}" for name in ("file MB", "pixels MB")]
    ways = [[f"{row[way]['MB']:,.0f}", f"{row[way]['seconds']:.1f}"] for way in ("windows", "whole")]
    return [row["picture"], *sizes, str(row["windows"]["tiles"]), *ways[0], *ways[1]]
