"""Fixtures of the contract tests, which run on every backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.loopback import LoopbackModal


@pytest.fixture(scope="session")
def shared_loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackModal]:
    """Yield a control plane that the modal client of this process, and of its child processes, uses."""
    with LoopbackModal(tmp_path_factory.mktemp("loopback"), client_timeout=3, scaledown=1) as server, server.activate():
        yield server
        assert server.unimplemented == []
        assert server.errors == []


@pytest.fixture(params=["local", "modal", pytest.param("live", marks=pytest.mark.live)])
def backend(request: pytest.FixtureRequest) -> str:
    """Return the backend's name. "modal" uses the loopback, "live" uses a real account."""
    if request.param == "modal":
        request.getfixturevalue("shared_loopback")
    return "local" if request.param == "local" else "modal"
