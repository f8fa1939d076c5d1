"""What the README promises: its two commands, its picture, its links, and examples that run as printed."""

import re
from pathlib import Path

import pytest
from PIL import Image

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    "pip install -c constraints.txt -e . && foveal demo",
    "pip install -c constraints.txt -e '.[test]' && pytest",
]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_two_commands_each_in_a_block_of_its_own():
    assert [block.strip() for block in blocks("bash")] == COMMANDS


@pytest.mark.parametrize("block", blocks("python"))
def test_example_runs_as_printed(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    assert "cat" in capsys.readouterr().out


def test_there_is_an_example():
    assert blocks("python")


def test_links_and_pictures_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) > 8
    missing = [target for target in targets if "://" not in target and not (CHECKOUT / target).is_file()]
    assert not missing


def test_the_picture_is_a_screenshot():
    with Image.open(CHECKOUT / "docs" / "images" / "demo.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) >= 600
