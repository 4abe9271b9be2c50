"""What the tests of the local backend share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from skyrl_modal.backends.local import sandbox


@pytest.fixture
def no_namespaces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that has no bubblewrap: neither the package's nor the system's."""
    monkeypatch.setattr(sandbox, "_candidates", list)
    sandbox.find_sandbox.cache_clear()
    yield
    sandbox.find_sandbox.cache_clear()
