"""Tests of leases: of a run's container, and of the process that owns a run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, Run, RunState, SpecError, VolumeSpec
from skyrl_modal.backends.modal.limits import MAX_ENDING_GRACE
from skyrl_modal.protocol.leases import caller_key
from skyrl_modal.protocol.state import FailureCause, StopReason
from tests.backends.modal.conftest import ActingOutput, Script, stored_output
from tests.support.commands import saving_command
from tests.support.loopback import LoopbackModal
from tests.support.loopback.modes import Mode

Make = Callable[..., Launcher]
MakeServer = Callable[..., LoopbackModal]

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


@pytest.fixture
def late_launcher(checkout: Path, volume: VolumeSpec) -> Make:
    """Return a function that makes launchers, after the test has started its control plane."""
    defaults = {"backend": "modal", "checkout": checkout, "volumes": [volume], "ray": None, "gpu": None}
    return lambda **fields: Launcher(**{**defaults, **fields})


def keys(server: LoopbackModal) -> list[bytes]:
    """Return the serialized keys of all leases."""
    return [key for found in server.plane.dicts.dicts.values() for key in found.entries]


def has_caller(server: LoopbackModal) -> bool:
    """Return whether a caller has a lease."""
    return any(caller_key("").encode() in key for key in keys(server))


def wait_for_end(server: LoopbackModal) -> None:
    """Wait until all containers have exited and all apps are stopped."""
    server.wait_for_no_container()
    apps = server.apps
    server.wait_until(lambda: all(app.stopped_at for app in apps), what="an app has not ended")


# -- containers ------------------------------------------------------------------------------------------------------


def saving(seconds: float) -> str:
    """Return a command that saves for some seconds after SIGINT, and continues from what it has saved."""
    return (
        'f=$SKYRL_DATA/saved; [ -e "$f" ] && { echo "resumed $SKYRL_ATTEMPT"; exit 5; }; '
        f"trap 'echo saving; sleep {seconds}; touch \"$f\"; echo saved; exit 9' INT; "
        "echo up; while :; do sleep 0.1; done"
    )


def output_lines(used: Launcher, result: object, folder: Path) -> list[str]:
    """Return the lines of the command in output.log."""
    text = stored_output(used, result, folder).decode()  # type: ignore[arg-type]  # a RunResult
    return [line for line in text.splitlines() if not line.startswith("skyrl-modal |")]


@pytest.mark.parametrize("delay", [0.0, 0.8, 3.2])
def test_new_container_waits_for_the_old_one(
    make_server: MakeServer, late_launcher: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str], delay: float
) -> None:
    """The old container saves undisturbed, whenever its replacement starts. Live output and log have both parts."""
    server, used = make_server(mode=Mode(replacement_delay=delay)), late_launcher(grace=20)
    output = ActingOutput("up\n", server.preempt)

    result = used.run(saving(7), output=output)

    assert (result.state, result.returncode, result.attempts) == (RunState.FAILED, 5, 1)
    assert output_lines(used, result, tmp_path) == ["up", "saving", "saved", "resumed 1"]
    assert output.getvalue() == stored_output(used, result, tmp_path / "again")
    messages = capfd.readouterr().err
    assert delay or "waiting for the earlier container" in messages
    assert "incomplete" not in messages
    assert keys(server) == []


def test_second_preemption_of_a_waiting_container(make_server: MakeServer, late_launcher: Make, tmp_path: Path) -> None:
    """A container that is preempted while it waits is replaced, and the run continues in the third one."""
    server, used = make_server(mode=Mode(replacement_delay=0.2)), late_launcher(grace=20)

    def preempt_twice() -> None:
        first = server.wait_for_container("busy")
        server.preempt(first)
        others = server.plane.scheduler.containers

        def preempt_next() -> None:
            second = server.wait_until(
                lambda: next((c for c in others.values() if c is not first and c.state == "busy"), None)
            )
            server.wait_for_text("waiting for the earlier container")
            assert second is not None
            server.preempt(second)

        threading.Thread(target=preempt_next).start()

    result = used.run(saving(8), output=ActingOutput("up\n", preempt_twice), quiet=True)

    assert (result.state, result.returncode, result.attempts) == (RunState.FAILED, 5, 1)
    assert output_lines(used, result, tmp_path) == ["up", "saving", "saved", "resumed 1"]
    assert len(server.containers(running=False)) == 3


def test_killed_container_is_waited_for_until_its_lease_expires(
    server: LoopbackModal, launcher: Make, volume: VolumeSpec
) -> None:
    """A container that died released no lease. Its successor continues when the lease has expired."""
    run = launcher(retries=1).submit('echo "up $SKYRL_ATTEMPT"; [ $SKYRL_ATTEMPT = 2 ] || sleep 600')
    server.wait_for_text("up 1\n")
    server.wait_until((server.volume(volume.name) / ".skyrl_modal" / "runs" / run.id / "state.json").exists)

    server.kill()
    result = run.wait(100)

    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2)
    assert "the earlier container does not respond" in server.log_text()


def test_attempt_that_a_preemption_kills_does_not_count(make_server: MakeServer, late_launcher: Make) -> None:
    """If the platform kills a container before it could write a result, the run continues in the same attempt."""
    server = make_server(preempt_grace=1.5)
    command = 'f=$SKYRL_DATA/x; [ -e "$f" ] && exit 6; trap "" INT; echo up; sleep 2; touch "$f"; sleep 600'

    def preempt_when_saved() -> None:
        server.wait_until((server.volume(late.volumes[0].name) / "x").exists)
        server.preempt()

    server.plane.background_commits = 0.5
    late = late_launcher(grace=20)
    result = late.run(command, output=ActingOutput("up\n", lambda: threading.Thread(target=preempt_when_saved).start()))

    assert (result.state, result.returncode, result.attempts) == (RunState.FAILED, 6, 1)


@pytest.mark.parametrize("names", [["DictGetOrCreate"], ["DictUpdate", "DictGet", "DictPop"]])
def test_run_continues_without_leases(make_server: MakeServer, late_launcher: Make, names: list[str]) -> None:
    """If the Dict cannot be reached, a container waits for some seconds and continues. A preemption works too."""
    server, used = make_server(), late_launcher()
    server.faults.unavailable(calls=10_000, names=names, side="container")

    begin = time.monotonic()
    result = used.run("exit 3", quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 3)
    assert time.monotonic() - begin < 60
    assert "it is not known whether an earlier container still runs" in server.log_text()


def test_long_grace_is_a_warning(server: LoopbackModal, launcher: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """A grace period that is longer than Modal's is reported before the start."""
    launcher(grace=MAX_ENDING_GRACE + 1).run("true")
    assert "grace=21 is longer than Modal allows" in " ".join(capfd.readouterr().err.split())

    launcher(grace=MAX_ENDING_GRACE).run("true")
    assert "is longer than Modal allows" not in " ".join(capfd.readouterr().err.split())


@pytest.mark.slow
def test_long_grace_ends_before_the_platforms(server: LoopbackModal, launcher: Make, tmp_path: Path) -> None:
    """A command that ignores signals is killed early enough for the result and the commit."""
    used = launcher(grace=60)
    command = (
        'f=$SKYRL_DATA/x; [ -e "$f" ] && { cat "$f"; exit 6; }; trap "" INT TERM; echo up; '
        'while :; do date +%s > "$f"; sleep 0.2; done'
    )

    result = used.run(command, output=ActingOutput("up\n", server.preempt), quiet=True)

    assert (result.state, result.returncode, result.attempts) == (RunState.FAILED, 6, 1)
    first = server.containers(running=False)[0]
    assert (first.stop_cause, first.returncode) == ("preempted", 0), "the platform has killed the container"


# -- clusters --------------------------------------------------------------------------------------------------------


def test_retry_policy_is_that_of_clusters_only(server: LoopbackModal, launcher: Make) -> None:
    """Modal starts clusters again as often as the run has retries; a failed command uses no retry of Modal's."""
    launcher(retries=3).run("exit 1", quiet=True)
    launcher(nodes=2, gpu="H100:8").run("true", quiet=True)
    result = launcher(nodes=2, gpu="H100:8", retries=2).run('echo "up $SKYRL_ATTEMPT"; exit 1', quiet=True)

    policies = [call.function.definition.retry_policy.retries for call in server.function_calls]
    assert policies[0] == 0
    # Both clusters may start again for other reasons, which do not count as attempts.
    assert policies[2] - policies[1] == 2
    assert (result.returncode, result.attempts) == (1, 3)
    assert [entry.retry_count for entry in server.function_calls[-1].inputs] == [0]
    assert len(server.containers(running=False)) == 1 + 2 + 2


# -- the owner of a run ----------------------------------------------------------------------------------------------

LINES = "for i in $(seq 1 30); do echo line $i; sleep 0.5; done; exit 4"


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
    assert keys(server) == []


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
    assert keys(server) == []


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
    assert keys(server) == []


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
