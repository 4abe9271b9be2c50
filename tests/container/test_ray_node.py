"""Which Ray is used, its environment, and the tail of its logs. No Ray is started."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from skyrl_modal.container.environment import ray_environment, run_environment, with_ray_token
from skyrl_modal.container.events import RayEvent, RayNodeExited
from skyrl_modal.container.failures import StartError
from skyrl_modal.container.masking import SecretMask
from skyrl_modal.container.ray_node import RayFolders, RayNode, require_dashboard, require_ray
from skyrl_modal.machine import RayInstallation
from skyrl_modal.protocol.job import RayOptions
from skyrl_modal.protocol.rank_config import RankConfig
from skyrl_modal.protocol.state import FailureCause
from tests.container.records import TOKENS, make_cluster, make_job

NEW_RAY = RayInstallation("/bin/ray", sys.executable, "2.52.0")
OLD_RAY = RayInstallation("/bin/ray", sys.executable, "2.51.1")


def install_ray(folder: Path, version: str) -> dict[str, str]:
    """Create a folder that looks like an environment with a version of Ray; return an environment that finds it."""
    program = folder / "bin" / "ray"
    program.parent.mkdir(parents=True)
    python = program.with_name("python")
    python.symlink_to(sys.executable)
    program.write_text(f"#!{python}\n")
    program.chmod(0o755)
    (folder / "lib" / "python3.12" / "site-packages" / f"ray-{version}.dist-info").mkdir(parents=True)
    return {"PATH": str(program.parent)}


def test_token_replaces_one_of_the_user() -> None:
    """The command and Ray get the run's own token, and no other one remains."""
    env = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": "/home/user/.ray/auth_token", "OTHER": "1"}

    assert with_ray_token(env, NEW_RAY, TOKENS) == {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKENS.ray,
        "OTHER": "1",
    }


def test_old_ray_gets_no_token() -> None:
    """A Ray without authentication gets no token, and the user's is removed."""
    assert with_ray_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}, OLD_RAY, TOKENS) == {}


def test_dashboard_requires_a_ray_with_tokens(tmp_path: Path) -> None:
    """The dashboard of an older Ray, which everyone could use, is refused before Ray starts."""
    env = install_ray(tmp_path, "2.51.1")
    assert require_ray(RayOptions(), env).version == "2.51.1"

    with pytest.raises(StartError) as caught:
        require_ray(RayOptions(dashboard=True), env)

    assert caught.value.failure.cause is FailureCause.RAY_VERSION_MISMATCH
    assert 'pip install --upgrade "ray[default]>=2.52"' in caught.value.failure.summary


def test_dashboard_of_a_new_ray(tmp_path: Path) -> None:
    """The dashboard of a Ray with tokens is accepted."""
    assert require_ray(RayOptions(dashboard=True), install_ray(tmp_path, "2.52.0")).version == "2.52.0"


def test_missing_dashboard_is_detected(tmp_path: Path) -> None:
    """A Ray whose dashboard lacks a dependency is refused, and the message names the module."""
    dependencies = tmp_path / "ray" / "dashboard" / "optional_deps.py"
    dependencies.parent.mkdir(parents=True)
    (tmp_path / "ray" / "__init__.py").write_text("raise SystemExit('Ray itself must not be imported')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}

    dependencies.write_text("import json\n")
    require_dashboard(NEW_RAY, env)
    dependencies.write_text("import skyrl_no_such_module\n")
    with pytest.raises(StartError) as caught:
        require_dashboard(NEW_RAY, env)

    assert caught.value.failure.cause is FailureCause.DASHBOARD_NOT_INSTALLED
    assert "No module named 'skyrl_no_such_module'" in caught.value.failure.summary


def test_ray_environment_does_not_replace_variables() -> None:
    """Defaults for uv are only set where neither the command's environment nor RaySpec sets them."""
    options = RayOptions(env={"B": "of RaySpec"})

    env = ray_environment({"UV_PROJECT": "elsewhere", "B": "of the run"}, options, make_cluster(1))

    assert (env["UV_PROJECT"], env["B"], env["UV_LOCK_TIMEOUT"]) == ("elsewhere", "of RaySpec", "600")
    assert "UV_OFFLINE" not in env


def test_node_without_internet_uses_uv_offline() -> None:
    """Workers on a node without internet do not wait for a package index."""
    assert ray_environment({}, RayOptions(), RankConfig(has_no_internet=True))["UV_OFFLINE"] == "1"


def test_variables_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command gets the variables of the run, and neither the caller's Ray nor a root that is not mounted."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("SKYRL_REPO_ROOT", "/home/user/SkyRL")
    job = make_job(tmp_path, nodes=2, gpus_per_node=4, data_root="/data", env={"A": "1"}, ray=RayOptions())

    env = run_environment(job, make_cluster(2))

    expected = {"A": "1", "SKYRL_RUN_ID": "run-1", "NUM_NODES": "2", "NUM_GPUS": "4", "NODE_RANK": "0"}
    assert {**expected, "SKYRL_DATA": "/data", "PYTHONUNBUFFERED": "1"}.items() <= env.items()
    assert not {"RAY_ADDRESS", "SKYRL_REPO_ROOT"} & env.keys()


@pytest.fixture
def node(tmp_path: Path) -> RayNode:
    """A node that was not started."""
    folders = RayFolders(tmp_path / "session", tmp_path / "logs")
    folders.start_log.parent.mkdir(parents=True)
    (tmp_path / "session" / "session_latest" / "logs").mkdir(parents=True)
    job = make_job(tmp_path, ray=RayOptions())
    secrets = SecretMask(["s3cret"])
    return RayNode(
        job,
        make_cluster(1),
        NEW_RAY,
        {},
        folders,
        start=1,
        put=lambda event: None,
        secrets=secrets,
        keep_logs=lambda: None,
    )


@pytest.mark.parametrize("is_head", [True, False])
def test_ray_starts_in_the_workdir(tmp_path: Path, is_head: bool) -> None:
    """`ray start` has the working directory of the command, which Ray's workers inherit; the probe has not."""
    for name in ("bin", "work", "logs"):
        (tmp_path / name).mkdir()
    program, workdir = tmp_path / "bin" / "ray", tmp_path / "work"
    program.write_text("#!/bin/sh\npwd\n")
    program.chmod(0o755)
    (workdir / "ray.py").write_text("raise RuntimeError('imported from the working directory')\n")
    ray = RayInstallation(str(program), sys.executable, "2.60.0")
    folders, exited = RayFolders(tmp_path / "session", tmp_path / "logs"), threading.Event()
    job = make_job(tmp_path, workdir=str(workdir), ray=RayOptions())
    env = {"PATH": os.environ["PATH"]}

    def put(event: RayEvent) -> None:
        if isinstance(event, RayNodeExited):
            exited.set()

    kept: list[bool] = []
    node = RayNode(
        job,
        make_cluster(1),
        ray,
        env,
        folders,
        start=1,
        put=put,
        secrets=SecretMask([]),
        keep_logs=lambda: kept.append(exited.is_set()),
    )
    if is_head:
        node.start_head()
    else:
        node.start_worker("127.0.0.1:6379")
    assert exited.wait(30)
    node.end()

    assert kept == [True]
    log = (tmp_path / "logs" / "ray" / "start.log").read_text()
    assert f"{workdir}\n" in log
    assert "imported from the working directory" not in log


def test_log_tail_without_logs(node: RayNode) -> None:
    """The tail states that there is none."""
    assert node.log_tail() == "(Ray printed nothing)"


def test_log_tail(node: RayNode, tmp_path: Path) -> None:
    """The last twelve lines of each log are included, masked, without empty lines and the raylet's counters."""
    lines = [f"line {number}" for number in range(20)]
    (tmp_path / "logs" / "ray" / "start.log").write_text("\n\n".join(lines))
    raylet = tmp_path / "session" / "session_latest" / "logs" / "raylet.err"
    raylet.write_text("the reason: s3cret\n" + "[state-dump] counter\n" * 100)

    assert node.log_tail().splitlines() == [
        "start.log:",
        *(f"  {line}" for line in lines[-12:]),
        "raylet.err:",
        "  the reason: ********",
    ]
