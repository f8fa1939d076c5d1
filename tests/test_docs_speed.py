"""The speeds that docs/compress.md prints are those of the files that the benchmark wrote."""

import json
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
FILES = ("speed-576.json", "speed-2880.json")


def test_table_of_speeds():
    records = [json.loads((DOCS / "compress" / name).read_text()) for name in FILES]
    lines = [
        f"| {both[0]['name']} | " + " | ".join(_cells(row) for row in both) + " |"
        for both in zip(*(record["rows"] for record in records), strict=True)
        if both[0]["name"] != "unmodified"
    ]
    assert len(lines) == 8
    assert "\n".join(lines) in (DOCS / "compress.md").read_text()


def _cells(row):
    speed = row["speed-up"]
    return f"{speed:.2f}× | {100 * speed / row['limit']:.0f} % | {100 * row['share']:.2f} %"
