"""Times of the output, which both backends record."""

from __future__ import annotations

import time

from skyrl_modal import Run
from skyrl_modal.run.log_filter import read_times
from tests.conftest import MakeLauncher


def test_times_of_the_output_are_recorded(launcher: MakeLauncher) -> None:
    """The file with the times has the positions of the output, to a second."""
    before = time.time()
    result = launcher().run("echo one; sleep 1.5; echo two", quiet=True, output=bytearray().extend)

    times = read_times(Run.attach(result.run_id)._execution)

    first, second = times.time_of(0), times.time_of(len("one\n"))
    assert first is not None
    assert second is not None
    assert before - 1 <= first <= second - 1 <= time.time()


def test_run_without_output(launcher: MakeLauncher) -> None:
    """A run that prints nothing has no times, and no line has one."""
    result = launcher().run("true", quiet=True, output=bytearray().extend)

    assert read_times(Run.attach(result.run_id)._execution).time_of(0) is None
