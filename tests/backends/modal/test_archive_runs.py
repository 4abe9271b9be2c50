"""Tests of runs whose files are sent as archives, with the real client and containers of the loopback."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, RunState
from skyrl_modal.protocol.file_archive import ARCHIVE_FOLDER
from skyrl_modal.protocol.state import FailureCause
from tests.backends.modal.conftest import ActingOutput
from tests.support.loopback import LoopbackModal

Make = Callable[..., Launcher]

#: Prints type, permissions, target and path of each entry, and the content of each file, in a fixed order.
LIST = "find . -printf '%y %m %l %P\\0' | sort -z; find . -type f -print0 | sort -z | xargs -0 sha256sum -z"


def run(launcher: Launcher, command: str) -> bytes:
    """Return the output of a command, which must succeed."""
    output = io.BytesIO()
    result = launcher.run(command, output=output, quiet=True)
    assert (result.state, result.returncode) == (RunState.SUCCEEDED, 0), (result.detail, output.getvalue())
    return output.getvalue()


@pytest.mark.parametrize("mode", [None, "read_only_mounts"])
def test_container_has_the_same_tree(server: LoopbackModal, launcher: Make, checkout: Path, mode: str | None) -> None:
    """Permissions, links and unusual names are the same as on the local backend, and the tree can be written to."""
    server.mode = mode
    (checkout / "run.sh").write_text("#!/bin/sh\necho started\n")
    (checkout / "run.sh").chmod(0o755)
    (checkout / "folder-link").symlink_to("skyrl")
    (checkout / "broken").symlink_to("missing")
    for name in ("with space", "new\nline", "-rf", "ünï"):
        (checkout / name).write_text(name)
    command = f"./run.sh && {LIST} && touch new skyrl/new && echo x >> train.py"

    assert run(launcher(), command) == run(launcher(backend="local"), command)


def sent_files(server: LoopbackModal, launcher: Launcher, command: str) -> tuple[set[str], set[str]]:
    """Run a command. Return the SHA-256 of the archives of its files, and those that were uploaded for it."""
    mounts, puts = len(server.calls("MountGetOrCreate")), len(server.calls("MountPutFile"))
    run(launcher, command)
    files = [file for call in server.calls("MountGetOrCreate")[mounts:] for file in call.request.files]
    archives = {file.sha256_hex for file in files if file.filename.startswith(f"{ARCHIVE_FOLDER}/")}
    uploaded = {call.request.sha256_hex for call in server.calls("MountPutFile")[puts:]}
    assert not [file.filename for file in files if file.filename.startswith("/root/SkyRL")]
    return archives, uploaded & archives


def test_later_run_sends_nothing(server: LoopbackModal, launcher: Make, checkout: Path) -> None:
    """Unchanged files are neither sent again nor listed one by one. After an edit, only its archive is sent."""
    for number in range(600):
        (checkout / f"file{number}.py").write_bytes(random.Random(number).randbytes(1000))
    first, uploaded = sent_files(server, launcher(), "test -e file599.py")
    assert len(first) == 2
    assert uploaded == first

    second, uploaded = sent_files(server, launcher(), "test -e file599.py")
    assert (second, uploaded) == (first, set())

    (checkout / "file7.py").write_text("edited")
    third, uploaded = sent_files(server, launcher(), "grep edited file7.py && test -e file599.py")
    assert len(first & third) == 1
    assert uploaded == third - first


def test_damaged_archive_fails_the_run(server: LoopbackModal, launcher: Make, checkout: Path) -> None:
    """If the container receives other bytes, the run fails with a cause, and is not started again."""
    run(launcher(), "true")
    archives = [path for path in (server.folder / "files").iterdir() if b"skyrl-modal files" in path.read_bytes()[-40:]]
    assert archives
    for path in archives:
        path.write_bytes(b"x" + path.read_bytes()[1:])

    result = launcher(retries=3).run("echo started", output=(output := io.BytesIO()), quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert result.cause is FailureCause.FILES_NOT_UNPACKED
    assert result.attempts == 0
    assert output.getvalue() == b""


def test_preempted_run_has_its_files_again(server: LoopbackModal, launcher: Make) -> None:
    """The container after a preemption has the files as they were sent."""
    command = (
        "trap 'exit 0' INT TERM; cat train.py; [ ! -e /root/data/seen ] || exit 0; touch /root/data/seen;"
        " echo changed > train.py; echo ready; sleep 600 & wait"
    )
    output = ActingOutput("ready\n", server.preempt)

    result = launcher().run(command, output=output, quiet=True)

    assert result.state is RunState.SUCCEEDED
    assert output.getvalue().count(b"print('training')\n") == 2
    assert b"changed\n" not in output.getvalue()
