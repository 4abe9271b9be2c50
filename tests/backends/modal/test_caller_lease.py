"""Tests of the lease of the process that owns a run."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, Run, RunState, SpecError, VolumeSpec
from skyrl_modal.protocol.state import FailureCause, StopReason
from tests.backends.modal.conftest import Script
from tests.support.commands import saving_command
from tests.support.leases import lease_keys, wait_for_end
from tests.support.loopback import LoopbackModal
from tests.support.loopback.modes import Mode

Make = Callable[..., Launcher]

CALLER = """
import sys, threading
from skyrl_modal import Launcher, VolumeSpec
checkout, volume, lease, command, where = sys.argv[1:]
launcher = Launcher(checkout=checkout, volumes=[VolumeSpec(name=volume)], ray=None, gpu=None, lease=lease, grace=20)
if where == "thread":
    started = threading.Event()
    options = {"output": lambda data: started.set()}
    threading.Thread(target=launcher.run, args=[command], kwargs=options, daemon=True).start()
    started.wait()
    sys.exit()
if where == "map":
    launcher.map([command, command], quiet=True)
    print("ended")
result = launcher.run(command)
print("ended", result.returncode, result.state, result.cause, result.stop_reason, flush=True)
"""


class StartCaller:
    """Starts a process that owns a run.

    Args:
        script: Starts a script.
        checkout: The checkout.
        volume: The run's volume.
    """

    def __init__(self, script: Callable[..., Script], checkout: Path, volume: VolumeSpec) -> None:
        self._start = lambda *arguments: script(CALLER, str(checkout), volume.name, *arguments)

    def __call__(self, command: str, *, lease: float = 600, where: str = "main") -> Script:
        """Start it."""
        return self._start(str(lease), command, where)


@pytest.fixture
def caller(script: Callable[..., Script], checkout: Path, volume: VolumeSpec) -> StartCaller:
    """Return a function that starts a process that owns a run."""
    return StartCaller(script, checkout, volume)


LINES = "for i in $(seq 1 30); do echo line $i; sleep 0.5; done; exit 4"


@pytest.mark.slow
def test_run_survives_an_outage_within_its_lease(server: LoopbackModal, caller: StartCaller) -> None:
    """An outage that is longer than Modal allows for the client of an app does no harm, and loses no output."""
    process = caller(LINES, lease=60)
    process.wait_for("line 3")

    with server.offline():
        server.wait_until(lambda: all(not app.connected for app in server.plane.apps.apps.values()))
        server.wait_for_text("line 20\n")
    code, out, err = process.end()

    lines = [line for line in out.splitlines() if line.startswith("line")]
    assert lines == [f"line {number}" for number in range(4, 31)]
    assert (code, out.splitlines()[-1]) == (0, "ended 4 failed command_failed None")
    assert "incomplete" not in err
    wait_for_end(server)
    assert lease_keys(server) == []


@pytest.mark.slow
def test_suspended_caller_within_its_lease(server: LoopbackModal, caller: StartCaller) -> None:
    """A caller that is suspended for less than its lease receives all output afterwards."""
    process = caller(LINES, lease=60)
    process.wait_for("line 3")

    process.process.send_signal(signal.SIGSTOP)
    server.wait_until(lambda: all(not app.connected for app in server.plane.apps.apps.values()))
    server.wait_for_text("line 30\n")
    process.process.send_signal(signal.SIGCONT)
    _, out, _ = process.end()

    lines = [line for line in out.splitlines() if line.startswith("line")]
    assert lines == [f"line {number}" for number in range(4, 31)]
    assert out.splitlines()[-1] == "ended 4 failed command_failed None"


def test_suspended_caller_learns_that_its_lease_expired(server: LoopbackModal, caller: StartCaller) -> None:
    """The run of a caller that was suspended for too long is stopped with its grace period, with the cause."""
    process = caller(saving_command(path="/root/data/saved"), lease=8)
    process.wait_for("up")

    process.process.send_signal(signal.SIGSTOP)
    server.wait_for_text("saving\n")
    server.wait_for_no_container()
    process.process.send_signal(signal.SIGCONT)
    code, out, err = process.end()

    assert (code, out.splitlines()) == (0, ["saving", "ended 3 cancelled lease_expired lease_expired"])
    assert "the caller has sent no sign of life" in " ".join(err.split())
    wait_for_end(server)


def test_lease_of_a_run_that_has_ended_is_removed(make_server: Callable[..., LoopbackModal], checkout: Path) -> None:
    """No lease is left, also if its caller was due to renew it while the volumes were committed."""
    server = make_server(mode=Mode(commit_seconds=2.5))

    Launcher(backend="modal", checkout=checkout, ray=None, gpu=None, lease=12).run("true", quiet=True)

    assert lease_keys(server) == []


@pytest.mark.slow
def test_removed_lease_is_written_again(server: LoopbackModal, caller: StartCaller) -> None:
    """A run continues if the Dict with the leases is cleared, since its caller creates its entry again."""
    process = caller("echo up; sleep 15; exit 4", lease=6)
    process.wait_for("up")

    for leases in server.plane.dicts.dicts.values():
        leases.entries.clear()

    assert process.end()[1].splitlines()[-1] == "ended 4 failed command_failed None"


def test_killed_caller(server: LoopbackModal, caller: StartCaller, launcher: Make, tmp_path: Path) -> None:
    """The run of a caller that was killed is stopped when the lease has expired, and its app ends."""
    process = caller(saving_command(path="/root/data/saved"), lease=8)
    process.wait_for("up")

    process.process.kill()
    _, _, err = process.end()
    run_id = next(line.split()[3].rstrip(":") for line in err.splitlines() if "| run " in line)
    result = Run.attach(run_id).wait(60)

    assert (result.state, result.returncode) == (RunState.CANCELLED, 3)
    assert (result.cause, result.stop_reason) == (FailureCause.LEASE_EXPIRED, StopReason.LEASE_EXPIRED)
    assert launcher().pull("/root/data/saved", tmp_path / "saved").read_text() == "yes\n"
    wait_for_end(server)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_the_run_immediately(server: LoopbackModal, caller: StartCaller, number: signal.Signals) -> None:
    """A signal that ends the caller ends the run with its grace period, and nothing waits for the lease."""
    process = caller(saving_command(path="/root/data/saved"))
    process.wait_for("up")

    begin = time.monotonic()
    process.process.send_signal(number)
    code, out, err = process.end()

    assert (code, out.splitlines()) == (-number, ["saving"])
    assert time.monotonic() - begin < 30
    assert "cancelled, exit code 3" in err
    wait_for_end(server)
    assert lease_keys(server) == []


@pytest.mark.slow
def test_signal_while_uploading(server: LoopbackModal, caller: StartCaller) -> None:
    """SIGTERM during the upload ends the caller by the signal; its app ends, and the function was not called."""
    server.faults.hold("MountGetOrCreate")
    process = caller("true")
    process.wait_for("building missing layers of the image", "stderr")
    server.wait_for_call("MountGetOrCreate", 1)

    process.process.send_signal(signal.SIGTERM)
    code, out, _ = process.end()

    assert (code, out, server.function_calls) == (-signal.SIGTERM, "", [])
    wait_for_end(server)


@pytest.mark.slow
def test_signal_ends_all_runs_of_a_batch(server: LoopbackModal, caller: StartCaller) -> None:
    """SIGTERM stops the runs of ``Launcher.map`` with their grace periods; then the caller ends by the signal."""
    process = caller(saving_command(), where="map")
    every = server.plane.scheduler.containers
    server.wait_until(lambda: sum(container.state == "busy" for container in every.values()) == 2)
    server.wait_for_text("up\n")

    process.process.send_signal(signal.SIGTERM)
    code, out, _ = process.end()

    assert (code, out) == (-signal.SIGTERM, "")
    assert len(server.function_calls) == 2
    wait_for_end(server)


@pytest.mark.slow
def test_exit_of_the_caller_ends_the_run_immediately(server: LoopbackModal, caller: StartCaller) -> None:
    """A caller that exits while another thread executes the run cancels it."""
    process = caller(saving_command(path="/root/data/saved"), where="thread")
    code, _, _ = process.end()

    assert code == 0
    server.wait_for_text("saving\n")
    server.wait_for_no_container()
    [call] = server.function_calls
    assert call.inputs[0].cancelled


def test_submitted_run_has_no_lease(server: LoopbackModal, launcher: Make) -> None:
    """A submitted run has no owner: it renews no lease, and its container watches none."""
    run = launcher(lease=1).submit("sleep 4; exit 3")

    assert run.wait(60).returncode == 3
    assert server.calls("DictUpdate", container=False) == []
    assert lease_keys(server) == []


def test_run_without_a_lease(server: LoopbackModal, launcher: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """If the lease cannot be written, the app is not detached, and a warning is reported."""
    server.faults.unavailable(calls=10_000, names=["DictGetOrCreate"], side="client")

    result = launcher().run("exit 3")

    assert result.returncode == 3
    assert "the run has no lease" in " ".join(capfd.readouterr().err.split())
    assert [app.detached for app in server.apps] == [False]


@pytest.mark.parametrize(("value", "seconds"), [("10m", 600.0), (30, 30.0), ("1h30m", 5400.0)])
def test_lease_has_the_values_of_a_timeout(value: float | str, seconds: float) -> None:
    """A lease is a number of seconds, or text."""
    assert Launcher(lease=value).lease == seconds
    assert Launcher().lease == 600.0


def test_invalid_lease_is_refused() -> None:
    """A lease must be above 0."""
    with pytest.raises(SpecError, match="lease"):
        Launcher(lease=0)
