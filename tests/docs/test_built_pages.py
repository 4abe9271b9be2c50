"""Tests of the check of the built documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.built_pages import foreign_addresses

HOST = "//cdn.example.invalid/x"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", f'<script async src="https:{HOST}"></script>'),
        ("a.html", f"<link rel='stylesheet' href='{HOST}'>"),
        ("a.html", f'<img alt="" src="http:{HOST}">'),
        ("a.css", f"@font-face {{ src: url(https:{HOST}) }}"),
        ("a.css", f'@import "https:{HOST}";'),
    ],
)
def test_address_of_another_host_is_found(tmp_path: Path, name: str, text: str) -> None:
    """Scripts, styles, images and fonts of another host are found."""
    (tmp_path / name).write_text(text)

    assert [address.removeprefix("https:").removeprefix("http:") for _, address in foreign_addresses(tmp_path)] == [
        HOST
    ]


def test_links_of_readers_are_permitted(tmp_path: Path) -> None:
    """A link that a reader follows, and a file of the same host, are permitted."""
    (tmp_path / "a.html").write_text(f'<a href="https:{HOST}">x</a><script src="_static/a.js"></script>')

    assert list(foreign_addresses(tmp_path)) == []
