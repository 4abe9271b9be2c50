"""Runs on Modal in containers whose GPUs do not work: they are replaced, and no attempt is counted."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, RaySpec, RunState
from skyrl_modal.protocol.leases import MAX_REPLACEMENTS
from skyrl_modal.protocol.state import FailureCause
from tests.backends.modal.conftest import ActingOutput, stored_output
from tests.support.loopback import LoopbackModal
from tests.support.loopback.runtime import DRIVER_FAILURE

MakeLauncher = Callable[..., Launcher]
BROKEN = f'echo "{DRIVER_FAILURE}"; exit 9'
COMMAND = 'echo "attempt $SKYRL_ATTEMPT, $NUM_GPUS GPUs"'


@pytest.fixture
def make_launcher(checkout: Path, volume: object) -> MakeLauncher:
    """Return a function that makes launchers with an L4, by default without Ray."""
    defaults = {"backend": "modal", "checkout": checkout, "volumes": [volume], "ray": None, "gpu": "L4"}
    return lambda **fields: Launcher(**{**defaults, **fields})


@pytest.mark.parametrize(
    "programs",
    [[BROKEN], [BROKEN, "echo No devices were found; exit 6"], [":"] * MAX_REPLACEMENTS],
    ids=["once", "twice", "as often as permitted"],
)
def test_broken_gpu_takes_no_attempt(
    server: LoopbackModal,
    make_launcher: MakeLauncher,
    tmp_path: Path,
    programs: list[str],
) -> None:
    """The command runs in the first container whose GPU works, as its first attempt, without a trace in its output."""
    server.faults.gpu_programs += [(0, program) for program in programs]
    used, output = make_launcher(), io.BytesIO()

    result = used.run(COMMAND, output=output, quiet=True)

    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 1)
    assert output.getvalue() == stored_output(used, result, tmp_path) == b"attempt 1, 1 GPUs\n"
    assert len(server.containers(running=False)) == len(programs) + 1


@pytest.mark.slow
def test_gpus_that_never_work_fail_the_run(
    server: LoopbackModal, make_launcher: MakeLauncher, capfd: pytest.CaptureFixture[str]
) -> None:
    """After a limited number of containers the run fails, whatever its retries, and the reason is reported."""
    server.faults.gpu_programs += [(0, BROKEN)] * 9

    result = make_launcher(retries=2).run("echo never")

    assert (result.state, result.cause) == (RunState.FAILED, FailureCause.GPUS_MISSING)
    assert (result.returncode, result.attempts) == (125, 0)
    assert "exit code 9: NVIDIA-SMI has failed" in result.detail
    assert len(server.containers(running=False)) == MAX_REPLACEMENTS + 1
    reported = capfd.readouterr().err
    assert f"another container ({MAX_REPLACEMENTS} of at most {MAX_REPLACEMENTS})" in reported
    assert "Traceback" not in reported


@pytest.mark.slow
@pytest.mark.parametrize(("gpu", "program"), [("L4:4", "seq 0 2"), (["L4:2", "T4:1"], ":")])
def test_container_with_too_few_gpus_is_replaced(
    server: LoopbackModal, make_launcher: MakeLauncher, gpu: object, program: str
) -> None:
    """A container that lacks one of its GPUs is replaced. If the requests differ in number, one GPU is enough."""
    server.faults.gpu_programs += [(0, program)]

    result = make_launcher(gpu=gpu).run("true", quiet=True)

    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 1)
    assert len(server.containers(running=False)) == 2


@pytest.mark.slow
def test_gpu_that_breaks_after_an_attempt(server: LoopbackModal, make_launcher: MakeLauncher) -> None:
    """A container that is replaced keeps the number of attempts that an earlier container has made."""
    server.faults.gpu_programs += [(0, "echo 0"), (0, BROKEN)]
    command = 'echo "attempt $SKYRL_ATTEMPT"; [ "$SKYRL_ATTEMPT" = 2 ] || sleep 600'

    result = make_launcher(retries=1).run(command, output=ActingOutput("attempt 1\n", server.kill), quiet=True)

    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2)
    assert len(server.containers(running=False)) == 3


@pytest.mark.slow
def test_run_without_volume_is_replaced(server: LoopbackModal, make_launcher: MakeLauncher) -> None:
    """Containers are counted and replaced also if the run has no volume."""
    server.faults.gpu_programs += [(0, BROKEN)]

    result = make_launcher(volumes=[]).run("true", quiet=True)

    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 1)


def test_gpus_are_not_counted_without_request(server: LoopbackModal, make_launcher: MakeLauncher) -> None:
    """A run without GPUs does not depend on nvidia-smi."""
    server.faults.gpu_programs += [(0, BROKEN)]

    assert make_launcher(gpu=None).run("true", quiet=True).state is RunState.SUCCEEDED


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_broken_gpu_of_a_cluster_takes_no_attempt(
    server: LoopbackModal, make_launcher: MakeLauncher, rank: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """A cluster with a broken GPU on any rank is started again as a whole, also without retries."""
    server.faults.gpu_programs += [(rank, BROKEN)]

    result = make_launcher(gpu="H100:8", nodes=2).run("true")

    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 1)
    assert f"rank {rank} (" in capfd.readouterr().err
    assert len(server.containers(running=False)) == 4


@pytest.mark.ray
@pytest.mark.parametrize(("nodes", "gpu"), [(1, "L4"), (2, "H100:8")])
def test_broken_gpu_is_found_before_ray_starts(
    server: LoopbackModal, make_launcher: MakeLauncher, nodes: int, gpu: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """With Ray too, the attempt starts in other containers, and Ray is ready there only."""
    server.faults.gpu_programs += [(nodes - 1, BROKEN)]

    result = make_launcher(gpu=gpu, nodes=nodes, ray=RaySpec()).run("true")

    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 1)
    assert capfd.readouterr().err.count(", ready after ") == 1
    assert len(server.containers(running=False)) == 2 * nodes
