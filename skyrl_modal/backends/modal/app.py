"""The app of one run on Modal: its image, files, volumes, secrets, and its one function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import modal

from skyrl_modal.backends.base import Handle, PreparedRun
from skyrl_modal.backends.modal.archive import files_to_send
from skyrl_modal.backends.modal.buckets import BucketMount
from skyrl_modal.backends.modal.image import add_container_code, build_image
from skyrl_modal.backends.modal.limits import container_timeout, total_time_limit
from skyrl_modal.backends.modal.preflight import RequiredObject
from skyrl_modal.container import modal_entrypoint
from skyrl_modal.dataclass import replace
from skyrl_modal.protocol.codec import encode, to_json
from skyrl_modal.protocol.file_archive import ARCHIVE_FOLDER
from skyrl_modal.protocol.job import MODAL_ENDING_GRACE, Job, Volume
from skyrl_modal.protocol.leases import MAX_REPLACEMENTS
from skyrl_modal.protocol.rank_config import ClusterTokens
from skyrl_modal.snapshots.archive_cache import Sending

#: The greatest number of retries that Modal's servers accept (https://modal.com/docs/guide/retries).
MAX_RETRIES = 10
#: Seconds for which Modal keeps a container after a run, and charges it: the least that it permits. Without it, 60.
IDLE_SECONDS = 2


class RunApp:
    """The app of one run.

    Args:
        run: The run with its files. ``release`` releases its snapshots.

    Attributes:
        job: The run, with the limit on its total time that Modal requires.
        spec: What the user declared.
        tokens: Random tokens of the run's ranks and of its Ray.
        warnings: What the user should know; known after ``define``.
    """

    def __init__(self, run: PreparedRun) -> None:
        limits = replace(run.job.limits, total_timeout=total_time_limit(run.job), ending_grace=MODAL_ENDING_GRACE)
        # Only ``ModalRunStart`` renews a lease.
        self.job = replace(run.job, limits=limits, lease=None)
        self.spec = run.spec
        self.tokens = ClusterTokens.generate()
        self.warnings: list[str] = []
        self._snapshots = run.snapshots
        self._app: modal.App | None = None
        self._sending: Sending | None = None
        self._archives: dict[str, str] = {}
        self._buckets = {bucket.mount_path: BucketMount(bucket) for bucket in self.spec.buckets}
        self._volumes = {volume.mount_path: _volume_reference(volume) for volume in self.job.volumes}
        self._named_secrets = {
            item.name: modal.Secret.from_name(item.name, required_keys=list(item.keys))
            for item in self.spec.named_secrets
        }
        registry = self.spec.image.registry_secret
        self._registry = modal.Secret.from_name(registry) if registry else None
        values: dict[str, str | None] = dict(run.secret_values)
        self._secret_values = [modal.Secret.from_dict(values)] if values else []

    @property
    def required_objects(self) -> Sequence[RequiredObject]:
        """The secrets and volumes that must exist on Modal before the run starts."""
        optional = {item.name for item in self.spec.named_secrets if item.optional}
        required = [
            RequiredObject("secrets", name, secret, is_optional=name in optional)
            for name, secret in self._named_secrets.items()
        ]
        if self._registry is not None and self.spec.image.registry_secret:
            required.append(RequiredObject("registry_secret", self.spec.image.registry_secret, self._registry))
        required += [
            RequiredObject("volumes", item.name, self._volumes[item.mount_path], is_created=item.create_if_missing)
            for item in self.job.volumes
        ]
        required += [item for mount in self._buckets.values() for item in mount.required_objects]
        return required

    def leave_out(self, absent: Sequence[RequiredObject]) -> None:
        """Leave out optional secrets that Modal does not have."""
        for item in absent:
            del self._named_secrets[item.name]
            self.warnings.append(item.absence)

    def make_archives(self) -> None:
        """Write the archives of the files that do not exist yet.

        Raises:
            SnapshotError: They cannot be written.
        """
        remote_paths = [mount.remote_path for mount in self.job.mounts]
        self._sending, self._archives = files_to_send(zip(remote_paths, self._snapshots, strict=True))

    def define(self) -> tuple[modal.App, modal.Function[..., Any, Any]]:
        """Return the app and its function, which is called with ``arguments``. No request is sent to Modal.

        ``make_archives`` was called before.
        """
        job, spec = self.job, self.spec
        copies = zip(job.mounts, self._snapshots, strict=True)
        checkout = next((snapshot.path for mount, snapshot in copies if mount.is_checkout), None)
        image = build_image(
            job.image, spec.image, job.repo_root, self._registry, checkout=checkout, rdma=spec.rdma and spec.nodes > 1
        )
        if self._sending is not None:
            image = image.add_local_dir(self._sending.path, ARCHIVE_FOLDER)
        image = add_container_code(image)
        self._app = app = modal.App(spec.app_name, tags={"skyrl_run": job.run_id})
        run_job: Any = modal_entrypoint.run_job
        if job.nodes > 1:
            run_job = modal.clustered(size=job.nodes, rdma=spec.rdma)(run_job)
        gpus = [str(request) for request in spec.gpu_requests]
        function = app.function(
            image=image,
            gpu=gpus if len(gpus) > 1 else (gpus[0] if gpus else None),
            volumes=self._mounted(),
            secrets=[*self._named_secrets.values(), *self._secret_values],
            cpu=spec.cpu,
            memory=spec.memory,
            region=spec.region,
            cloud=spec.cloud,
            timeout=math.ceil(container_timeout(job)),
            scaledown_window=IDLE_SECONDS,
            retries=_retries(job),
            include_source=False,
        )(run_job)
        return app, function

    def _mounted(self) -> dict[str | PurePosixPath, modal.Volume | modal.CloudBucketMount]:
        """Return the volumes and buckets by their mount paths."""
        mounted: dict[str | PurePosixPath, modal.Volume | modal.CloudBucketMount] = {}
        mounted.update((PurePosixPath(path), volume) for path, volume in self._volumes.items())
        mounted.update((PurePosixPath(path), bucket.value) for path, bucket in self._buckets.items())
        return mounted

    def arguments(self, job: Job) -> tuple[str, dict[str, str], dict[str, Any]]:
        """Return the arguments of the function: the job, the archive of each mount, and the tokens."""
        return to_json(job), self._archives, encode(self.tokens)

    def handle(self, call_id: str) -> Handle:
        """Return what ``ModalBackend.attach`` finds the run by, with the token of its dashboard if it has one."""
        handle = {"call_id": call_id}
        if self._app is not None and self._app.app_id is not None:
            handle["app_id"] = self._app.app_id
        if self.job.submitted_at is not None:
            handle["submitted_at"] = self.job.submitted_at
        if self.job.ray is not None and self.job.ray.dashboard:
            handle["ray_token"] = self.tokens.ray
        return handle

    def release(self) -> None:
        """Release the snapshots and their archives, which have been uploaded or are not needed any more."""
        if self._sending is not None:
            self._sending.release()
        for snapshot in self._snapshots:
            snapshot.release()


def _retries(job: Job) -> modal.Retries | int:
    """Return Modal's retry policy for the function.

    The supervisor starts further attempts itself, so that they have one container and one log, and returns normally if
    the command failed. It cannot replace the container of a rank: Modal fails the call of a cluster of which a
    container died, and only a retry policy starts the cluster again
    (https://modal.com/docs/guide/multi-node-clusters). The attempts are counted in the run's folder in every case.
    With ``resume``, attempts that make progress use no retry, so the policy has as many as Modal permits.
    Without a folder on a volume, only the policy limits them, so it has no starts for containers with broken GPUs then.
    Modal also fails an input whose containers have died too often, which includes those with broken GPUs.
    """
    replacements = MAX_REPLACEMENTS if job.gpus_per_node != 0 and job.run_folder_volume is not None else 0
    further = job.limits.retries if job.resume is None else MAX_RETRIES - replacements
    starts = replacements + (further if job.nodes > 1 else 0)
    return modal.Retries(max_retries=starts, backoff_coefficient=1.0, initial_delay=1.0) if starts else 0


def _volume_reference(volume: Volume) -> modal.Volume:
    reference = modal.Volume.from_name(volume.name, create_if_missing=volume.create_if_missing, version=volume.version)
    return reference.read_only() if volume.read_only else reference
