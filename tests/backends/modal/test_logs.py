"""Tests of the output of runs on Modal: from output.log when they have ended, from Modal's log before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, Run, RunResult
from tests.support.loopback import LoopbackModal

Make = Callable[..., Launcher]


def run_quietly(launcher: Launcher, command: str) -> RunResult:
    """Run a command and discard its output."""
    return launcher.run(command, quiet=True, output=lambda data: None)


def downloaded_files(server: LoopbackModal, before: int) -> list[str]:
    """Return the names of the files of volumes that were requested after the first ``before`` ones."""
    return [Path(request.path).name for request in server.requests("VolumeGetFile2")[before:]]


def test_stored_output_is_returned_byte_for_byte(server: LoopbackModal, launcher: Make, checkout: Path) -> None:
    """The output of a run that has ended is the content of output.log, also where it is not text."""
    content = bytes(range(256)) * 40_000
    (checkout / "output").write_bytes(content)
    result = run_quietly(launcher(ray=None), "cat output")
    run = Run.attach(result.run_id)

    assert b"".join(run.log_bytes()) == content
    assert b"".join(run.log_bytes(follow=True)) == content
    assert b"".join(run.log_bytes(tail=1)) == content[content.rindex(b"\n") + 1 :]
    assert b"".join(run.log_bytes(follow=True, tail=2)) == content[content[:-256].rindex(b"\n") + 1 :]


def test_last_lines_are_read_without_the_rest(server: LoopbackModal, launcher: Make) -> None:
    """The last lines of a run that has ended, and its result, do not require a download of output.log."""
    result = run_quietly(launcher(ray=None), "seq 300000")
    before = len(server.requests("VolumeGetFile2"))
    run = Run.attach(result.run_id)

    assert list(run.logs(tail=3)) == ["299998", "299999", "300000"]
    assert list(run.logs(tail=3, follow=True)) == ["299998", "299999", "300000"]
    assert run.result().log_tail.endswith("299999\n300000")
    assert "output.log" not in downloaded_files(server, before)
    assert len(list(run.logs(tail=200_000))) == 200_000
    assert downloaded_files(server, before).count("output.log") == 1


@pytest.mark.parametrize("change", ["grown", "removed end"])
def test_end_of_another_output_is_not_used(server: LoopbackModal, launcher: Make, tmp_path: Path, change: str) -> None:
    """If the stored end is missing, or does not belong to the present output.log, output.log itself is read."""
    used = launcher(ray=None)
    result = run_quietly(used, "seq 3")
    folder = server.plane.volumes.find(used.volumes[0].name).data / ".skyrl_modal" / "runs" / result.run_id
    if change == "grown":
        with open(folder / "output.log", "ab") as file:
            file.write(b"4\n")
    else:
        (folder / "output.end").unlink()

    assert list(Run.attach(result.run_id).logs(tail=2)) == (["3", "4"] if change == "grown" else ["2", "3"])


def test_lost_connection_does_not_shorten_the_output(server: LoopbackModal, launcher: Make) -> None:
    """A download that fails is repeated, and continues where it was interrupted."""
    result = run_quietly(launcher(ray=None), "seq 100000")
    run = Run.attach(result.run_id)
    assert run.state.is_final
    server.faults.unavailable(2, names=["VolumeGetFile2", "VolumeListFiles2"])

    assert list(run.logs()) == [str(number) for number in range(1, 100_001)]


@pytest.mark.parametrize("count", [0, 1, 150, 1000])
def test_last_lines_of_an_active_run(server: LoopbackModal, launcher: Make, count: int) -> None:
    """The last lines of a run that has not ended are read from the end of Modal's log, however it is divided."""
    server.plane.logs.chunk = 3
    run = launcher(ray=None).submit("seq 400; printf end; sleep 600")
    try:
        server.wait_for_text("end")
        lines = [*map(str, range(1, 401)), "end"]
        assert list(run.logs(tail=count)) == (lines[-count:] if count else [])
        assert server.requests("AppCountLogs") == []  # the whole log was not fetched
    finally:
        run.cancel(now=True)
