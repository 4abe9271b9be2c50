"""Tests of commits of the run's volumes, with the real client."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, RunState, VolumeSpec
from skyrl_modal.protocol.state import FailureCause
from tests.backends.modal.conftest import ActingOutput, stored_output
from tests.support.loopback import LoopbackModal
from tests.support.loopback.modes import Mode
from tests.support.loopback.records import Call

Make = Callable[..., Launcher]


def test_commits_that_fail_for_some_seconds(
    server: LoopbackModal, launcher: Make, volume: VolumeSpec, tmp_path: Path
) -> None:
    """A run succeeds if the first commits at its end fail. Its files are on the volume."""
    server.mode = Mode()  # with the failures of a mode, the commits would exceed the limit of 30 s
    used = launcher()
    output = ActingOutput("up\n", lambda: server.fail_commits(volume.name, times=4))

    result = used.run('echo up; sleep 1; echo kept > "$SKYRL_DATA/kept"', output=output, quiet=True)

    assert (result.state, result.returncode) == (RunState.SUCCEEDED, 0)
    assert stored_output(used, result, tmp_path) == b"up\n"
    assert (server.volume(volume.name) / "kept").read_text() == "kept\n"


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_files_that_are_not_saved_are_listed(
    server: LoopbackModal, launcher: Make, volume: VolumeSpec, capfd: pytest.CaptureFixture[str]
) -> None:
    """If all commits fail, the result and a message name the files that are not saved, and no others."""
    command = (
        'echo saved > "$SKYRL_DATA/saved"; echo up; sleep 1; mkdir "$SKYRL_DATA/ckpt"; '
        'head -c 3000000 /dev/zero > "$SKYRL_DATA/ckpt/model.pt"'
    )
    output = ActingOutput("up\n", lambda: server.fail_commits(volume.name, times=10_000))

    result = launcher().run(command, output=output)

    assert (result.state, result.cause) == (RunState.FAILED, FailureCause.VOLUME_COMMIT_FAILED)
    assert result.returncode == 125
    assert "failed to publish commit" in result.detail
    assert "/root/data/ckpt/model.pt (3.0 MB)" in result.detail
    assert "/root/data/ckpt/model.pt (3.0 MB)" in capfd.readouterr().err


def test_open_file_at_a_commit(make_server: Callable[..., LoopbackModal], checkout: Path, volume: VolumeSpec) -> None:
    """A commit succeeds if Modal requests a reload after it, which an open file prevents."""
    server = make_server(mode="reload_after_commit")
    used = Launcher(backend="modal", checkout=checkout, volumes=[volume], ray=None, gpu=None, retries=1)
    command = 'exec 3>> "$SKYRL_DATA/open"; echo line >&3; [ "$SKYRL_ATTEMPT" = 2 ]'

    result = used.run(command, output=io.BytesIO(), quiet=True)

    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2)
    assert (server.volume(volume.name) / "open").read_text() == "line\nline\n"


def has_returned(server: LoopbackModal, call: Call) -> bool:
    """Return whether the function had returned in a call's container: Modal's runtime commits again when it exits."""
    outputs = [output for output in server.calls("FunctionPutOutputs") if output.container == call.container]
    return any(output.time < call.time for output in outputs)


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_ranks_commit_in_turns(make_server: Callable[..., LoopbackModal], checkout: Path, volume: VolumeSpec) -> None:
    """Of eight ranks, at most five commit the volume at the same time. The files of all are saved."""
    server = make_server(mode="slow_commits")
    used = Launcher(backend="modal", checkout=checkout, volumes=[volume], ray=None, gpu="H100:8", nodes=8)

    result = used.run("true", quiet=True)

    assert result.state is RunState.SUCCEEDED
    begins = [call.time for call in server.calls("VolumeCommit") if not has_returned(server, call)]
    together = max(sum(begin <= other < begin + server.mode.commit_seconds for other in begins) for begin in begins)
    assert 2 <= together <= 5
    logs = server.volume(volume.name) / ".skyrl_modal" / "runs" / result.run_id / "logs"
    assert sorted(path.name for path in logs.iterdir()) == [str(rank) for rank in range(8)]
