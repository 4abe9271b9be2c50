"""Fixtures of all tests: isolated user folders, a checkout, and launchers."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import platformdirs
import pytest

from skyrl_modal import Launcher, VolumeSpec
from tests.support.loopback_mode_option import pytest_addoption, pytest_configure, pytest_itemcollected
from tests.support.processes import MARK, wait_for_marked_processes
from tests.support.subprocess_coverage import measure_local_supervisors

# Hooks of the option --loopback-mode.
__all__ = ["pytest_addoption", "pytest_configure", "pytest_itemcollected"]

# The time of an example depends on the load of the machine. pytest-timeout limits the time of a test.
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")


@pytest.fixture(scope="session", autouse=True)
def isolated_user_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Redirect user folders to a temporary directory, and fail the session if processes or files remain."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        # A shell without job control starts background processes with SIGINT ignored, and nohup ignores SIGHUP. The
        # callers of the tests would inherit that.
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    folder = tmp_path_factory.mktemp("user")
    value = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, value)
        measure_local_supervisors(patch)
        for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, str(folder / name))
        for name in (
            "SKYRL_REPO_ROOT",
            "SKYRL_MODAL_BACKEND",
            "MODAL_GPU",
            "MODAL_APP_NAME",
            "RAY_ADDRESS",
            "SKYRL_MODAL_PROFILE",
        ):
            patch.delenv(name, raising=False)
        patch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", str(folder / "hypothesis"))
        yield
        left = wait_for_marked_processes(value, 15)
        assert not left, f"processes are left: {left}"
        scratch = platformdirs.user_cache_path("skyrl_modal") / "scratch"
        assert not scratch.exists() or not list(scratch.iterdir()), f"scratch files are left in {scratch}"


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, without the configuration of the user and the system, and return its output."""
    environment = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        **{
            f"GIT_{role}_{field}": "test@example.invalid"
            for role in ("AUTHOR", "COMMITTER")
            for field in ("NAME", "EMAIL")
        },
    }
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, env=environment)
    return done.stdout.decode()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a small checkout like SkyRL's in a git repository, with one ignored file."""
    root = tmp_path / "SkyRL"
    for name, text in {
        "skyrl-gym/skyrl_gym/__init__.py": "",
        "skyrl/__init__.py": "",
        "train.py": "print('training')\n",
        "pyproject.toml": '[project]\nname = "skyrl"\nversion = "0"\ndependencies = ["ray==2.57.0"]\n',
        ".gitignore": "*.secret\n",
        "ignored.secret": "excluded\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


MakeLauncher = Callable[..., Launcher]


@pytest.fixture
def volume() -> VolumeSpec:
    """Return a volume that no other test uses."""
    return VolumeSpec(name=f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def launcher(backend: str, checkout: Path, volume: VolumeSpec) -> MakeLauncher:
    """Return a function that makes launchers, by default without GPU and Ray.

    The folder of the tests defines the fixture ``backend``, which returns the name of the backend.
    """

    def make(**fields: Any) -> Launcher:
        return Launcher(
            **{"backend": backend, "checkout": checkout, "volumes": [volume], "ray": None, "gpu": None, **fields}
        )

    return make
