"""What every test shares: folders of its own for all that the library keeps, and the proof that nothing is left."""

from __future__ import annotations

import os
import select
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
import pytest

from skyrl_modal import Launcher

#: A variable that every process started by these tests inherits, with a value of this session's own.
MARK = "SKYRL_MODAL_TEST_SESSION"


def marked_processes(value: str) -> dict[int, str]:
    """Living processes, other than this one and those it was started by, that carry this session's mark."""
    me, found = os.getpid(), {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == me:
            continue
        try:
            environment = Path(entry.path, "environ").read_bytes()
            command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if f"{MARK}={value}".encode() in environment.split(b"\0"):
            found[int(entry.name)] = command
    return found


def wait_for_none(value: str, seconds: float) -> dict[int, str]:
    """Wait until no marked process lives; gives those that still do."""
    deadline = time.monotonic() + seconds
    while left := marked_processes(value):
        handles = []
        for pid in left:
            try:
                handles.append(os.pidfd_open(pid))
            except ProcessLookupError:
                continue
        poller = select.poll()
        for handle in handles:
            poller.register(handle, select.POLLIN)
        remaining = deadline - time.monotonic()
        if handles and remaining > 0:
            poller.poll(remaining * 1000)
        for handle in handles:
            os.close(handle)
        if remaining <= 0:
            return left
    return {}


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
        left = wait_for_none(value, 15)
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
