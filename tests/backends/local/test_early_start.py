"""Processes of a run that are started while it is planned: they are used if the plan is as expected, else they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.soak import descendants
from skyrl_modal import Launcher, SpecError, VolumeSpec
from skyrl_modal.backends.local.backend import LocalBackend
from skyrl_modal.backends.local.scratch import scratch_root
from skyrl_modal.errors import BackendUnavailable
from skyrl_modal.protocol.job import Job
from skyrl_modal.spec.run_spec import RunSpec
from skyrl_modal.user_folders import data_folder, state_folder

#: A process that is killed while it plans a run whose processes have been started. Argument: the checkout.
KILLED_CALLER = """
import os, signal, sys
from skyrl_modal import Launcher
from skyrl_modal.backends.local.backend import LocalBackend
class Killed(LocalBackend):
    def check(self, job, spec):
        print(*os.listdir(sys.argv[2]), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
Launcher(backend=Killed(), checkout=sys.argv[1], gpu=None, ray=None).run("true", quiet=True)
"""


class ObservingBackend(LocalBackend):
    """A local backend that records which scratch folders exist while a run is planned, and calls a function then."""

    def __init__(self) -> None:
        self.scratch: list[list[str]] = []
        self.while_planning: Callable[[], object] = lambda: None

    def check(self, job: Job, spec: RunSpec) -> Sequence[str]:
        """Record the folders, and check the run."""
        self.scratch.append(os.listdir(scratch_root()))
        self.while_planning()
        return super().check(job, spec)


@pytest.fixture
def backend() -> ObservingBackend:
    """Return a backend that records what exists while runs are planned."""
    return ObservingBackend()


@pytest.fixture
def launcher(backend: ObservingBackend, checkout: Path) -> Launcher:
    """Return a launcher whose next run is expected to have the files of the last ones."""
    made = Launcher(backend=backend, checkout=checkout, gpu=None, ray=None)
    for _ in range(2):
        made.run("true", quiet=True, check=True)
    backend.scratch.clear()
    return made


def output_of(launcher: Launcher, command: str) -> str:
    """Run a command, and return its output."""
    parts: list[bytes] = []
    launcher.run(command, output=parts.append, quiet=True, check=True)
    return b"".join(parts).decode()


def assert_nothing_remains() -> None:
    """Assert that no process and no folder of a run exists, except for the records of those that have ended."""
    assert descendants(os.getpid()) == []
    assert os.listdir(scratch_root()) == []


def test_unchanged_files_start_early(launcher: Launcher, backend: ObservingBackend) -> None:
    """The third run with the same files has its processes while it is planned, and its own id, command and output."""
    results = [launcher.run("echo $SKYRL_RUN_ID; exit 3", output=lambda data: None, quiet=True) for _ in range(2)]

    assert [len(names) for names in backend.scratch] == [1, 1]
    assert [names[0] for names in backend.scratch] == [result.run_id for result in results]
    assert [result.returncode for result in results] == [3, 3]
    assert [Path(result.log_path).read_text() for result in results] == [f"{result.run_id}\n" for result in results]
    assert_nothing_remains()


def test_edited_files_are_used(launcher: Launcher, backend: ObservingBackend, checkout: Path) -> None:
    """A run has the files as they are when it starts: edited, with the same size, restored times, added or removed."""
    path = checkout / "train.py"
    for text in ("print('changed')\n", "print('CHANGED')\n"):
        times = path.stat()
        path.write_text(text)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        for _ in range(3):
            assert output_of(launcher, "cat train.py") == text
    (checkout / "new.py").write_text("new")
    assert output_of(launcher, "cat new.py") == "new"
    (checkout / "new.py").unlink()
    assert output_of(launcher, "ls new.py 2>/dev/null || echo removed") == "removed\n"

    assert_nothing_remains()


def test_no_early_start_while_files_are_edited(launcher: Launcher, backend: ObservingBackend, checkout: Path) -> None:
    """A run starts nothing early after a run with other files: the user is probably editing them."""
    for number in range(3):
        (checkout / "train.py").write_text(f"print({number})\n")
        assert output_of(launcher, "cat train.py") == f"print({number})\n"

    assert [len(names) for names in backend.scratch] == [1, 0, 0]


def test_changed_environment_is_used(
    launcher: Launcher, backend: ObservingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that is set while the run is planned is seen by its command."""
    backend.while_planning = lambda: monkeypatch.setenv("SOME_VARIABLE", "new")

    assert output_of(launcher, "echo $SOME_VARIABLE") == "new\n"
    assert_nothing_remains()


def test_failed_plan_leaves_nothing(launcher: Launcher, backend: ObservingBackend) -> None:
    """If the run is refused, the processes that were started for it end, and their folders are removed."""

    def refuse() -> None:
        raise BackendUnavailable("local", "refused")

    backend.while_planning = refuse
    before = sorted(os.listdir(state_folder() / "runs"))

    with pytest.raises(BackendUnavailable):
        launcher.run("true", quiet=True)
    with pytest.raises(SpecError):
        launcher.run("a\0b", quiet=True)

    assert len(backend.scratch[0]) == 1
    assert sorted(os.listdir(state_folder() / "runs")) == before
    assert_nothing_remains()


def test_killed_processes_are_replaced(launcher: Launcher, backend: ObservingBackend) -> None:
    """If the processes are killed while the run is planned, it is started as if they had not existed."""

    def kill_all() -> None:
        for pid in descendants(os.getpid()):
            os.kill(pid, signal.SIGKILL)

    backend.while_planning = kill_all

    assert output_of(launcher, "echo hello") == "hello\n"
    assert len(backend.scratch[0]) == 1
    assert_nothing_remains()


def test_killed_caller_leaves_nothing(launcher: Launcher, checkout: Path) -> None:
    """If the caller is killed while it plans a run, the processes of the run end and remove their folder."""
    argv = [sys.executable, "-c", KILLED_CALLER, str(checkout), str(scratch_root())]

    done = subprocess.run(argv, capture_output=True, text=True, check=False)

    assert done.returncode == -signal.SIGKILL
    assert len(done.stdout.split()) == 1  # its processes had been started
    deadline = time.monotonic() + 30
    while os.listdir(scratch_root()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert os.listdir(scratch_root()) == []


def test_no_volume_is_created_early(launcher: Launcher, backend: ObservingBackend, checkout: Path) -> None:
    """A volume that does not exist, and may not be created, is refused, and does not exist afterwards."""
    volume = VolumeSpec(name="missing", create_if_missing=False)
    other = Launcher(backend=backend, checkout=checkout, gpu=None, ray=None, volumes=[volume])

    with pytest.raises(SpecError, match="does not exist"):
        other.run("true", quiet=True)

    assert backend.scratch == [[]]
    assert not (data_folder() / "volumes" / "missing").exists()


def test_submitted_runs_and_secrets_do_not_start_early(
    launcher: Launcher, backend: ObservingBackend, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run without an owner, and one whose environment is not known before its plan, start after it."""
    monkeypatch.setenv("SOME_TOKEN", "some-value")
    launcher.submit("true").wait()
    with_secret = Launcher(backend=backend, checkout=checkout, gpu=None, ray=None, secrets=["SOME_TOKEN"])
    assert output_of(with_secret, "echo ${#SOME_TOKEN}") == "10\n"

    assert backend.scratch == [[], []]
