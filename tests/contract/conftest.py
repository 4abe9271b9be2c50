"""One suite for every backend: what a user may rely on, wherever the command runs."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import Launcher, VolumeSpec
from tests.support.loopback import LoopbackModal


@pytest.fixture(scope="session")
def shared_loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackModal]:
    """One control plane for the session; the modal client of this process and of its children uses it."""
    with LoopbackModal(tmp_path_factory.mktemp("loopback"), client_timeout=3, scaledown=1) as server, server.activate():
        yield server
        assert server.unimplemented == []
        assert server.errors == []


@pytest.fixture(params=["local", "modal", pytest.param("live", marks=pytest.mark.live)])
def backend(request: pytest.FixtureRequest) -> str:
    """The backend's name. "modal" is the real client against the loopback, "live" against a real account."""
    if request.param == "modal":
        request.getfixturevalue("shared_loopback")
    return "local" if request.param == "local" else "modal"


@pytest.fixture
def volume() -> VolumeSpec:
    """A volume that no other test has."""
    return VolumeSpec(name=f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def launcher(backend: str, checkout: Path, volume: VolumeSpec) -> Callable[..., Launcher]:
    """Makes launchers for the backend under test: no GPU, no Ray, a volume of the test's own, unless said otherwise."""

    def make(**fields: Any) -> Launcher:
        return Launcher(
            **{"backend": backend, "checkout": checkout, "volumes": [volume], "ray": None, "gpu": None, **fields}
        )

    return make
