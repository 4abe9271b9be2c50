"""Tests of the pictures in the documentation."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest

from skyrl_modal.cli.commands import cli
from tests.docs.pictures.shown import ANIMATION, QUICKSTART, STILLS, WIDTHS, Terminal

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "pictures"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES = sorted(path.name for path in FOLDER.iterdir())
#: Each terminal with the names of its pictures.
TERMINALS = [(QUICKSTART, [ANIMATION]), *((one, [one.file_name(width) for width in WIDTHS]) for one in STILLS)]


def test_pictures_and_pages_agree() -> None:
    """Each picture is part of a page, and each picture of a page exists."""
    named = {name for page in PAGES for name in re.findall(r"pictures/([\w.-]+)", page.read_text(encoding="utf-8"))}

    assert named == set(FILES)


def test_pictures_are_described() -> None:
    """Each picture has a text for readers who do not see it."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        descriptions = re.findall(r"!\[([^\]]*)\]\([^)]*pictures/", text)
        descriptions += [re.search(r'alt="([^"]*)"', tag)[1] for tag in re.findall(r"<img[^>]*pictures/[^>]*>", text)]
        assert all(len(description) > 20 for description in descriptions), page.name


@pytest.mark.parametrize("name", FILES)
def test_pictures_are_small(name: str) -> None:
    """A picture has at most 300 kB."""
    assert (FOLDER / name).stat().st_size < 300_000


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".svg")])
def test_drawings_refer_to_nothing(name: str) -> None:
    """An SVG file has no script, no event handler and no reference to another file."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    elements = list(ElementTree.fromstring(text).iter())  # noqa: S314  # a file of this repository

    assert {element.tag.rpartition("}")[2] for element in elements} <= {
        "svg", "title", "style", "defs", "g", "rect", "text", "use"
    }  # fmt: skip
    for element in elements:
        for key, value in element.attrib.items():
            assert not key.startswith("on")
            assert "href" not in key or value.startswith("#")
            assert "url(" not in value
    assert not re.search(r"url\(|@import|@font-face", text)


@pytest.mark.parametrize(("terminal", "names"), TERMINALS, ids=lambda value: getattr(value, "name", ""))
def test_shown_commands_are_valid(terminal: Terminal, names: list[str]) -> None:
    """The pictures show the commands of the script that makes them, which the command line accepts."""
    assert set(names) <= set(FILES)
    for line in terminal.commands:
        program, *arguments = shlex.split(line)
        if program == "skyrl-modal":
            name, command, rest = cli.resolve_command(click.Context(cli), arguments)
            assert command is not None
            command.make_context(name, rest)  # raises the error that a user would see
        else:
            assert (ROOT / arguments[0]).is_file()
        for picture in names:
            drawn = ElementTree.parse(FOLDER / picture).getroot().itertext()  # noqa: S314  # as above
            assert " ".join(shlex.split(line)[:2]) in "".join(drawn)
