"""The checkout of the tests of resolutions and findings."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyrl_modal.skyrl.resolution import sandbox
from tests.skyrl.checkout_files import create_checkout


@pytest.fixture(scope="session")
def skyrl_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout in the form of SkyRL's. The tests do not change it."""
    return create_checkout(tmp_path_factory.mktemp("checkout") / "SkyRL")


@pytest.fixture(autouse=True)
def time_for_a_busy_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give scripts that end by themselves more time than on a user's machine, where nothing else runs."""
    if not request.node.path.name.startswith("test_hostile"):
        monkeypatch.setattr(sandbox, "TIMEOUT", 30.0)
