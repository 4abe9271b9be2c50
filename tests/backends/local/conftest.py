"""Fixtures of the local backend's tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skyrl_modal import Launcher, VolumeSpec
from skyrl_modal.backends.local import sandbox
from skyrl_modal.backends.local.volume_folder import volume_folder


@pytest.fixture
def no_namespaces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the test as on a machine on which bubblewrap is not installed."""
    monkeypatch.setattr(sandbox, "find_bubblewrap", list)
    sandbox.forget_searches()
    yield
    sandbox.forget_searches()


@pytest.fixture
def backend() -> str:
    """Return the name of the backend for the fixture ``launcher``."""
    return "local"


@pytest.fixture
def volume_root(volume: VolumeSpec) -> Path:
    """Return the folder of a volume with a checkpoint and a link to it, as a run in a container creates it."""
    folder = volume_folder(volume.name)
    (folder / "ck" / "step_10").mkdir(parents=True)
    (folder / "ck" / "step_10" / "weights").write_bytes(b"w" * 1000)
    (folder / "ck" / "latest").symlink_to("/root/data/ck/step_10")
    return folder


@pytest.fixture
def volume_launcher(launcher: Callable[..., Launcher], volume_root: Path) -> Launcher:
    """Return a launcher with the volume."""
    return launcher()


def paths_below(folder: Path) -> list[str]:
    """Return the paths below a folder, sorted. Links are not followed."""
    return sorted(
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, folders, files in os.walk(folder)
        for name in [*folders, *files]
    )
