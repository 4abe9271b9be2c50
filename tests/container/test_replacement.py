"""Tests of the count of replaced containers, with a dictionary in the place of Modal's."""

from __future__ import annotations

from typing import Any

import pytest

from skyrl_modal.container.replacement import Replacements
from skyrl_modal.protocol.leases import MAX_REPLACEMENTS, replacements_key


class Store(dict[str, Any]):
    """The methods of ``modal.Dict`` that are used."""

    def put(self, key: str, value: str, *, skip_if_exists: bool = False) -> bool:
        """Set a value."""
        self[key] = value
        return True


class UnreachableStore(Store):
    """A store each of whose requests fails."""

    def get(self, key: str, default: Any = None) -> Any:
        """Fail."""
        raise ConnectionError("no route to host")


def test_number_of_replacements_is_limited() -> None:
    """A limited number of requests is granted for a run, and each note has the number. Other runs do not count."""
    store = Store()
    replies = [Replacements(store, "run-1").request() for _ in range(MAX_REPLACEMENTS + 1)]

    assert [reply.is_granted for reply in replies] == [True] * MAX_REPLACEMENTS + [False]
    assert f"(1 of at most {MAX_REPLACEMENTS})" in replies[0].note
    assert f"{MAX_REPLACEMENTS} earlier containers" in replies[-1].note
    assert Replacements(store, "run-2").request().is_granted


def test_count_is_forgotten() -> None:
    """At the end of a run its entry is removed, also if there is none."""
    store = Store()
    replacements = Replacements(store, "run-1")
    replacements.request()

    replacements.forget()
    replacements.forget()

    assert store == {}


def test_nothing_is_granted_without_a_count() -> None:
    """If the entry cannot be read, containers are not replaced, since there would be no limit."""
    reply = Replacements(UnreachableStore(), "run-1").request()

    assert not reply.is_granted
    assert "no route to host" in reply.note


@pytest.mark.parametrize("value", ["", "x", "-1", 5.0, None, b"1", "9" * 5000])
def test_unreadable_count_starts_at_zero(value: object) -> None:
    """An entry that is no number counts as absent."""
    assert Replacements(Store({replacements_key("run-1"): value}), "run-1").request().is_granted
