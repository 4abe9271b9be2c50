"""Fixtures of the local backend's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from skyrl_modal.backends.local import sandbox


@pytest.fixture
def no_namespaces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the test as on a machine on which bubblewrap is not installed."""
    monkeypatch.setattr(sandbox, "_candidates", list)
    sandbox.find_sandbox.cache_clear()
    yield
    sandbox.find_sandbox.cache_clear()


@pytest.fixture
def backend() -> str:
    """Return the name of the backend for the fixture ``launcher``."""
    return "local"
