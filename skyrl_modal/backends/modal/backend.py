"""Runs in Modal's containers: an app for each run, the supervisor as its one function."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import modal
import modal.config
import modal.exception

from skyrl_modal.backends import VolumeEntry
from skyrl_modal.backends.modal.app import LONGEST, RunApp, limit_of
from skyrl_modal.backends.modal.execution import ModalExecution
from skyrl_modal.errors import BackendUnavailable, SpecError
from skyrl_modal.protocol.job import Job
from skyrl_modal.snapshots.snapshot import Snapshot

#: GPUs of a whole host on Modal (https://modal.com/docs/guide/gpu), and the types that differ.
WHOLE_HOST = 8
WHOLE_HOSTS = {"A10": 4, "A10G": 4}
#: Nodes of Modal's largest cluster (https://modal.com/docs/guide/multi-node-clusters).
MOST_NODES = 32
#: Modal's words for what an entry of a volume is, and ours.
_KINDS = {"FILE": "file", "DIRECTORY": "dir"}


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
        if not (config.get("token_id") and config.get("token_secret")) and not config.get("oauth_refresh_token"):
            raise BackendUnavailable(
                self.name, 'there is no token: run `modal setup`, or choose backend="local" to run on this machine'
            )
        if job.timeout > LONGEST:
            remedy = "Modal ends a function after 24 h. Let the command save and resume, and start it again"
            raise SpecError("timeout", job.timeout, remedy)
        if job.nodes > 1:
            _check_cluster(job)
        limit = limit_of(job)
        if limit is None:
            return []
        return [
            f"Modal ends a container after 24 h: whatever still runs after {limit:.0f} s is stopped so that it can save"
        ]

    def describe(self, job: Job) -> Sequence[tuple[str, str]]:
        """What runs where, for the header."""
        volumes = [("volume", f"{v.mount_path} is Modal's {v.name}") for v in job.volumes]
        gpu = " or ".join(job.gpu) or "no GPU"
        if job.nodes > 1:
            gpu = f"{job.nodes} nodes of {gpu}"
        return [("where", f"Modal, app {job.app_name}, {gpu}"), ("image", str(job.image["base"])), *volumes]

    def start(
        self, job: Job, snapshots: Sequence[Snapshot], secrets: Mapping[str, str], *, owned: bool
    ) -> ModalExecution:
        """Begin to build, upload and start; ``ModalExecution.wait_started`` tells when the run is handed over."""
        return ModalExecution(job, run_app=RunApp(job, snapshots, secrets), owned=owned)

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


def _check_cluster(job: Job) -> None:
    """See that Modal would make a cluster of this."""
    if not job.gpu:
        remedy = (
            'Modal\'s clusters are of containers that take all GPUs of their hosts: give gpu="H100:8" or the like; '
            'backend="local" has nodes without GPUs'
        )
        raise SpecError("gpu", None, remedy)
    for request in job.gpu:
        name, _, count = request.partition(":")
        whole = WHOLE_HOSTS.get(name.upper(), WHOLE_HOST)
        if int(count or 1) != whole:
            remedy = f'with nodes={job.nodes} each node takes all GPUs of its host: give "{name}:{whole}", or nodes=1'
            raise SpecError("gpu", request, remedy)
    if job.nodes > MOST_NODES:
        raise SpecError("nodes", job.nodes, f"Modal's clusters have up to {MOST_NODES} nodes")
