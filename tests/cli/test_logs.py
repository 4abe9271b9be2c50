"""Tests of ``skyrl-modal logs``: the output byte for byte, live, and from the end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from skyrl_modal import Launcher, Run
from tests.conftest import MakeLauncher

LOGS = [sys.executable, "-m", "skyrl_modal", "logs"]

#: Output of each kind that a reader of text could change.
OUTPUTS = {
    "invalid UTF-8": b"\xff\xfe caf\xc3\n\x80\n",
    "progress bar": b"10 %\r20 %\r100 %",
    "line ends": b"a\r\nb\r\x0bc\x0cd\x85e\xe2\x80\xa8f\n\n\n",
    "colors": b"\x1b[31mred\x1b[0m\n",
    "null characters": b"a\0b\n\0",
    "all bytes": bytes(range(256)) * 5000,
    "nothing": b"",
}


@pytest.fixture
def backend() -> str:
    """Return the name of the backend."""
    return "local"


@pytest.fixture
def local(launcher: MakeLauncher) -> Launcher:
    """Return a launcher of runs on this machine without Ray."""
    return launcher(ray=None)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Return a function that starts ``skyrl-modal logs``; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start_logs(*arguments: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([*LOGS, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]

    yield start_logs
    for process in started:
        process.kill()
        process.communicate()


def logs(*arguments: str) -> bytes:
    """Return what ``skyrl-modal logs`` prints."""
    return subprocess.run([*LOGS, *arguments], check=True, stdout=subprocess.PIPE, timeout=100).stdout


def read_until(process: subprocess.Popen[bytes], end: bytes) -> bytes:
    """Read the standard output of a process until it ends with some bytes."""
    assert process.stdout is not None
    received = b""
    while not received.endswith(end):
        data = os.read(process.stdout.fileno(), 1 << 16)
        assert data, f"the program ended after {received!r}"
        received += data
    return received


@pytest.mark.parametrize("name", OUTPUTS)
def test_output_is_printed_byte_for_byte(local: Launcher, checkout: Path, name: str) -> None:
    """The output is printed unchanged, from the beginning, while it is followed, and from the end."""
    (checkout / "output").write_bytes(OUTPUTS[name])
    result = local.run("cat output", quiet=True, output=lambda data: None)
    expected = subprocess.run(["tail", "-n", "2", checkout / "output"], check=True, stdout=subprocess.PIPE).stdout

    assert logs(result.run_id) == OUTPUTS[name]
    assert logs("--follow", result.run_id) == OUTPUTS[name]
    assert logs("-n", "2", result.run_id) == expected
    assert logs("-n", "0", result.run_id) == b""


def test_progress_bar_is_followed_live(local: Launcher, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """Output without a newline is printed immediately, and the end of the run ends the program."""
    run = local.submit("printf '50 %%\\r'; printf '100 %%\\r'; sleep 600")
    following = start("--follow", run.id)
    try:
        assert read_until(following, b"100 %\r") == b"50 %\r100 %\r"
    finally:
        run.cancel(now=True)

    assert following.wait(60) == 0


def test_followed_tail_joins_the_new_output(local: Launcher, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """Existing lines are followed by new output without a gap, also if the last line has not ended."""
    run = local.submit("mkfifo $SKYRL_DATA/fifo; printf 'one\\ntwo\\nthr'; cat $SKYRL_DATA/fifo")
    try:
        assert next(run.log_bytes(follow=True)) == b"one\ntwo\nthr"
        following = start("--follow", "-n", "2", run.id)
        assert read_until(following, b"thr") == b"two\nthr"
        (Path(run.log_path).parents[3] / "fifo").write_bytes(b"ee\nfour\n")
        assert following.communicate(timeout=60)[0] == b"ee\nfour\n"
    finally:
        run.cancel(now=True)
    assert list(run.logs(tail=2)) == ["three", "four"]


def test_closed_pipe_ends_the_program_quietly(local: Launcher, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """A reader that closes the pipe, as ``head``, ends the program with 141 and without a message."""
    result = local.run("seq 500000", quiet=True, output=lambda data: None)
    process = start(result.run_id)
    read_until(process, b"\n")
    process.stdout.close()  # type: ignore[union-attr]  # it is a pipe

    assert process.wait(60) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_closed_pipe_is_noticed_without_output(local: Launcher, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """A program that follows a silent run ends as soon as its reader closes the pipe."""
    run = local.submit("echo up; sleep 600")
    process = start("--follow", run.id)
    try:
        read_until(process, b"up\n")
        process.stdout.close()  # type: ignore[union-attr]  # it is a pipe
        assert process.wait(60) == 141
    finally:
        run.cancel(now=True)


@pytest.mark.parametrize("remove", [False, True])
def test_output_that_another_program_changes(
    local: Launcher, start: Callable[..., subprocess.Popen[bytes]], remove: bool
) -> None:
    """A log that becomes shorter or is removed while it is followed is reported; the end of the run is awaited."""
    run = local.submit("echo a long line; sleep 600")
    process = start("--follow", run.id)
    try:
        read_until(process, b"a long line\n")
        path = Path(run.log_path)
        if remove:
            path.unlink()
        else:
            path.write_bytes(b"new\n")
        assert process.stderr is not None
        assert b"warning: output.log was changed by another program" in process.stderr.readline()
        if not remove:
            assert read_until(process, b"new\n") == b"new\n"
    finally:
        run.cancel(now=True)

    assert process.wait(60) == 0


def peak_memory(arguments: Sequence[str]) -> int:
    """Return how many MiB of memory ``skyrl-modal logs`` uses at most."""
    command = [sys.executable, "-c", MEMORY, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=100)
    [found] = re.findall(rb"peak (\d+)", done.stderr)
    return int(found) >> 10


#: Runs the command line, and prints the memory that this process has used at most.
MEMORY = """
import resource, sys
from skyrl_modal import cli
sys.argv[:1] = ["skyrl-modal", "logs"]
try:
    cli.main()
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


@pytest.mark.parametrize("newline", [True, False])
def test_memory_does_not_depend_on_the_output(local: Launcher, newline: bool) -> None:
    """200 MB of output need as little memory as none, whatever the number of lines, also without newlines."""
    run: Run = local.submit("true")
    run.wait()
    line = b"x" * 49 + (b"\n" if newline else b"\r")
    base = peak_memory(["-n", "0", run.id])
    with open(run.log_path, "wb") as file:
        for _ in range(200):
            file.write(line * 20_000)

    for arguments in ([run.id], ["-n", "10000000", run.id], ["-f", "-n", "3000000", run.id]):
        assert peak_memory(arguments) < base + 16
