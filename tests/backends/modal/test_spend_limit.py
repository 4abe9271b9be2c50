"""Tests of an account that has reached its spend limit: every verb ends with the cause and the remedy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skyrl_modal import BackendUnavailable, Launcher, Run, RunState
from skyrl_modal.doctor import run_checks
from skyrl_modal.protocol.state import FailureCause
from tests.support.loopback import LoopbackModal

Make = Callable[..., Launcher]
REMEDY = r"(?s)(spend limit|is disabled).*waiting does not help.*modal\.com/settings"
RUNNING = "trap 'echo saved; exit 9' INT; echo up; while :; do sleep 0.1; done"


@pytest.fixture
def running(server: LoopbackModal, launcher: Make) -> Iterator[Run]:
    """Return a submitted run whose command runs."""
    run = launcher(grace=2).submit(RUNNING)
    assert next(iter(run.logs(follow=True))) == "up"
    yield run
    server.mode = "recorded"


def refuse(server: LoopbackModal, limit: str) -> None:
    """Stop all apps, and refuse work (exceeded) or nearly everything (disabled)."""
    server.exceed_spend_limit()
    if limit == "disabled":
        server.mode = "disabled"


@pytest.mark.parametrize("limit", ["exceeded", "disabled"])
def test_run_ends_at_the_spend_limit(server: LoopbackModal, launcher: Make, limit: str) -> None:
    """A run that is followed ends within seconds, with the cause and the remedy, and keeps its output."""
    output = bytearray()

    def receive(data: bytes) -> None:
        output.extend(data)
        if data == b"up\n":
            threading.Thread(target=refuse, args=(server, limit)).start()

    begin = time.monotonic()
    result = launcher(grace=2).run(RUNNING, output=receive, quiet=True)
    server.mode = "recorded"

    assert (result.state, result.cause) == (RunState.FAILED, FailureCause.SPEND_LIMIT)
    assert result.returncode == 125
    assert "modal.com/settings" in result.detail
    assert output.startswith(b"up\n")
    assert time.monotonic() - begin < 60


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["exceeded", "disabled"])
def test_submitted_run_ends_at_the_spend_limit(server: LoopbackModal, running: Run, limit: str) -> None:
    """The process that has submitted a run, and waits for it, receives the result."""
    refuse(server, limit)

    result = running.wait(60)

    assert (result.state, result.cause) == (RunState.FAILED, FailureCause.SPEND_LIMIT)
    assert result.returncode == 125


@pytest.mark.slow
def test_result_before_the_spend_limit_is_kept(server: LoopbackModal, launcher: Make) -> None:
    """A run that ended before the limit was reached has its own result, if its volume can be read."""
    run = launcher().submit("exit 3")
    assert run.wait(60).returncode == 3

    refuse(server, "exceeded")
    result = Run.attach(run.id).wait(60)
    server.mode = "recorded"

    assert (result.state, result.cause, result.returncode) == (RunState.FAILED, FailureCause.COMMAND_FAILED, 3)


def test_disabled_workspace_in_each_verb(server: LoopbackModal, launcher: Make, running: Run, tmp_path: Path) -> None:
    """Each verb raises BackendUnavailable with the cause and the remedy, and none waits."""
    used = launcher()
    refuse(server, "disabled")
    verbs: dict[str, Callable[[], object]] = {
        "run": lambda: used.run("true", quiet=True),
        "submit": lambda: used.submit("true"),
        "state": lambda: Run.attach(running.id).state,
        "wait": lambda: Run.attach(running.id).wait(60),
        "logs": lambda: list(Run.attach(running.id).logs()),
        "cancel": lambda: Run.attach(running.id).cancel(),
        "pull": lambda: used.pull("/root/data/x", tmp_path / "x"),
        "ls": lambda: used.ls("/root/data"),
        "push": lambda: used.push(__file__, "/root/data/y"),
    }

    for name, verb in verbs.items():
        begin = time.monotonic()
        with pytest.raises(BackendUnavailable, match=REMEDY):
            verb()
        assert time.monotonic() - begin < 30, name


def test_spend_limit_refuses_new_runs(server: LoopbackModal, launcher: Make) -> None:
    """A run that cannot be started raises BackendUnavailable with the cause and the remedy."""
    server.mode = "spend_limit"
    for verb in (launcher().run, launcher().submit):
        with pytest.raises(BackendUnavailable, match=REMEDY):
            verb("true")
    server.mode = "recorded"


@pytest.mark.parametrize(("mode", "is_ok"), [("recorded", True), ("disabled", False)])
def test_doctor_shows_a_disabled_workspace(server: LoopbackModal, mode: str, is_ok: bool) -> None:
    """The doctor asks Modal whether it accepts requests of the account."""
    server.mode = mode
    [check] = [check for check in run_checks() if check.subject == "modal account"]
    server.mode = "recorded"

    assert check.ok is is_ok
    assert is_ok or "modal.com/settings" in check.detail
