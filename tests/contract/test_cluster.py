"""Ray on several nodes: the same on every backend."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import Launcher, RaySpec, Run, RunState, SpecError, VolumeSpec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280)]

DRIVER = "python cluster_driver.py"


@pytest.fixture
def cluster(launcher: Callable[..., Launcher], backend: str, checkout: Path) -> Callable[..., Launcher]:
    """Makes launchers of two nodes with a CPU each; on Modal with the GPUs that it clusters."""
    shutil.copy(Path(__file__).with_name("cluster_driver.py"), checkout / "cluster_driver.py")

    def make(**fields: Any) -> Launcher:
        gpu = "H100:8" if backend == "modal" else None
        return launcher(**{"nodes": 2, "gpu": gpu, "ray": RaySpec(num_cpus=1), **fields})

    return make


def rank_log(result: Any, rank: int) -> str:
    return "\n".join(Run.attach(result.run_id).logs(rank=rank))


@pytest.mark.parametrize("nodes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_command_has_every_node(
    cluster: Callable[..., Launcher], volume: VolumeSpec, tmp_path: Path, nodes: int, backend: str
) -> None:
    output = io.BytesIO()
    made = cluster(
        nodes=nodes, env={"OF_COMMAND": "1", "UV_LOCK_TIMEOUT": "7"}, ray=RaySpec(num_cpus=1, env={"OF_RAY": "2"})
    )

    result = made.run(f"{DRIVER} facts", output=output, quiet=True, check=True)

    facts = json.loads(output.getvalue())
    assert len({item["id"] for item in facts}) == nodes
    assert sorted(item["NODE_RANK"] for item in facts) == [str(rank) for rank in range(nodes)]
    same = ("NUM_NODES", "NUM_GPUS", "MASTER_ADDR", "MASTER_PORT", "SKYRL_RUN_ID", "OF_RAY", "OF_COMMAND")
    told = {tuple(item[name] for name in same) for item in facts}
    [(count, gpus, host, port, run_id, of_ray, of_command)] = told
    assert (count, gpus, run_id) == (str(nodes), "8" if backend == "modal" else gpus, result.run_id)
    assert (of_ray, of_command) == ("2", "1")
    assert int(port) > 0
    # What the workers' `uv run` needs is set, but for what the user set.
    assert {(item["UV_PROJECT"], item["UV_LOCK_TIMEOUT"]) for item in facts} == {(".", "7")}
    [head] = [item for item in facts if item["NODE_RANK"] == "0"]
    assert host in (head["address"], "127.0.0.1")
    # What every rank wrote on the volume is there, and so is what it and its Ray had to say.
    for item in facts:
        rank = int(item["NODE_RANK"])
        left = made.pull(f"/root/data/from-rank-{rank}", tmp_path / str(rank))
        assert left.read_text() == item["id"]
        log = rank_log(result, rank)
        assert log.startswith("==> supervisor.log <==\n")
        assert "==> start.log <==" in log
        assert re.search(r"^==> raylet.* <==$", log, re.MULTILINE)
    assert len(list(Run.attach(result.run_id).logs(rank=1, tail=3))) == 3


@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_that_dies_fails_the_attempt_and_the_next_meets_nothing_of_it(
    cluster: Callable[..., Launcher], rank: int, capfd: pytest.CaptureFixture[str]
) -> None:
    output = io.BytesIO()

    result = cluster(retries=1).run(f"{DRIVER} kill {rank}", output=output)

    text = output.getvalue().decode()
    first, _, second = text.partition("attempt 1 ended with exit code")
    assert first.startswith("killed\n")
    assert ("rank 1 (" if rank else "Ray ended with exit code") in first
    assert "nodes 2 of 2 actors []" in second
    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2)
    assert "ending the command" in capfd.readouterr().err


def test_a_node_that_dies_is_named_in_the_error(cluster: Callable[..., Launcher]) -> None:
    result = cluster().run(f"{DRIVER} kill 1", output=io.BytesIO(), quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 15)  # of Ray's driver after TERM
    assert re.match(r"rank 1 \([\d.]+\): its Ray node ended with exit code 1 while the command ran:\n", result.detail)
    assert "raylet" in result.detail
    assert "rank 1 (" in result.log_tail
    assert "its Ray node ended" in rank_log(result, 1)


def test_a_command_may_outlive_a_node(cluster: Callable[..., Launcher], capfd: pytest.CaptureFixture[str]) -> None:
    output = io.BytesIO()

    result = cluster(ray=RaySpec(num_cpus=1, on_worker_loss="wait")).run(f"{DRIVER} outlive", output=output)

    said = output.getvalue().decode().splitlines()  # Ray's own words about the loss are among it
    assert [line for line in said if line in ("lost", "back as 1")] == ["lost", "back as 1"]
    assert result.succeeded
    assert "it is started again; the command goes on" in capfd.readouterr().err


def test_a_stopped_command_saves_while_its_cluster_is_whole(cluster: Callable[..., Launcher]) -> None:
    run = cluster(grace=60).submit(f"{DRIVER} wait")
    assert next(iter(run.logs(follow=True))) == "up"

    run.cancel()

    result = run.wait(120)
    assert (result.state, result.returncode) == (RunState.CANCELLED, 5), result.log_tail
    assert "saved on 1" in list(run.logs())


def test_a_driver_below_uv_run_has_workers_below_uv_run_on_every_node(
    cluster: Callable[..., Launcher], checkout: Path
) -> None:
    (checkout / "pyproject.toml").write_text('[project]\nname = "skyrl"\nversion = "0"\nrequires-python = ">=3.10"\n')
    output = io.BytesIO()
    # The tests' own environment for all: nothing need be downloaded, which a node without the internet could not.
    made = cluster(env={"UV_PROJECT_ENVIRONMENT": sys.prefix, "UV_NO_CONFIG": "1"})

    result = made.run("uv run --no-sync python cluster_driver.py facts", output=output, quiet=True)

    assert result.succeeded, result.log_tail + result.detail
    facts = json.loads(output.getvalue().splitlines()[-1])
    assert len({item["id"] for item in facts}) == 2
    assert all("/working_dir_files/" in item["here"] for item in facts), facts


def test_a_driver_of_another_ray_is_warned_of_and_refused_in_rays_words(
    cluster: Callable[..., Launcher], capfd: pytest.CaptureFixture[str]
) -> None:
    output = io.BytesIO()
    # The tests' checkout pins a Ray that is not the one here; a driver of that one:
    driver = "python -c 'import ray; ray.__version__ = \"2.57.0\"; ray.init()'"

    result = cluster(nodes=1, gpu=None).run(driver, output=output)

    assert (result.state, result.returncode) == (RunState.FAILED, 1)
    assert "Version mismatch" in output.getvalue().decode()
    assert "the checkout pins ray==2.57.0" in capfd.readouterr().err


def test_without_ray_only_rank_0_runs_the_command(
    cluster: Callable[..., Launcher], capfd: pytest.CaptureFixture[str]
) -> None:
    output = io.BytesIO()

    cluster(ray=None).run('echo "$NODE_RANK of $NUM_NODES ${RAY_ADDRESS-none}"', output=output, check=True)

    assert output.getvalue() == b"0 of 2 none\n"
    assert "only rank 0 runs the command" in capfd.readouterr().err


def test_there_is_no_such_rank(cluster: Callable[..., Launcher]) -> None:
    run = cluster(nodes=1, ray=None, gpu=None).submit("true")
    run.wait()

    with pytest.raises(SpecError, match=r"rank=1.*give 0 to 0"):
        list(run.logs(rank=1))
    with pytest.raises(SpecError, match="follow=True"):
        list(run.logs(rank=0, follow=True))
