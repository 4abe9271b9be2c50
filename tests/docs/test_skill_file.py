"""Tests of the file for coding agents that is generated from the code."""

from __future__ import annotations

from skyrl_modal.cli.commands import cli
from tests.docs.skill_file import PAGE, render


def test_committed_file_is_generated() -> None:
    """The committed file is what its script writes."""
    assert PAGE.read_text(encoding="utf-8") == render()


def test_every_command_is_described() -> None:
    """Each command has a line with its use and its summary."""
    text = render()
    for name in cli.commands:
        assert f"- `skyrl-modal {name}" in text
