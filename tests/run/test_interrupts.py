"""Tests of the signals that stop a run, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

Start = Callable[[str, int], subprocess.Popen[str]]
PROGRAM = """
import signal, sys, threading
from skyrl_modal.run.interrupts import InterruptEvent, catch_interrupts
exec(sys.argv[1])
with catch_interrupts() as interrupts:
    print("ready", flush=True)
    for _ in range(int(sys.argv[2])):
        event = interrupts.events.get()
        print(event.count, event.signal_name, flush=True)
    print("end of the block", flush=True)
print("continued", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, flush=True)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts the program: a statement before the block, and the number of events to wait for."""
    started: list[subprocess.Popen[str]] = []

    def start(statement: str, events: int) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", PROGRAM, statement, str(events)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Wait for the exit, and return the exit status and the lines of the rest of standard output."""
    out, _ = process.communicate(timeout=60)
    return process.returncode, out.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_process_ends_by_its_signal_after_the_block(start: Start, number: signal.Signals) -> None:
    """The block handles the signal as an event and continues; then the process ends by the signal."""
    process = start("", 1)

    process.send_signal(number)

    assert end(process) == (-number, [f"1 {number.name}", "end of the block"])


def test_second_signal_is_a_second_event(start: Start) -> None:
    """A second signal is counted, so that the run is killed; the process ends by the first one."""
    process = start("", 2)
    process.send_signal(signal.SIGHUP)
    assert next(iter(process.stdout or ())) == "1 SIGHUP\n"

    process.send_signal(signal.SIGTERM)

    assert end(process) == (-signal.SIGHUP, ["2 SIGHUP", "end of the block"])


def test_ctrl_c_does_not_end_the_process(start: Start) -> None:
    """Ctrl-C has no name, and the caller of the block decides how the process ends. Default handlers are restored."""
    process = start("", 1)

    process.send_signal(signal.SIGINT)

    assert end(process) == (0, ["1 ", "end of the block", "continued True"])


@pytest.mark.parametrize(
    "statement",
    [
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)",  # nohup
        "signal.signal(signal.SIGHUP, lambda *_: print('handled', flush=True))",
    ],
)
def test_handlers_of_the_application_are_kept(start: Start, statement: str) -> None:
    """A signal that the application ignores or handles does not stop the run."""
    process = start(statement, 1)

    process.send_signal(signal.SIGHUP)
    if "print" in statement:
        assert next(iter(process.stdout or ())) == "handled\n"
    process.send_signal(signal.SIGINT)

    assert end(process)[0] == 0
