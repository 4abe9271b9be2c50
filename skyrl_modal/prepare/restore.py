"""From a run's record back to what was declared, and what has changed since."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import asdict

from skyrl_modal.checkout import read_checkout
from skyrl_modal.mount import select
from skyrl_modal.protocol.job import Job
from skyrl_modal.spec.image import ImageSpec
from skyrl_modal.spec.mount import MountSpec
from skyrl_modal.spec.ray import RaySpec
from skyrl_modal.spec.secret import SecretSpec
from skyrl_modal.spec.volume import VolumeSpec


def launcher_fields(job: Job) -> dict[str, Any]:
    """The fields of the launcher that a job was made by, but for its backend."""
    own = [name for name in job.secrets if not any(name in keys for keys in job.named_secrets.values())]
    return {
        "image": ImageSpec(**job.image),
        "volumes": [VolumeSpec(**asdict(volume)) for volume in job.volumes],
        "mounts": [
            MountSpec(
                local_path=None if mount.is_checkout else Path(mount.local_path),
                remote_path=mount.remote_path,
                exclude=mount.exclude,
                include=mount.include,
                skip_caches=mount.skip_caches,
            )
            for mount in job.mounts
        ],
        "gpu": job.gpu or None,
        "nodes": job.nodes,
        "rdma": job.rdma,
        "ray": None if job.ray is None else RaySpec(**job.ray),
        "timeout": job.timeout,
        "retries": job.retries,
        "should_retry": job.should_retry,
        "secrets": [*own, *(SecretSpec(name, keys) for name, keys in job.named_secrets.items())],
        "env": job.env,
        "cpu": job.cpu,
        "memory": job.memory,
        "region": job.region,
        "cloud": job.cloud,
        "workdir": job.workdir,
        "app_name": job.app_name,
        "checkout": job.checkout.get("root"),
        "grace": job.grace,
    }


def differences(job: Job) -> Iterator[str]:
    """What of a job's folders is not as it was when the job ran."""
    if job.checkout:
        today = read_checkout(Path(job.checkout["root"]))
        if today.commit != job.checkout["commit"]:
            yield f"its checkout was at {job.checkout['commit']}, {today.root} is at {today.commit}"
    for mount in job.mounts:
        if not Path(mount.local_path).is_dir():
            yield f"{mount.local_path} is gone"
            continue
        selection = select(
            mount.local_path, include=mount.include, exclude=mount.exclude, skip_caches=mount.skip_caches
        )
        if selection.digest != mount.digest:
            yield f"the files of {mount.local_path} are not the ones that ran"
