"""The README keeps its word: two commands, Python that prints what it says, links that lead somewhere."""

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    """The bodies of all fenced blocks in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def promised_output(code: str) -> str:
    """The comment lines that end a block: what it says that it prints."""
    tail = re.search(r"((?:^# .*\n)+)\Z", code, flags=re.MULTILINE)
    return "" if tail is None else re.sub(r"^# ", "", tail[1], flags=re.MULTILINE)


def test_two_commands():
    assert blocks("bash") == [
        "pip install -c constraints.txt -e . && foveal demo\n",
        "pip install -c constraints.txt -e '.[test]' && pytest\n",
    ]


@pytest.mark.parametrize("code", blocks("python"))
def test_python_prints_what_it_says(code, capsys):
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out == promised_output(code) != ""


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)", README))))
def test_link_leads_somewhere(target):
    assert not target.startswith("http"), "the README links files of the checkout only: they move with it"
    assert (CHECKOUT / target).is_file()


def test_blocks_and_promises_are_read():
    text = "```python\nx\n# no promise\ny = 1\n# a b\n# c\n```\nand\n```bash\nls\n```\n"
    assert blocks("bash", text) == ["ls\n"]
    assert promised_output(blocks("python", text)[0]) == "a b\nc\n"
    assert promised_output("x\n") == ""
