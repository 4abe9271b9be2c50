"""One run's app on Modal: its image, files, volumes, secrets and function."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from secrets import token_hex
from typing import Any

import modal
import modal.config
import modal.exception
from attrs import evolve

from skyrl_modal.backends.modal.errors import words_of
from skyrl_modal.container import modal_entrypoint
from skyrl_modal.errors import BackendUnavailable, SpecError
from skyrl_modal.protocol.job import Job, JobMount, JobVolume
from skyrl_modal.snapshots.snapshot import Snapshot

#: Seconds that Modal gives a function at the most.
LONGEST = 24 * 3600
#: Seconds, beyond the run's own, until Modal ends the container: for Ray's start, saving and committing.
MARGIN = 300
#: Seconds that Modal may take for its first answer. Its client alone would try for a minute.
PATIENCE = 20.0


class RunApp:
    """The app of one run, and the one function in it.

    Args:
        job: The run.
        snapshots: What goes, one for each of the job's mounts; released once it is there.
        secrets: Values of the job's secrets.
    """

    def __init__(self, job: Job, snapshots: Sequence[Snapshot], secrets: Mapping[str, str]) -> None:
        self.job = evolve(job, limit=limit_of(job), gpus=_gpus(job))
        self._snapshots = snapshots
        self._token = token_hex(16)
        self.warnings: list[str] = []
        self._links: dict[str, dict[str, str]] = {}
        self._volumes: dict[str | PurePosixPath, modal.Volume | modal.CloudBucketMount] = {
            item.mount_path: _volume(item) for item in job.volumes
        }
        self._named = [
            modal.Secret.from_name(name, required_keys=list(keys)) for name, keys in job.named_secrets.items()
        ]
        registry = job.image["registry_secret"]
        self._registry = modal.Secret.from_name(registry) if registry else None
        own = {name: value for name, value in secrets.items() if name in job.secrets}
        self._own = [modal.Secret.from_dict(dict(own))] if own else []

    async def look_ahead(self) -> None:
        """See that Modal answers, takes the token, and has what the job names, while nothing was done yet.

        Raises:
            BackendUnavailable: Modal does not answer, or refuses the token.
            SpecError: It has no such secret or volume.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                client = await modal.Client.from_env.aio()
                await client.hello.aio()  # type: ignore[no-untyped-call]  # the client has no types for it
        except TimeoutError:
            server = modal.config.config.get("server_url")
            reason = f"it cannot be reached: {server} gave no answer within {PATIENCE:g} s. Is this machine online?"
            raise BackendUnavailable("modal", reason) from None
        wanted: list[tuple[str, str, Any]] = [
            ("secrets", name, secret) for name, secret in zip(self.job.named_secrets, self._named, strict=True)
        ]
        if self._registry is not None:
            wanted.append(("registry_secret", self.job.image["registry_secret"], self._registry))
        wanted += [("volumes", item.name, self._volumes[item.mount_path]) for item in self.job.volumes]
        await asyncio.gather(*(_have(field, name, thing) for field, name, thing in wanted))

    def define(self) -> tuple[modal.App, modal.Function[..., Any, Any]]:
        """The app and its function, to be called with ``arguments``. Nothing is asked of Modal."""
        job = self.job
        image = image_of(job, self._registry)
        for mount, snapshot in zip(job.mounts, self._snapshots, strict=True):
            links, unnamed = _not_carried(snapshot.path)
            self._links[mount.remote_path] = links
            self.warnings += [
                f"{name!r} stays behind: its name is not UTF-8, and Modal carries no such names" for name in unnamed
            ]
            image = image.add_local_dir(snapshot.path, mount.remote_path, ignore=_ignoring({*links, *unnamed}))
        app = modal.App(job.app_name, tags={"skyrl_run": job.id})
        run_job: Any = modal_entrypoint.run_job
        if job.nodes > 1:
            run_job = modal.clustered(size=job.nodes, rdma=job.rdma)(run_job)
        function = app.function(
            image=image,
            gpu=list(job.gpu) if len(job.gpu) > 1 else (job.gpu[0] if job.gpu else None),
            volumes=self._volumes,
            secrets=[*self._named, *self._own],
            cpu=job.cpu,
            memory=job.memory,
            region=job.region,
            cloud=job.cloud,
            timeout=math.ceil(container_seconds(job)),
            # Attempts are counted by the supervisor, in one container and one log.
            retries=0,
        )(run_job)
        return app, function

    def arguments(self, job: Job) -> tuple[str, dict[str, dict[str, str]], str]:
        """What the function is called with: the job, the links that Modal's upload would lose, and the ranks' token."""
        return job.to_json(), self._links, self._token

    def release(self) -> None:
        """The files have gone, or never will: others may remove them."""
        for snapshot in self._snapshots:
            snapshot.release()


def image_of(job: Job, registry: modal.Secret | None = None) -> modal.Image:
    """The image without its mounts, which come last: an edit of the code rebuilds nothing."""
    spec = job.image
    image = modal.Image.from_registry(spec["base"], secret=registry, add_python=spec["python"]).entrypoint([])
    if spec["apt"]:
        image = image.apt_install(*spec["apt"])
    if spec["pip"]:
        image = image.pip_install(*spec["pip"])
    if spec["commands"]:
        image = image.run_commands(*spec["commands"])
    return image.env({**spec["env"], "SKYRL_REPO_ROOT": job.repo_root or "/root/SkyRL"})


def container_seconds(job: Job) -> float:
    """How long the container may live: every attempt with its grace, and the margin."""
    return min(LONGEST, _whole(job))


def limit_of(job: Job) -> float | None:
    """Seconds after which the supervisor ends the run, so that it is not Modal who does; None where none is needed."""
    return None if _whole(job) <= LONGEST else LONGEST - MARGIN - job.grace


def _whole(job: Job) -> float:
    return (job.timeout + job.grace) * (job.retries + 1) + MARGIN


def _gpus(job: Job) -> int | None:
    """GPUs in the container; None, so that it counts them, where the wishes differ in it."""
    counts = {int(request.partition(":")[2] or 1) for request in job.gpu}
    return None if len(counts) > 1 else job.gpus


def _volume(item: JobVolume) -> modal.Volume:
    volume = modal.Volume.from_name(item.name, create_if_missing=item.create_if_missing, version=item.version)
    return volume.read_only() if item.read_only else volume


async def _have(field: str, name: str, thing: Any) -> None:
    """See that a named object is there."""
    try:
        await thing.hydrate.aio()
    except modal.exception.NotFoundError as error:
        remedy = {
            "volumes": "create it with `modal volume create`, or leave create_if_missing on",
            "secrets": "create it with `modal secret create`, with the keys that are named here",
            "registry_secret": "create it with `modal secret create`: REGISTRY_USERNAME and REGISTRY_PASSWORD",
        }[field]
        raise SpecError(field, name, f"Modal has none such ({words_of(error)}): {remedy}") from error
    except modal.exception.InvalidError as error:
        raise SpecError(field, name, f"Modal refuses it: {words_of(error)}") from error


def _not_carried(root: Path) -> tuple[dict[str, str], list[str]]:
    """What Modal's upload does not carry as it is: links with where they lead, and names that are no text.

    It would send what a link to a file leads to, and drop links to folders; so the container makes them itself.
    """
    links, unnamed = {}, []
    for folder, below, names in os.walk(root):
        inside = os.path.relpath(folder, root)
        for name in [*names, *below]:
            path = os.path.normpath(os.path.join(inside, name))
            is_link = os.path.islink(os.path.join(folder, name))
            target = os.readlink(os.path.join(folder, name)) if is_link else ""
            if not (_is_text(path) and _is_text(target)):
                unnamed.append(path)
            elif is_link:
                links[path] = target
    return links, sorted(unnamed)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _ignoring(names: set[str]) -> Callable[[Path], bool]:
    return lambda path: path.as_posix() in names


def carried(mount: JobMount) -> str:
    """What goes with a mount, in words."""
    return f"{mount.files:,} files ({mount.bytes / 1e6:,.1f} MB)"
