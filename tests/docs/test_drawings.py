"""Tests of the drawings on the page of concepts."""

from __future__ import annotations

import re

from skyrl_modal import RunState
from tests.docs.drawings import FOLDER, pictures
from tests.docs.page_blocks import ROOT


def test_drawings_are_current() -> None:
    """The files are those that the script writes, and plain SVG without scripts and references to other files."""
    assert {path for path, _ in pictures()} == set(FOLDER.iterdir())
    for path, content in pictures():
        assert path.read_text(encoding="utf-8") == content, "run `python -m tests.docs.drawings`"
        tags = set(re.findall(r"<([^\s/>]+)", content))
        assert tags <= {"svg", "title", "defs", "marker", "path", "rect", "text"}


def test_each_drawing_has_alternative_text_in_both_themes() -> None:
    """The page shows each drawing on a light and on a dark background, with the same text in its place."""
    page = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    shown = re.findall(
        r"^```\{image\} drawings/(\S+)-(light|dark)\.svg\n:class: only-(light|dark)\n:alt: (.+)$", page, re.MULTILINE
    )

    assert len(shown) == len(list(pictures()))
    assert all(file == shown_in for _, file, shown_in, _ in shown)
    assert len({(name, text) for name, _, _, text in shown}) * 2 == len(shown)
    assert all(len(text) > 100 for *_, text in shown)


def test_drawing_of_states_has_each_state() -> None:
    """The life of a run has every state of a run, except for the one of records that cannot be read."""
    svg = (FOLDER / "life-of-a-run-light.svg").read_text(encoding="utf-8")

    assert all(f">{state}<" in svg for state in RunState if state is not RunState.UNKNOWN)
