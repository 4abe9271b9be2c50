"""The checkout of the tests of resolutions and findings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.skyrl.checkout_files import create_checkout


@pytest.fixture(scope="session")
def skyrl_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout in the form of SkyRL's. The tests do not change it."""
    return create_checkout(tmp_path_factory.mktemp("checkout") / "SkyRL")
