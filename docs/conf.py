"""Sphinx configuration: plain Markdown in, two lists written from the catalogue while building."""

from pathlib import Path

from foveal import __version__
from foveal.catalog.loader import STAGES, papers, status

HERE = Path(__file__).parent

project = "foveal"
author = "The foveal authors"
copyright = author
release = version = __version__
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "foveal"
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nitpicky = True


def paper_list() -> str:
    """Every paper of the catalogue by stage, linked to its method page when there is one."""
    lines = []
    for stage in STAGES:
        lines += [f"## {stage}", ""]
        for entry in papers():
            if entry.stage == stage:
                page = HERE / "methods" / f"{entry.slug}.md"
                name = f"[`{entry.slug}`](methods/{entry.slug}.md)" if page.is_file() else f"`{entry.slug}`"
                cite = f"[{entry.title}]({entry.url}), {entry.venue}"
                lines.append(f"- {name} · *{status(entry.slug)}*  \n  {entry.summary}  \n  {cite}")
        lines.append("")
    return "\n".join(lines)


def method_list() -> str:
    """A toctree of the method pages that the lab has written."""
    pages = sorted(path.stem for path in (HERE / "methods").glob("*.md"))
    if not pages:
        return "The lab has not written a page yet: `foveal run SLUG` does."
    return "\n".join(["```{toctree}", ":maxdepth: 1", "", *(f"methods/{page}" for page in pages), "```"])


def fill_in(app, docname: str, source: list[str]) -> None:
    """Put the lists where papers.md and methods.md ask for them."""
    for marker, text in (("<!-- papers -->", paper_list), ("<!-- methods -->", method_list)):
        if docname in ("papers", "methods") and marker in source[0]:
            source[0] = source[0].replace(marker, text())


def setup(app) -> None:
    app.connect("source-read", fill_in)
