"""Types of the public API. This file is checked by mypy and never executed.

Each ``type: ignore`` marks invalid use, which mypy must refuse: if it does not, the unused comment is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, assert_type

import attrs

import skyrl_modal
from skyrl_modal import (
    BackendUnavailable,
    BucketSpec,
    CheckoutNotFound,
    Checkpoint,
    CommandFailed,
    ImageSpec,
    Launcher,
    Message,
    MountSpec,
    Plan,
    RaySpec,
    Rollout,
    Run,
    RunCancelled,
    RunLost,
    RunNotFound,
    RunResult,
    RunState,
    RunTimeout,
    SecretSpec,
    SkyRLModalError,
    SpecError,
    VolumeSpec,
    log_metrics,
    runs,
)
from skyrl_modal.backends import Backend, VolumeEntry
from skyrl_modal.backends.local.backend import LocalBackend
from skyrl_modal.findings import Finding
from skyrl_modal.mount import Selection, select
from skyrl_modal.protocol.codec import from_json, to_json
from skyrl_modal.protocol.events import RunEvent
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.state import FailureCause, StopReason
from skyrl_modal.run.metrics import Metrics
from skyrl_modal.transfers.plan import TransferPlan
from skyrl_modal.transfers.volume_files import DiskUsage
from skyrl_modal.views.chart import Chart

# -- declaration ------------------------------------------------------------------------------------------------

Launcher()
Launcher(gpu=None, ray=None, checkout="~/SkyRL", timeout=60, grace=timedelta(seconds=9), lease="20m")
Launcher(backend=LocalBackend(), secrets="WANDB_API_KEY", timeout="1h30m")
launcher = Launcher(
    image=ImageSpec(base="python:3.12", apt="git", pip=["wandb"], commands=["true"], env={"A": 1, "B": Path("/b")}),
    volumes=[
        VolumeSpec(),
        VolumeSpec(name="models", mount_path=Path("/root/models"), read_only=True, version=2),
        BucketSpec(name="sets", mount_path="/mnt/sets"),
    ],
    mounts=[MountSpec(exclude="*.ckpt"), MountSpec(local_path=".", remote_path="/root/mine", include=["x"])],
    gpu=["H100:8", "A100-80GB:8"],
    nodes=2,
    ray=RaySpec(port=6380, dashboard=True, num_cpus=2, object_store_memory=10**9, start_timeout="2m", env={"X": "1"}),
    timeout=timedelta(hours=24),
    retries=1,
    should_retry=[137],
    secrets=[
        "WANDB_API_KEY",
        SecretSpec("huggingface", keys=["HF_TOKEN"], optional=True),
        SecretSpec("HF_TOKEN", source="environment", optional=True),
    ],
    env={"HF_HOME": "/root/models/hf", "N": 3},
    cpu=0.5,
    memory=2048,
    region="us-east",
    cloud="aws",
    workdir="skyrl-train",
    app_name="mine",
    name="baseline",
    tags=["gsm8k", "v2"],
    checkout=Path.home(),
    backend="local",
    grace=30,
    start_deadline=timedelta(hours=1),
    resume="auto",
    budget=12.5,
    rate=31.6,
    stall="20m",
)

Launcher(should_retry=lambda code: code > 128)
Launcher(nodes="2")  # type: ignore[arg-type]
Launcher(gpus=4)  # type: ignore[call-arg]
Launcher("local")  # type: ignore[arg-type,call-arg]
launcher.nodes = 3  # type: ignore[misc]
VolumeSpec("skyrl-data")  # type: ignore[call-arg]
RaySpec(dashboard="yes")  # type: ignore[arg-type]

assert_type(attrs.evolve(launcher, timeout="1h"), Launcher)
assert_type(launcher.timeout, float)
assert_type(launcher.checkout, Path | None)
assert_type(launcher.gpu, str | Sequence[str] | None)
assert_type(launcher.env, Mapping[str, str])
assert_type(launcher.volumes, Sequence[VolumeSpec | BucketSpec])
assert_type(launcher.backend, str | Backend)

# -- running -----------------------------------------------------------------------------------------------------------


def receive(data: bytes) -> None: ...


with open("log", "wb") as file:
    assert_type(launcher.run("true", output=file), RunResult)
result = launcher.run(["python", "train.py"], check=True, output=receive, quiet=True)
launcher.run("true", output=bytearray().extend)
launcher.run(7)  # type: ignore[arg-type]
launcher.run("true", True)  # type: ignore[call-arg]

assert_type(result.run_id, str)
assert_type(result.returncode, int)
assert_type(result.state, RunState)
assert_type(result.cause, FailureCause | None)
assert_type(result.stop_reason, StopReason | None)
assert_type(result.attempts, int)
assert_type(result.started_at, datetime)
assert_type(result.duration, float)
assert_type(result.cost, float | None)
assert_type(result.container_seconds, float | None)
assert_type(result.log_path, str)
assert_type(result.log_tail, str)
assert_type(result.backend, str)
assert_type(result.detail, str)
assert_type(result.succeeded, bool)
assert_type(result.state.is_final, bool)
assert_type(RunState("failed"), RunState)

run = launcher.submit("sleep 60")
assert_type(run, Run)
assert_type(run.id, str)
assert_type(run.job, Job)
assert_type(run.state, RunState)
assert_type(run.url, str | None)
assert_type(run.cost, float | None)
assert_type(run.dashboard_token, str | None)
assert_type(run.events(), Iterator[RunEvent])
assert_type(run.checkpoints(), list[Checkpoint])
assert_type(run.rollouts(step=3, best=2)[0], Rollout)
assert_type(run.rollouts()[0].prompt_messages, tuple[Message, ...])
metrics = run.metrics(follow=True)
assert_type(metrics, Metrics)
assert_type(list(metrics), list[dict[str, float]])
assert_type(metrics[-1], dict[str, float])
assert_type(metrics.keys, tuple[str, ...])
assert_type(metrics.series("loss"), tuple[list[int], list[float]])
assert_type(metrics.plot("loss"), Chart)
assert_type(run.plot("loss", "reward"), Chart)
assert_type(result.plot(), Chart)
run.watch("loss")
run.metrics(path=1)  # type: ignore[arg-type]
log_metrics({"loss": 0.5, "n": 3}, step=1)
log_metrics({"loss": 0.5})  # type: ignore[call-arg]
assert_type(run.logs(), Iterator[str])
assert_type(run.logs(follow=True, tail=10), Iterator[str])
assert_type(run.log_bytes(follow=True, tail=10), Iterator[bytes])
assert_type(run.wait(timeout=1.5), RunResult)
assert_type(run.result(), RunResult)
assert_type(Run.attach(run.id), Run)
assert_type(runs(), list[Run])
assert_type(Launcher.from_run(run.id), tuple[Launcher, str])
assert_type(skyrl_modal.map([(launcher, "true"), (launcher, ["echo", "a b"])], max_parallel=2), list[RunResult])
assert_type(launcher.map(["true", ["echo", "a b"]], max_parallel=2, names=["a", "b"]), list[RunResult])
run.cancel()
run.cancel(now=True)


async def run_asynchronously() -> None:
    assert_type(await launcher.arun("true", check=True), RunResult)
    assert_type(await launcher.asubmit("true"), Run)


plan = launcher.plan("true")
assert_type(plan, Plan)
assert_type(plan.job, Job)
assert_type(plan.selections, tuple[Selection, ...])
assert_type(plan.warnings, tuple[str, ...])
assert_type(plan.findings, tuple[Finding, ...])
assert_type(plan.cost.at_most, float | None)
assert_type(from_json(Job, to_json(plan.job)), Job)

assert_type(launcher.ls(), list[VolumeEntry])
assert_type(launcher.pull("/root/data/x", "here"), Path)
launcher.push(Path("x"), "/root/data/x")
launcher.push([Path("x"), "y"], "/root/data/x/", force=True, quiet=True)
assert_type(launcher.pull(["/root/data/x", "/root/data/y*"], Path("here")), Path)
assert_type(launcher.plan_push("x", "/root/data/x"), TransferPlan)
assert_type(launcher.plan_pull("/root/data/x", "here").size, int)
assert_type(launcher.remove("/root/data/x", recursive=True, force=True), list[str])
assert_type(b"".join(launcher.read("/root/data/x")), bytes)
assert_type(launcher.du("/root/data").entries, Sequence[DiskUsage])
assert_type(run.pull("here", checkpoints=True), Path)

selection = select(Path("."), include=["*.bin"], exclude=("*.log",), skip_caches=True)
assert_type(selection, Selection)
assert_type(selection.root, Path)
assert_type(selection.files, tuple[str, ...])
assert_type(selection.bytes, int)
assert_type(selection.warnings, tuple[str, ...])
assert_type(selection.excluded, Mapping[str, str])
assert_type(selection.digest, str)
assert_type(selection.explain("x"), str)

# -- errors -------------------------------------------------------------------------------------------------

try:
    result.check_returncode()
except CommandFailed as failed:
    assert_type(failed.returncode, int)
    assert_type(failed.run_id, str)
    assert_type(failed.log_tail, str)
except RunTimeout as late:
    assert_type(late.seconds, float)
    assert_type(late.returncode, int | None)
except RunCancelled as cancelled:
    assert_type(cancelled.returncode, int)
except RunLost as lost:
    assert_type(lost.detail, str)
except SpecError as invalid:
    assert_type(invalid.field, str)
    assert_type(invalid.value, object)
    assert_type(invalid.remedy, str)
    as_value_error: ValueError = invalid
except CheckoutNotFound as nowhere:
    assert_type(nowhere.searched, Sequence[tuple[str, Path]])
except BackendUnavailable as refused:
    assert_type(refused.backend, str)
    assert_type(refused.reason, str)
except RunNotFound as unknown:
    assert_type(unknown.nearest, Sequence[str])
    as_lookup_error: LookupError = unknown
except SkyRLModalError as other:
    as_exception: Exception = other

# -- backends of users --------------------------------------------------------------------------------------------


def use(backend: Backend) -> Launcher:
    return Launcher(backend=backend)


use(LocalBackend())
use(object())  # type: ignore[arg-type]
names: Any = skyrl_modal.__all__
