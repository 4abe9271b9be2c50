"""Construction of a Job from what the user declared. No other module maps one to the other."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from skyrl_modal.declaration import fields
from skyrl_modal.protocol.job import Bucket, CheckoutFacts, Job, Limits, Mount, RayOptions, Volume, WorkerLossPolicy
from skyrl_modal.protocol.run_id import new_run_id
from skyrl_modal.spec.bucket import BucketSpec
from skyrl_modal.spec.ray import RaySpec
from skyrl_modal.spec.run_spec import RunSpec
from skyrl_modal.spec.volume import VolumeSpec

if TYPE_CHECKING:
    from skyrl_modal.checkout import Checkout
    from skyrl_modal.mount import Selection


def build_job(
    spec: RunSpec,
    command: str,
    *,
    checkout: Checkout | None,
    selections: Sequence[Selection],
    image: str,
    counts_gpus: bool,
    run_id: str | None = None,
) -> Job:
    """Build the job of a new run.

    Args:
        spec: What the user declared.
        command: A shell string.
        checkout: The mounted checkout; None if none is mounted.
        selections: The files of the mounts, in their order.
        image: The resolved base image; empty on a backend without images.
        counts_gpus: Whether the container counts its GPUs, since the backend does not provide the requested ones.
        run_id: The id of the run; None for a new one.
    """
    run_id = run_id or new_run_id()
    repo_root = next((mount.remote_path for mount in spec.mounts if mount.local_path is None), None)
    return Job(
        run_id=run_id,
        command=command,
        workdir=posixpath.normpath(posixpath.join(repo_root or "/", spec.workdir)),
        run_folder=_run_folder(spec, run_id),
        created_at=datetime.now(UTC).isoformat(),
        repo_root=repo_root,
        data_root=spec.persistent_volumes[0].mount_path if spec.persistent_volumes else None,
        name=spec.name,
        tags=tuple(spec.tags),
        env=dict(spec.env),
        secret_names=(*spec.secret_variables, *(key for secret in spec.named_secrets for key in secret.keys)),
        mounts=tuple(
            Mount(
                remote_path=mount.remote_path,
                files=len(selection.files),
                bytes=selection.bytes,
                is_checkout=mount.local_path is None,
            )
            for mount, selection in zip(spec.mounts, selections, strict=True)
        ),
        volumes=tuple(map(_volume, spec.persistent_volumes)),
        buckets=tuple(map(_bucket, spec.buckets)),
        image=image,
        nodes=spec.nodes,
        gpus_per_node=None if counts_gpus else _requested_gpus(spec),
        ray=None if spec.ray is None else _ray_options(spec.ray),
        limits=Limits(
            attempt_timeout=spec.timeout,
            grace=spec.grace,
            retries=spec.retries,
            start_deadline=spec.start_deadline,
            stall=spec.stall,
            budget=spec.budget,
            retry_exit_codes=None if spec.should_retry is None else tuple(spec.should_retry),
        ),
        lease=spec.lease,
        checkout=None if checkout is None else _checkout_facts(checkout),
    )


def build_expected_job(spec: RunSpec, run_id: str) -> Job:
    """Build the part of a job that is known before its plan, and that decides where the run finds its files."""
    return Job(
        run_id=run_id,
        command="",
        workdir="/",
        run_folder=_run_folder(spec, run_id),
        created_at="",
        mounts=tuple(Mount(remote_path=mount.remote_path) for mount in spec.mounts),
        volumes=tuple(map(_volume, spec.persistent_volumes)),
        buckets=tuple(map(_bucket, spec.buckets)),
        nodes=spec.nodes,
        ray=None if spec.ray is None else _ray_options(spec.ray),
    )


def _run_folder(spec: RunSpec, run_id: str) -> str:
    writable = next((volume for volume in spec.persistent_volumes if not volume.read_only), None)
    return f"{writable.mount_path if writable else '/root'}/.skyrl_modal/runs/{run_id}"


def _requested_gpus(spec: RunSpec) -> int | None:
    """Return the number of GPUs of each node; None if the requests differ and the container has to count them."""
    counts = {request.count for request in spec.gpu_requests} or {0}
    return counts.pop() if len(counts) == 1 else None


def _ray_options(spec: RaySpec) -> RayOptions:
    return RayOptions(
        port=spec.port,
        dashboard=spec.dashboard,
        num_cpus=spec.num_cpus,
        object_store_memory=spec.object_store_memory,
        start_timeout=spec.start_timeout,
        env=dict(spec.env),
        on_worker_loss=WorkerLossPolicy(spec.on_worker_loss),
    )


def _checkout_facts(checkout: Checkout) -> CheckoutFacts:
    return CheckoutFacts(commit=checkout.commit, changed_files=checkout.changed_files, ray_version=checkout.ray_version)


def _bucket(spec: BucketSpec) -> Bucket:
    return Bucket(name=spec.name, mount_path=spec.mount_path, key_prefix=spec.key_prefix, read_only=spec.read_only)


def _volume(spec: VolumeSpec) -> Volume:
    return Volume(**{item.name: getattr(spec, item.name) for item in fields(VolumeSpec)})
