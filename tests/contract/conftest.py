"""Fixtures of the contract tests, which run on every backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.loopback import LoopbackModal


def divide(name: str, local: object, modal: object) -> pytest.MarkDecorator:
    """Parametrize a test with two values, of which each backend gets one; as slow tests, each gets the other one too.

    It is for cases that the same code in the container decides on every backend.
    """
    slow, live = pytest.mark.slow, pytest.mark.live
    cases: list[Any] = [("local", local), ("modal", modal)]
    cases += [pytest.param("local", modal, marks=slow), pytest.param("modal", local, marks=slow)]
    cases += [pytest.param("live", value, marks=live) for value in (local, modal)]
    return pytest.mark.parametrize(("backend", name), cases, indirect=["backend"])


#: The parameters of ``backend`` for tests of what the same code in the container does on every backend.
LOCAL_FIRST = pytest.mark.parametrize(
    "backend",
    ["local", pytest.param("modal", marks=pytest.mark.slow), pytest.param("live", marks=pytest.mark.live)],
    indirect=True,
)


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
