"""One suite for every backend: what a user may rely on, wherever the command runs."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import Launcher, VolumeSpec


@pytest.fixture(params=["local"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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
