"""Runs in Modal's containers: an app for each run, the supervisor as its one function."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import modal
import modal.config
import platformdirs
from attrs import evolve

from skyrl_modal.backends import VolumeEntry
from skyrl_modal.backends.modal_execution import ModalExecution
from skyrl_modal.container import modal_function
from skyrl_modal.errors import BackendUnavailable, SpecError
from skyrl_modal.job import Job
from skyrl_modal.mount import Selection, SnapshotStore

#: Seconds that Modal gives a function at the most.
LONGEST = 24 * 3600
#: Modal's words for what an entry of a volume is, and ours.
_KINDS = {"FILE": "file", "DIRECTORY": "dir"}
#: Seconds, beyond the run's own, until Modal ends the container: for Ray's start, saving and committing.
MARGIN = 300


class ModalBackend:
    """Modal's containers, by the account that the environment or ``modal setup`` gives.

    Example:
        >>> ModalBackend().name
        'modal'
    """

    name = "modal"

    def check(self, job: Job) -> Sequence[str]:
        """See whether Modal can be asked for this job; gives warnings.

        Raises:
            BackendUnavailable: There is no token.
            SpecError: Modal would refuse the job: its time-out, or the GPUs of a cluster.
        """
        config = modal.config.config
        if not (config.get("token_id") and config.get("token_secret")):
            raise BackendUnavailable(
                self.name, 'there is no token: run `modal setup`, or choose backend="local" to run on this machine'
            )
        if job.timeout > LONGEST:
            remedy = "Modal ends a function after 24 h. Let the command save and resume, and start it again"
            raise SpecError("timeout", job.timeout, remedy)
        if job.nodes > 1:
            raise SpecError("nodes", job.nodes, "this version runs one node")
        limit = _limit(job)
        if limit is None:
            return []
        return [
            f"Modal ends a container after 24 h: whatever still runs after {limit:.0f} s is stopped so that it can save"
        ]

    def describe(self, job: Job) -> Sequence[tuple[str, str]]:
        """What runs where, for the header."""
        volumes = [("volume", f"{v.mount_path} is Modal's {v.name}") for v in job.volumes]
        gpu = " or ".join(job.gpu) or "no GPU"
        return [("where", f"Modal, app {job.app_name}, {gpu}"), ("image", str(job.image["base"])), *volumes]

    def start(
        self, job: Job, selections: Sequence[Selection], secrets: Mapping[str, str], *, owned: bool
    ) -> ModalExecution:
        """Begin to build, upload and start; ``ModalExecution.wait_started`` tells when the run is handed over."""
        store = SnapshotStore(platformdirs.user_cache_path("skyrl_modal") / "snapshots")
        # From a snapshot: a file that is edited during the upload neither fails the run nor goes half old, half new.
        snapshots = [store.take(selection) for selection in selections]
        image = image_of(job)
        for mount, snapshot in zip(job.mounts, snapshots, strict=True):
            image = image.add_local_dir(snapshot.path, mount.remote_path)
        app = modal.App(job.app_name, tags={"skyrl_run": job.id})
        own = {name: value for name, value in secrets.items() if name in job.secrets}
        named = [modal.Secret.from_name(name, required_keys=list(keys)) for name, keys in job.named_secrets.items()]
        function = app.function(
            image=image,
            gpu=list(job.gpu) if len(job.gpu) > 1 else (job.gpu[0] if job.gpu else None),
            volumes={item.mount_path: _volume(item) for item in job.volumes},
            secrets=[*named, *([modal.Secret.from_dict(dict(own))] if own else [])],
            cpu=job.cpu,
            memory=job.memory,
            region=job.region,
            cloud=job.cloud,
            timeout=math.ceil(_container_seconds(job)),
            # Attempts are counted by the supervisor, in one container and one log.
            retries=0,
        )(modal_function.run_job)
        job = evolve(job, limit=_limit(job))
        return ModalExecution(job, app=app, function=function, owned=owned, leases=snapshots)

    def attach(self, job: Job, handle: Mapping[str, Any]) -> ModalExecution:
        """Find a run by its call's id, from any machine with the same account."""
        return ModalExecution(job, call_id=str(handle["call_id"]))

    def ls(self, volume: str, path: str) -> Sequence[VolumeEntry]:
        """List a folder of a volume, or one file of it."""
        try:
            found = modal.Volume.from_name(volume).listdir(f"/{path}")
        except modal.exception.NotFoundError as error:
            raise FileNotFoundError(f"volume {volume} has no {path or '/'}: {error}") from error
        return [
            VolumeEntry(entry.path.lstrip("/"), kind, 0 if kind == "dir" else entry.size, float(entry.mtime))
            for entry in found
            for kind in [_KINDS.get(entry.type.name, "other")]
        ]

    def pull(self, volume: str, path: str, local: Path) -> None:
        """Copy a file or folder from a volume to ``local``."""
        source = modal.Volume.from_name(volume)
        try:
            found = source.listdir(f"/{path}", recursive=True)
        except modal.exception.NotFoundError as error:
            raise FileNotFoundError(f"volume {volume} has no {path or '/'}: {error}") from error
        for entry in found:
            inside = posixpath.relpath(entry.path.lstrip("/"), path or ".")
            target = local if inside == "." else local / inside
            if entry.type.name == "DIRECTORY":
                target.mkdir(parents=True, exist_ok=True)
            elif entry.type.name == "FILE":
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "wb") as file:
                    source.read_file_into_fileobj(entry.path, file)

    def push(self, volume: str, local: Path, path: str) -> None:
        """Copy a file or folder from this machine to a volume."""
        with modal.Volume.from_name(volume, create_if_missing=True).batch_upload(force=True) as batch:
            if local.is_dir():
                batch.put_directory(local, f"/{path}")
            else:
                batch.put_file(local, f"/{path}")


def image_of(job: Job) -> modal.Image:
    """The image without its mounts, which come last: an edit of the code rebuilds nothing."""
    spec = job.image
    secret = modal.Secret.from_name(spec["registry_secret"]) if spec["registry_secret"] else None
    image = modal.Image.from_registry(spec["base"], secret=secret, add_python=spec["python"]).entrypoint([])
    if spec["apt"]:
        image = image.apt_install(*spec["apt"])
    if spec["pip"]:
        image = image.pip_install(*spec["pip"])
    if spec["commands"]:
        image = image.run_commands(*spec["commands"])
    return image.env({**spec["env"], "SKYRL_REPO_ROOT": job.repo_root or "/root/SkyRL"})


def _volume(item: Any) -> modal.Volume:
    volume = modal.Volume.from_name(item.name, create_if_missing=item.create_if_missing, version=item.version)
    return volume.read_only() if item.read_only else volume


def _container_seconds(job: Job) -> float:
    """How long the container may live: every attempt with its grace, and the margin."""
    return min(LONGEST, (job.timeout + job.grace) * (job.retries + 1) + MARGIN)


def _limit(job: Job) -> float | None:
    """Seconds after which the supervisor ends the run, so that it is not Modal who does; None where none is needed."""
    whole = (job.timeout + job.grace) * (job.retries + 1) + MARGIN
    return None if whole <= LONGEST else LONGEST - MARGIN - job.grace
