"""Tests of the leases of containers: preemptions with an overlap, clusters that start again, and grace periods."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, RunState, VolumeSpec
from skyrl_modal.protocol.state import FailureCause, StopReason
from tests.backends.modal.conftest import ActingOutput, stored_output
from tests.support.leases import lease_keys, wait_for_end
from tests.support.loopback import LoopbackModal
from tests.support.loopback.modes import Mode

Make = Callable[..., Launcher]
MakeServer = Callable[..., LoopbackModal]


@pytest.fixture
def late_launcher(checkout: Path, volume: VolumeSpec) -> Make:
    """Return a function that makes launchers, after the test has started its control plane."""
    defaults = {"backend": "modal", "checkout": checkout, "volumes": [volume], "ray": None, "gpu": None}
    return lambda **fields: Launcher(**{**defaults, **fields})


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
    assert lease_keys(server) == []


@pytest.mark.slow
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


@pytest.mark.slow
def test_run_is_cancelled_while_its_container_waits(make_server: MakeServer, late_launcher: Make) -> None:
    """The old container saves to its end, the new one exits, and the run is cancelled rather than preempted."""
    server = make_server(mode=Mode(replacement_delay=0.0))
    run = late_launcher(grace=20).submit(saving(8))
    server.wait_for_text("up\n")
    server.preempt()
    server.wait_for_text("waiting for the earlier container")

    run.cancel()
    result = run.wait(60)

    assert (result.state, result.returncode, result.attempts) == (RunState.CANCELLED, 9, 1)
    assert (result.cause, result.stop_reason) == (FailureCause.STOPPED, StopReason.CANCELLED)
    assert [line for line in run.logs() if not line.startswith("skyrl-modal |")] == ["up", "saving", "saved"]
    wait_for_end(server)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("nodes", [1, 2])
def test_attempts_are_counted_without_a_volume(server: LoopbackModal, launcher: Make, nodes: int, retries: int) -> None:
    """A command whose container died starts again only if the run has retries, also if it has no volume."""
    cluster = {"nodes": 2, "gpu": "H100:8"} if nodes == 2 else {}
    command = 'echo "up $SKYRL_ATTEMPT"; [ $SKYRL_ATTEMPT = 2 ] && exit 6; sleep 600'
    run = launcher(volumes=[], retries=retries, **cluster).submit(command)
    server.wait_for_text("up 1\n")

    server.kill(server.wait_for_container("busy"))
    result = run.wait(140)

    # Without retries, Modal does not start a cluster again, so that no container reports the number of attempts.
    assert result.attempts == (1 + retries if nodes == 1 or retries else 0)
    assert result.state is (RunState.FAILED if retries else RunState.LOST)
    starts = [line for line in server.log_text().splitlines() if line.startswith("up")]
    assert starts == ["up 1", "up 2"][: 1 + retries]


@pytest.mark.slow
def test_preemption_without_a_volume(server: LoopbackModal, launcher: Make) -> None:
    """A preempted attempt of a run without a volume does not count."""
    command = 'trap "echo saving; exit 9" INT; echo "up $SKYRL_ATTEMPT"; sleep 600 & wait'
    run = launcher(volumes=[], grace=20).submit(command)
    starts = (line for line in run.logs(follow=True) if line.startswith("up"))
    assert next(starts) == "up 1"

    server.preempt()

    assert next(starts) == "up 1"
    run.cancel()
    run.wait(60)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.8])
def test_new_cluster_waits_for_the_old_one(
    make_server: MakeServer, late_launcher: Make, tmp_path: Path, delay: float
) -> None:
    """A preempted cluster saves undisturbed, although all ranks of its replacement have started."""
    server = make_server(mode=Mode(replacement_delay=delay))
    used = late_launcher(nodes=2, gpu="H100:8", grace=20)

    result = used.run(saving(8), output=ActingOutput("up\n", server.preempt), quiet=True)

    assert (result.state, result.returncode, result.attempts) == (RunState.FAILED, 5, 1)
    assert output_lines(used, result, tmp_path) == ["up", "saving", "saved", "resumed 1"]
    assert len(server.containers(running=False)) == 4
    wait_for_end(server)
    assert lease_keys(server) == []


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "retries"), [(0, 1), (1, 1), (1, 0), (0, 0)])
def test_dead_rank_and_the_retries_of_a_cluster(
    server: LoopbackModal, launcher: Make, volume: VolumeSpec, rank: int, retries: int
) -> None:
    """Each death of a rank takes one attempt, also after the caller has exited. Without retries none follows."""
    command = 'echo "up $SKYRL_ATTEMPT"; [ $SKYRL_ATTEMPT = 2 ] && exit 6; sleep 600'
    run = launcher(nodes=2, gpu="H100:8", retries=retries).submit(command)
    server.wait_for_text("up 1\n")
    server.wait_until((server.volume(volume.name) / ".skyrl_modal" / "runs" / run.id / "state.json").exists)
    [gang] = {id(container.gang): container.gang for container in server.containers()}.values()

    server.kill(gang.members[rank])
    result = run.wait(140)

    ended = {0: (RunState.LOST, FailureCause.CONTAINER_DIED), 1: (RunState.FAILED, FailureCause.RANK_LOST)}
    if retries:
        assert (result.state, result.cause) == (RunState.FAILED, FailureCause.COMMAND_FAILED)
    else:
        assert (result.state, result.cause) == ended[rank]
    assert result.attempts == 1 + retries
    starts = [line for line in server.log_text().splitlines() if line.startswith("up")]
    assert starts == ["up 1", "up 2"][: 1 + retries]
    server.wait_for_no_container()
