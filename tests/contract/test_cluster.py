"""Tests of Ray on several nodes, on every backend."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import Launcher, RaySpec, Run, RunResult, RunState, SpecError, VolumeSpec
from skyrl_modal.protocol.log_lines import LINE_PREFIX
from skyrl_modal.protocol.state import FailureCause, StopReason
from tests.conftest import MakeLauncher
from tests.contract.conftest import LOCAL_FIRST, divide

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280)]

DRIVER = "python cluster_driver.py"


@pytest.fixture
def cluster(launcher: MakeLauncher, backend: str, checkout: Path) -> MakeLauncher:
    """Return a function that makes launchers of two nodes with one CPU each; on Modal with GPUs that it clusters."""
    shutil.copy(Path(__file__).with_name("cluster_driver.py"), checkout / "cluster_driver.py")

    def make(**fields: Any) -> Launcher:
        gpu = "H100:8" if backend == "modal" else None
        return launcher(**{"nodes": 2, "gpu": gpu, "ray": RaySpec(num_cpus=1), **fields})

    return make


def rank_log(result: RunResult, rank: int) -> str:
    """Return the logs of a rank's supervisor and Ray."""
    return "\n".join(Run.attach(result.run_id).logs(rank=rank))


@pytest.mark.parametrize("nodes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_driver_uses_every_node(
    cluster: MakeLauncher, volume: VolumeSpec, tmp_path: Path, nodes: int, backend: str
) -> None:
    """Tasks run on every node, with the documented variables, and each rank keeps its files and logs."""
    output = io.BytesIO()
    made = cluster(
        nodes=nodes, env={"OF_COMMAND": "1", "UV_LOCK_TIMEOUT": "7"}, ray=RaySpec(num_cpus=1, env={"OF_RAY": "2"})
    )

    result = made.run(f"{DRIVER} facts", output=output, quiet=True, check=True)

    facts = json.loads(output.getvalue())
    assert len({item["id"] for item in facts}) == nodes
    assert sorted(item["NODE_RANK"] for item in facts) == [str(rank) for rank in range(nodes)]
    same = ("NUM_NODES", "NUM_GPUS", "MASTER_ADDR", "MASTER_PORT", "SKYRL_RUN_ID", "OF_RAY", "OF_COMMAND")
    [(count, gpus, host, port, run_id, of_ray, of_command)] = {tuple(item[name] for name in same) for item in facts}
    assert (count, gpus, run_id) == (str(nodes), "8" if backend == "modal" else gpus, result.run_id)
    assert (of_ray, of_command) == ("2", "1")
    assert int(port) > 0
    # The launcher sets what workers need below `uv run`, except for variables that the user sets.
    assert {(item["UV_PROJECT"], item["UV_LOCK_TIMEOUT"]) for item in facts} == {(".", "7")}
    [head] = [item for item in facts if item["NODE_RANK"] == "0"]
    assert host in (head["address"], "127.0.0.1")
    for item in facts:
        rank = int(item["NODE_RANK"])
        kept = made.pull(f"/root/data/from-rank-{rank}", tmp_path / str(rank))
        assert kept.read_text() == item["id"]
        log = rank_log(result, rank)
        assert log.startswith("==> supervisor.log <==\n")
        assert "==> 1/ray/start.log <==" in log
        assert re.search(r"^==> 1/ray/raylet.* <==$", log, re.MULTILINE)
        workers = Run.attach(result.run_id).kept_logs(rank=rank, attempt=1, pattern="ray/worker-*")
        assert any(kept.read() for kept in workers)
    assert len(list(Run.attach(result.run_id).logs(rank=1, tail=3))) == 3


@divide("rank", local=1, modal=0)
def test_next_attempt_has_a_new_cluster(cluster: MakeLauncher, rank: int) -> None:
    """A node that exits ends the attempt. The next attempt has all nodes, and no actor of the first one."""
    output = io.BytesIO()

    result = cluster(retries=1).run(f"{DRIVER} kill {rank}", output=output, quiet=True)

    lines = output.getvalue().decode().splitlines()
    assert lines[0] == "killed"
    assert any(line.startswith(LINE_PREFIX) for line in lines)
    assert lines[-1] == "nodes 2 of 2 actors []"
    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2)


def test_exited_node_is_the_cause(cluster: MakeLauncher, capfd: pytest.CaptureFixture[str]) -> None:
    """A run that fails since a node exited has this cause, and names the rank. The cause is reported once."""
    result = cluster().run(f"{DRIVER} kill 1", output=io.BytesIO())

    assert (result.state, result.returncode) == (RunState.FAILED, 15)  # of Ray's driver after TERM
    assert result.cause is FailureCause.RAY_EXITED
    assert re.match(r"rank 1 \([\d.]+\): ", result.detail)
    assert "raylet" in result.detail
    [summary, *_] = result.detail.splitlines()
    assert capfd.readouterr().err.count(summary.rstrip(":")) == 1
    assert "Ray" in rank_log(result, 1)


@divide("rank", local=0, modal=1)
def test_ray_stop_on_a_node_is_the_cause(cluster: MakeLauncher, rank: int) -> None:
    """If a task calls `ray stop`, the run fails with this cause, and with the rank on which it was called."""
    result = cluster().run(f"{DRIVER} stop {rank}", output=io.BytesIO(), quiet=True)

    assert (result.state, result.cause) == (RunState.FAILED, FailureCause.RAY_STOPPED), result.detail
    assert "Remove the call" in result.detail


def test_lost_files_of_every_rank_are_reported(cluster: MakeLauncher, capfd: pytest.CaptureFixture[str]) -> None:
    """New files in no volume are reported with the rank that wrote them; other ranks do not see them."""
    result = cluster().run(f"{DRIVER} write /root/ckpts-of-rank", output=io.BytesIO())

    assert result.succeeded
    warnings = [line for line in capfd.readouterr().err.splitlines() if "are in no volume" in line]
    [of_worker] = [line for line in warnings if "rank 1: warning" in line]
    [of_head] = [line for line in warnings if line != of_worker]
    assert "/root/ckpts-of-rank-0 (1 file, 3.0 MB)" in of_head
    assert "/root/ckpts-of-rank-1 (1 file, 3.0 MB)" in of_worker


@LOCAL_FIRST
def test_command_may_continue_without_a_node(cluster: MakeLauncher) -> None:
    """With on_worker_loss="wait", the command continues, and the lost node is started again."""
    output = io.BytesIO()

    result = cluster(ray=RaySpec(num_cpus=1, on_worker_loss="wait")).run(f"{DRIVER} outlive", output=output, quiet=True)

    lines = output.getvalue().decode().splitlines()  # Ray's own messages about the loss are among them
    assert [line for line in lines if line in ("lost", "back as 1")] == ["lost", "back as 1"]
    assert result.succeeded


def test_stopped_command_has_its_cluster(cluster: MakeLauncher) -> None:
    """All nodes run until the end of the grace period, so that the command can save."""
    run = cluster(grace=60).submit(f"{DRIVER} wait")
    assert next(iter(run.logs(follow=True))) == "up"

    run.cancel()

    result = run.wait(120)
    assert (result.state, result.returncode) == (RunState.CANCELLED, 5), result.log_tail
    assert (result.cause, result.stop_reason) == (FailureCause.STOPPED, StopReason.CANCELLED)
    assert "saved on 1" in list(run.logs())


@LOCAL_FIRST
def test_workers_of_uv_run(cluster: MakeLauncher, checkout: Path) -> None:
    """A driver that `uv run` started has workers on every node, which `uv run` starts too."""
    (checkout / "pyproject.toml").write_text('[project]\nname = "skyrl"\nversion = "0"\nrequires-python = ">=3.10"\n')
    output = io.BytesIO()
    # All nodes use the environment of the tests: a node without internet access could not download another.
    made = cluster(env={"UV_PROJECT_ENVIRONMENT": sys.prefix, "UV_NO_CONFIG": "1"})

    result = made.run("uv run --no-sync python cluster_driver.py facts", output=output, quiet=True)

    assert result.succeeded, result.log_tail + result.detail
    facts = json.loads(output.getvalue().splitlines()[-1])
    assert len({item["id"] for item in facts}) == 2
    assert all("/working_dir_files/" in item["here"] for item in facts), facts


@LOCAL_FIRST
def test_driver_of_another_ray_version(cluster: MakeLauncher, capfd: pytest.CaptureFixture[str]) -> None:
    """Ray refuses a driver of another version, and the launcher has warned about the version that the checkout pins."""
    output = io.BytesIO()
    driver = "python -c 'import ray; ray.__version__ = \"2.57.0\"; ray.init()'"

    result = cluster(nodes=1, gpu=None).run(driver, output=output)

    assert (result.state, result.returncode) == (RunState.FAILED, 1)
    assert result.cause is FailureCause.COMMAND_FAILED
    assert "Version mismatch" in output.getvalue().decode()
    assert "the checkout pins ray==2.57.0" in capfd.readouterr().err


def test_nodes_without_ray(cluster: MakeLauncher) -> None:
    """Without Ray, rank 0 runs the command, and there is no $RAY_ADDRESS."""
    output = io.BytesIO()

    cluster(ray=None).run('echo "$NODE_RANK of $NUM_NODES ${RAY_ADDRESS-none}"', output=output, check=True, quiet=True)

    assert output.getvalue() == b"0 of 2 none\n"


def test_unknown_rank_is_refused(cluster: MakeLauncher) -> None:
    """Logs of a rank that does not exist raise SpecError, and so does following the logs of a rank."""
    run = cluster(nodes=1, ray=None, gpu=None).submit("true")
    run.wait()

    with pytest.raises(SpecError, match=r"rank=1.*0 to 0"):
        list(run.logs(rank=1))
    with pytest.raises(SpecError, match="follow=True"):
        list(run.logs(rank=0, follow=True))
