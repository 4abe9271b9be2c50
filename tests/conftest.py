"""What every test shares: folders of its own for all that the library keeps, and the proof that nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
import pytest

from skyrl_modal import Launcher
from tests.support.processes import MARK, wait_for_marked_processes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that start a real Ray a second try, of which the summary tells.

    Ray has time limits of its own (30 s for a node, 10 s for an answer), which it misses now and then where two CPUs
    have a dozen of its processes to start. A fault of ours fails twice.
    """
    for item in items:
        if item.get_closest_marker("ray") is not None:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session", autouse=True)
def own_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Point everything that is kept to a folder of this session's, and fail it where something is left behind."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell without job control starts what it leaves in the background so, and our callers would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    world = tmp_path_factory.mktemp("world")
    value = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, value)
        for name in ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, str(world / name))
        for name in ("SKYRL_REPO_ROOT", "SKYRL_MODAL_BACKEND", "MODAL_GPU", "MODAL_APP_NAME", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        patch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", str(world / "hypothesis"))
        yield
        left = wait_for_marked_processes(value, 15)
        assert not left, f"processes were left behind: {left}"
        scratch = platformdirs.user_cache_path("skyrl_modal") / "scratch"
        assert not scratch.exists() or not list(scratch.iterdir()), f"scratch files were left in {scratch}"


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, with nobody's configuration."""
    environment = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        **{
            f"GIT_{who}_{what}": "test@example.invalid" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        },
    }
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, env=environment)
    return done.stdout.decode()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small SkyRL-like checkout under git, with one ignored file."""
    root = tmp_path / "SkyRL"
    for name, text in {
        "skyrl-gym/skyrl_gym/__init__.py": "",
        "skyrl/__init__.py": "",
        "train.py": "print('training')\n",
        "pyproject.toml": '[project]\nname = "skyrl"\nversion = "0"\ndependencies = ["ray==2.57.0"]\n',
        ".gitignore": "*.secret\n",
        "ignored.secret": "stays\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


MakeLauncher = Callable[..., Launcher]
