"""The variables of a run, the same on every rank but for what is the node's own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skyrl_modal.protocol.rank_config import Place

#: For workers that start through `uv run`, as SkyRL's do (docs/uv.md has the reasons and their sources).
FOR_UV = {
    # The first environment of a node may take longer than the 60 s after which Ray ends the worker and starts anew.
    "RAY_worker_register_timeout_seconds": "600",
    "UV_LOCK_TIMEOUT": "600",
    # A new uv looks for the project beside the script, which is Ray's own.
    "UV_PROJECT": ".",
}


def environment(job: Mapping[str, Any], place: Place) -> dict[str, str]:
    """What the command and Ray's processes get of a job, on top of this process's own variables."""
    env = {**os.environ, **job["env"], **place.env}
    gpus = gpus_of(job, place)
    env.update(
        SKYRL_RUN_ID=job["id"],
        NUM_NODES=str(job["nodes"]),
        NUM_GPUS=str(local_gpus() if gpus is None else gpus),
        NODE_RANK=str(place.rank),
        PYTHONUNBUFFERED="1",
    )
    for name, key in (("SKYRL_REPO_ROOT", "repo_root"), ("SKYRL_DATA", "data")):
        if job.get(key):
            env[name] = job[key]
        else:
            env.pop(name, None)
    env.pop("RAY_ADDRESS", None)  # the caller's own Ray is none of the run's business
    return env


def gpus_of(job: Mapping[str, Any], place: Place) -> int | None:
    """GPUs of a node: as asked for, else as counted there; None where neither is known."""
    return place.gpus if job.get("gpus") is None else int(job["gpus"])


def ray_environment(env: Mapping[str, str], spec: Mapping[str, Any], place: Place) -> dict[str, str]:
    """What Ray's processes get beyond the command: what its workers' ``uv run`` needs, and what RaySpec says.

    Nothing that is set already is changed.
    """
    offline = {"UV_OFFLINE": "1"} if place.is_offline else {}
    return {**FOR_UV, **offline, **env, **spec["env"]}


def local_gpus() -> int:
    """How many GPUs this machine shows: those of ``$CUDA_VISIBLE_DEVICES``, else all that the driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1", "NoDevFiles")])
    devices = Path("/proc/driver/nvidia/gpus")
    return sum(1 for _ in devices.iterdir()) if devices.is_dir() else 0


def prepare_workdir(job: Mapping[str, Any]) -> str:
    """See that the folder to run in is there, with what uv needs in it; gives a line to be said, empty for none.

    Raises:
        NotADirectoryError: It is not there.
    """
    root, workdir = job.get("repo_root"), Path(job["workdir"])
    if not workdir.is_dir():
        raise NotADirectoryError(f"workdir {workdir} is not there")
    # SkyRL's older layout: uv resolves the editable skyrl-gym only inside the folder that the command runs in.
    if root and workdir == Path(root) / "skyrl-train" and not (workdir / "skyrl-gym").exists():
        shutil.copytree(Path(root) / "skyrl-gym", workdir / "skyrl-gym", symlinks=True)
        return f"copied {root}/skyrl-gym into {workdir}, where uv looks for it"
    return ""
