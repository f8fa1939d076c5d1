"""The classes of `foveal adapt dclip` and their descriptors: from files, from the last run, from a language model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

KEPT = "descriptors.json"


def class_names(classes: Path | None, descriptors: Path | None) -> list[str]:
    """One name for each line of a file, or the classes of the descriptors' file; ValueError unless two or more."""
    if classes is None and descriptors is None:
        raise ValueError("classes is missing: give --classes FILE with a name a line, or --descriptors FILE.json")
    if classes is None:
        from foveal.adapt.dclip import read_descriptors

        assert descriptors is not None
        source, names = descriptors, list(read_descriptors(descriptors))
    else:
        try:
            lines = classes.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"classes={str(classes)!r} is no text in UTF-8: save it as such") from error
        source, names = classes, [line.strip() for line in lines if line.strip()]
    first: dict[str, str] = {}
    for name in names:
        plain = " ".join(name.replace("_", " ").casefold().split())
        if plain in first:
            raise ValueError(f"{source} has {first[plain]!r} and {name!r}, which are one class: leave one out")
        first[plain] = name
    if len(names) < 2:
        raise ValueError(f"{source} has {len(names)} class{'es' * (not names)}: give at least two to choose between")
    return names


def given(names: Sequence[str], descriptors: Path | None, out: Path) -> dict[str, list[str]]:
    """What is known of each class: by the file, else by what an earlier run left in ``out``; empty where nothing is."""
    from foveal.adapt.dclip import read_descriptors

    kept = out / KEPT
    source = descriptors or (kept if kept.is_file() else None)
    known = read_descriptors(source) if source else {}
    table = {name: known.get(name, []) for name in names}
    if source is kept and (found := sum(map(bool, table.values()))):
        _say(f"{found} of {len(names)} classes are described in {kept}: kept; delete the file to ask for them anew")
    return table


def describe(
    table: dict[str, list[str]],
    lm: str | None,
    out: Path,
    max_new_tokens: int,
    watch: Callable[[str, int, int], None],
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The table with answers of the language model in its gaps, written after each; and what asking took."""
    from foveal.adapt.dclip import generate_descriptors
    from foveal.data.files import write_atomically

    missing = [name for name, texts in table.items() if not texts]
    if missing and lm is None:
        raise ValueError(f"descriptors has nothing for {_listed(missing)}: add it, or name a language model, --lm")
    table = dict(table)
    asked: dict[str, Any] = {"name": lm if missing else None, "asked": missing}
    model: Any = _opened(lm) if missing and lm else None
    for number, name in enumerate(missing):
        watch(f"describing {name}", number, len(missing))
        table[name] = generate_descriptors([name], model, max_new_tokens=max_new_tokens)[name]
        if table[name]:
            write_atomically(out / KEPT, _text(table))
    silent = [name for name in missing if not table[name]]
    if not any(table.values()):
        raise ValueError(f"lm={lm!r} listed nothing for any of {len(table)} classes: name another one, --lm")
    if silent:
        share = f"{len(silent)} of {len(table)} classes"
        _say(f"{lm} listed nothing for {share}, whose bare names are used: {_listed(silent)}")
    write_atomically(out / KEPT, _text(table))
    if meter := getattr(model, "meter", None):
        _say(meter.summary())
        asked["cost"] = {"summary": meter.summary(), "money": meter.cost}
    return table, {**asked, "silent": silent}


def _opened(lm: str) -> Any:
    from foveal.llm import language_model

    return language_model(lm)


def _text(table: dict[str, list[str]]) -> bytes:
    return (json.dumps(table, indent=4, ensure_ascii=False) + "\n").encode()


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _say(line: str) -> None:
    print(f"foveal: {line}", file=sys.stderr)
