"""Tests of Dicts with the real client."""

from __future__ import annotations

import modal
import modal.exception
import pytest

from tests.support.loopback import LoopbackModal


def test_entries_are_shared_by_name(loopback: LoopbackModal) -> None:
    """Two references to one name have the same entries; a key that exists is not replaced if the client asks so."""
    first = modal.Dict.from_name("leases", create_if_missing=True)
    second = modal.Dict.from_name("leases")

    assert first.put("key", "one", skip_if_exists=True)
    assert not second.put("key", "two", skip_if_exists=True)
    assert second.get("key") == "one"
    second.put("key", "three")

    assert (first.get("key"), first.len(), list(first.items())) == ("three", 1, [("key", "three")])
    assert first.pop("key", None) == "three"
    assert (second.pop("key", None), second.get("key", "absent"), second.contains("key")) == (None, "absent", False)


def test_dict_that_does_not_exist(loopback: LoopbackModal) -> None:
    """A Dict is created only on request."""
    with pytest.raises(modal.exception.NotFoundError):
        modal.Dict.from_name("unknown").get("key")
