"""One run as data: what its container reads, and what ``job.json`` holds.

It contains no value of a secret, and no path of the caller's machine, since volumes are shared.
"""

from __future__ import annotations

from collections.abc import Mapping

from skyrl_modal.dataclass import dataclass, field
from skyrl_modal.protocol.codec import TolerantStrEnum
from skyrl_modal.protocol.resume import ResumeRecord

SCHEMA_VERSION = 2


class WorkerLossPolicy(TolerantStrEnum):
    """What happens to the command when a node other than rank 0 is lost."""

    FAIL = "fail"
    WAIT = "wait"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One mounted folder.

    Attributes:
        remote_path: Its path in the container.
        files: Number of files.
        bytes: Their total size.
        is_checkout: Whether it is the SkyRL checkout.
        digest: SHA-256 over paths, modes and contents; empty in a plan.
    """

    remote_path: str
    files: int = 0
    bytes: int = 0
    is_checkout: bool = False
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One persistent volume. The fields are those of VolumeSpec."""

    name: str
    mount_path: str
    create_if_missing: bool = True
    read_only: bool = False
    version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One mounted bucket of an object store. The fields are the part of BucketSpec's that a run needs."""

    name: str
    mount_path: str
    key_prefix: str | None = None
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """The run's Ray cluster. The fields are those of RaySpec."""

    port: int = 6379
    dashboard: bool = False
    num_cpus: int | None = None
    object_store_memory: int | None = None
    start_timeout: float = 120.0
    env: Mapping[str, str] = field(default_factory=dict)
    on_worker_loss: WorkerLossPolicy = WorkerLossPolicy.FAIL


#: Seconds between SIGINT and SIGKILL if Modal ends a container: a preemption, or the end of the app. Modal kills the
#: container 30 s after its signal, whatever was requested (https://modal.com/docs/guide/preemption). The rest of that
#: time is for ending Ray and committing the volumes.
MODAL_ENDING_GRACE = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a run.

    Attributes:
        attempt_timeout: Seconds for each attempt.
        grace: Seconds between the first stop signal and SIGKILL.
        total_timeout: Seconds for all attempts together; None for no limit.
        retries: Number of further attempts.
        retry_exit_codes: Exit codes after which a further attempt is made; None for any.
        start_deadline: Seconds from the submission in which the command has to start; None for no limit.
        stall: Seconds without output and without a new step after which an attempt is ended; None for no limit.
        budget: US dollars for all attempts together; None for no limit.
        ending_grace: Like ``grace``, at most this if the platform ends the container, which it then kills; None for no
            limit.
    """

    attempt_timeout: float = 3600.0
    grace: float = 6.0
    total_timeout: float | None = None
    retries: int = 0
    retry_exit_codes: tuple[int, ...] | None = None
    ending_grace: float | None = None
    start_deadline: float | None = None
    stall: float | None = None
    budget: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRate:
    """What one node of a run costs.

    Attributes:
        per_hour: US dollars per hour. Of several GPU types in order of preference, it is the highest rate.
        source: Where the rate is from, with its date.
    """

    per_hour: float
    source: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for a negative rate."""
        if self.per_hour < 0:
            raise ValueError(f"a rate is not negative: {self.per_hour!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutFacts:
    """The state of the checkout when the run was started.

    Attributes:
        commit: The commit that was checked out; None outside of git.
        changed_files: Number of files that differed from the commit; None where it is not known.
        ray_version: The version of Ray that the checkout pins; None for none.
    """

    commit: str | None = None
    changed_files: int | None = None
    ray_version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run. All paths are the container's.

    Attributes:
        run_id: The run's id.
        command: A shell string.
        workdir: The folder that the command runs in.
        run_folder: The folder with this run's records, see ``protocol.run_folder``.
        repo_root: The checkout; None if none is mounted.
        data_root: Mount path of the first volume; None if there is none.
        name: The run's name; None if it has none.
        tags: The run's tags.
        env: Variables for the command.
        secret_names: Names of the variables whose values are secret.
        mounts: Mounted folders.
        volumes: Mounted volumes.
        buckets: Mounted buckets.
        image: The base image; empty on a backend without images.
        nodes: Number of containers in the cluster.
        gpus_per_node: GPUs of each container as requested; None to count what the node has.
        ray: Options of Ray; None for no Ray.
        limits: Timeouts and retries.
        lease: Seconds without a sign of life from the run's owner after which the run is stopped; None if it has no
            owner, or if the backend detects in another way that the owner has exited.
        checkout: The checkout's state; None if none is mounted.
        checkpoint_folders: Folders on volumes that the command writes checkpoints to, as far as is known.
        export_folders: Folders on volumes that it writes evaluations to, as far as is known.
        resume: How attempts continue from the newest complete checkpoint; None if the command is started as it is.
        created_at: When the job was created: ISO 8601, UTC.
        rate: What one node costs; None if that is not known, or if the run costs nothing.
        continues_wandb_run: Whether all attempts log to one run of W&B.
        submitted_at: When the backend was asked to execute it, by the caller's clock: ISO 8601, UTC. None for a backend
            that starts it immediately.
        schema_version: Version of this record's schema.

    Example:
        >>> from skyrl_modal.protocol.codec import from_json, to_json
        >>> job = Job(run_id="r1", command="true", workdir="/", run_folder="/data/r1", created_at="2026-01-01")
        >>> from_json(Job, to_json(job)) == job
        True
    """

    run_id: str
    command: str
    workdir: str
    run_folder: str
    created_at: str
    repo_root: str | None = None
    data_root: str | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secret_names: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    volumes: tuple[Volume, ...] = ()
    buckets: tuple[Bucket, ...] = ()
    image: str = ""
    nodes: int = 1
    gpus_per_node: int | None = None
    ray: RayOptions | None = None
    limits: Limits = Limits()
    lease: float | None = None
    checkout: CheckoutFacts | None = None
    rate: NodeRate | None = None
    submitted_at: str | None = None
    checkpoint_folders: tuple[str, ...] = ()
    export_folders: tuple[str, ...] = ()
    resume: ResumeRecord | None = None
    continues_wandb_run: bool = False
    schema_version: int = SCHEMA_VERSION

    @property
    def storage_paths(self) -> list[str]:
        """The mount paths of the volumes and buckets."""
        return [volume.mount_path for volume in self.volumes] + [bucket.mount_path for bucket in self.buckets]

    @property
    def run_folder_volume(self) -> tuple[Volume, str] | None:
        """The volume that holds ``run_folder``, and the folder's path on it; None if no volume holds it.

        Example:
            >>> volume = Volume(name="skyrl-data", mount_path="/data")
            >>> facts = {"run_id": "r1", "command": "true", "workdir": "/", "run_folder": "/data/r1"}
            >>> job = Job(**facts, created_at="2026-01-01", volumes=(volume,))
            >>> job.run_folder_volume == (volume, "r1")
            True
        """
        for volume in self.volumes:
            if not volume.read_only and self.run_folder.startswith(f"{volume.mount_path}/"):
                return volume, self.run_folder.removeprefix(f"{volume.mount_path}/")
        return None
