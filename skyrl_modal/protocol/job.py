"""One run as plain data, to JSON and back: the only thing of it that crosses into the container."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from attrs import asdict, field, fields, frozen

from skyrl_modal.errors import SpecError

#: Version of the record's form. A reader refuses a newer one and fills in what an older one lacks.
VERSION = 1


def new_run_id() -> str:
    """A run's id: the second it was made in (UTC), then something unique; ids sort by time.

    Example:
        >>> len(new_run_id())
        22
    """
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _texts(value: Sequence[str]) -> Sequence[str]:
    return tuple(value)


@frozen(kw_only=True)
class JobMount:
    """One folder as it goes into the container.

    Attributes:
        remote_path: Where the container has it.
        local_path: Where it comes from on the caller's machine.
        files: How many files go.
        bytes: Their size together.
        is_checkout: Whether it is the checkout.
        exclude: As in MountSpec.
        include: As in MountSpec.
        skip_caches: As in MountSpec.
        digest: Of paths, modes and contents; empty in a plan.
    """

    remote_path: str
    local_path: str
    files: int
    bytes: int
    is_checkout: bool = False
    exclude: Sequence[str] = field(default=(), converter=_texts)
    include: Sequence[str] = field(default=(), converter=_texts)
    skip_caches: bool = True
    digest: str = ""


@frozen(kw_only=True)
class JobVolume:
    """One volume of a run; the fields are those of VolumeSpec."""

    name: str
    mount_path: str
    create_if_missing: bool = True
    read_only: bool = False
    version: int | None = None


def _mounts(value: Sequence[JobMount | Mapping[str, Any]]) -> tuple[JobMount, ...]:
    return tuple(item if isinstance(item, JobMount) else JobMount(**item) for item in value)


def _volumes(value: Sequence[JobVolume | Mapping[str, Any]]) -> tuple[JobVolume, ...]:
    return tuple(item if isinstance(item, JobVolume) else JobVolume(**item) for item in value)


def _plain(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The value as JSON would give it back, so that a record and its copy are equal."""
    plain: Mapping[str, Any] = json.loads(json.dumps(value))
    return plain


def _plain_or_none(value: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return None if value is None else _plain(value)


@frozen(kw_only=True)
class Job:
    """One run. Paths are the container's.

    Attributes:
        id: The run's id.
        command: A shell string.
        workdir: Folder that the command runs in.
        repo_root: The checkout; None where no mount is one.
        data: The first volume; None where there is none.
        run_dir: Folder of this run's records: job.json, output.log, result.json.
        mounts: Folders that go.
        volumes: Persistent volumes.
        env: Variables for the command.
        secrets: Names of variables that are secret; their values are in no record.
        named_secrets: Names of Modal's own secrets, each with the variables that it must have.
        image: The fields of ImageSpec, ``base`` resolved.
        gpu: Requests in order of preference, such as ``("A100:4",)``.
        gpus: GPUs in each container as asked for; None to count what the machine has.
        nodes: Containers in the cluster.
        rdma: Whether the cluster's network is to be Modal's fast one.
        ray: The fields of RaySpec; None for no Ray.
        timeout: Seconds for each attempt.
        grace: Seconds that a command which is stopped gets to save and end.
        retries: Further attempts.
        should_retry: Exit codes after which a further attempt is made; None: after any.
        limit: Seconds for all attempts together; None for no limit.
        app_name: Name of the Modal app.
        cpu: CPU cores, as Modal takes them.
        memory: MiB, as Modal takes it.
        region: As Modal takes it.
        cloud: As Modal takes it.
        checkout: What is known of the checkout: root, commit, changed, and the version of Ray that it pins.
        created_at: When the job was made, ISO 8601 in UTC.
        version: Of this record's form.
    """

    id: str
    command: str
    workdir: str
    run_dir: str
    repo_root: str | None = None
    data: str | None = None
    mounts: tuple[JobMount, ...] = field(default=(), converter=_mounts)
    volumes: tuple[JobVolume, ...] = field(default=(), converter=_volumes)
    env: Mapping[str, str] = field(factory=dict)
    secrets: Sequence[str] = ()
    named_secrets: Mapping[str, Sequence[str]] = field(factory=dict, converter=_plain)
    image: Mapping[str, Any] = field(factory=dict, converter=_plain)
    gpu: Sequence[str] = ()
    gpus: int | None = None
    nodes: int = 1
    rdma: bool = False
    ray: Mapping[str, Any] | None = field(default=None, converter=_plain_or_none)
    timeout: float = 3600.0
    grace: float = 6.0
    retries: int = 0
    should_retry: Sequence[int] | None = None
    limit: float | None = None
    app_name: str = "my_skyrl_app"
    cpu: float | None = None
    memory: int | None = None
    region: str | None = None
    cloud: str | None = None
    checkout: Mapping[str, Any] = field(factory=dict)
    created_at: str = field(factory=lambda: datetime.now(UTC).isoformat())
    version: int = VERSION

    @property
    def run_volume(self) -> tuple[JobVolume, str] | None:
        """The volume that ``run_dir`` is on, and its path there, such as ``.skyrl_modal/runs/ID``; None: on none.

        Example:
            >>> volume = JobVolume(name="skyrl-data", mount_path="/root/data")
            >>> job = Job(id="r1", command="true", workdir="/", run_dir="/root/data/r1", volumes=[volume])
            >>> job.run_volume == (volume, "r1")
            True
        """
        for volume in self.volumes:
            if not volume.read_only and self.run_dir.startswith(f"{volume.mount_path}/"):
                return volume, self.run_dir.removeprefix(f"{volume.mount_path}/")
        return None

    def to_json(self) -> str:
        """The record as JSON text.

        Example:
            >>> job = Job(id="r1", command="true", workdir="/root/SkyRL", run_dir="/root/data/.skyrl_modal/runs/r1")
            >>> Job.from_json(job.to_json()) == job
            True
        """
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read a record.

        Raises:
            SpecError: It is no record of a job, or of a later version than this library knows.
        """
        try:
            record = json.loads(text)
            version = record["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise SpecError("job", text[:80], f"this is no record of a job: {error}") from error
        if not isinstance(version, int) or version > VERSION:
            raise SpecError("version", version, f"this library reads records up to version {VERSION}: upgrade it")
        known = {item.name for item in fields(cls)}
        record = {key: value for key, value in record.items() if key in known}
        for name in ("secrets", "gpu"):
            record[name] = tuple(record.get(name, ()))
        if record.get("should_retry") is not None:
            record["should_retry"] = tuple(record["should_retry"])
        try:
            return cls(**record)
        except TypeError as error:
            raise SpecError("job", record, f"this record of a job is not whole: {error}") from error
