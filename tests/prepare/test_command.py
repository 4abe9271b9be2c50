"""Tests of commands as shell strings."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal import SpecError
from skyrl_modal.prepare.command import SHOWN_CHARACTERS, normalize_command, shorten_command

ARGUMENTS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1)


@given(st.lists(ARGUMENTS, min_size=1))
def test_list_is_quoted(arguments: list[str]) -> None:
    """A shell splits the command into the arguments again."""
    assert shlex.split(normalize_command(arguments)) == arguments


def test_string_is_unchanged() -> None:
    """A shell string is returned unchanged."""
    assert normalize_command(" echo $HOME | cat\n") == " echo $HOME | cat\n"


@pytest.mark.parametrize("command", ["", "  \n", "a\0b", [], ["a", 3]])
def test_invalid_command_is_refused(command: Any) -> None:
    """An empty command, or one that is not text, raises SpecError."""
    with pytest.raises(SpecError) as caught:
        normalize_command(command)

    assert caught.value.field == "command"


def test_long_command_is_shortened_for_people() -> None:
    """A plan shows the beginning of a long command, and its length."""
    assert shorten_command("x" * SHOWN_CHARACTERS) == "x" * SHOWN_CHARACTERS
    shown = shorten_command("x" * 300_000)
    assert len(shown) < SHOWN_CHARACTERS + 30
    assert shown.endswith("x... (300,000 characters)")
