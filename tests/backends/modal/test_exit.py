"""Tests of the exit of processes that use Modal's client."""

from __future__ import annotations

from collections.abc import Callable

from skyrl_modal import Launcher
from tests.backends.modal.conftest import Script
from tests.support.loopback import LoopbackModal

#: Exits while several threads read the log of a run, and one waits for its result.
FOLLOWER = """
import sys, threading
from skyrl_modal import Run
run = Run.attach(sys.argv[1])
logs = [run.logs(follow=True) for _ in range(4)]
for log in logs:
    next(log)
work = [lambda log=log: list(log) for log in logs] + [run.wait]
for function in work:
    threading.Thread(target=function, daemon=True).start()
print(run.state)
"""


def test_exit_while_requests_wait_prints_nothing(
    server: LoopbackModal, launcher: Callable[..., Launcher], script: Callable[..., Script]
) -> None:
    """A process that exits while requests to Modal wait writes nothing to standard error."""
    run = launcher(ray=None).submit("while :; do echo up; sleep 0.2; done")
    try:
        for follower in [script(FOLLOWER, run.id) for _ in range(4)]:
            assert follower.end() == (0, "running\n", "")
    finally:
        run.cancel(now=True)
