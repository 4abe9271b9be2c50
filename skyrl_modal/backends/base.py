"""Protocols that a backend implements. ``Launcher(backend=...)`` accepts any object that implements ``Backend``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from skyrl_modal.dataclass import dataclass, field

if TYPE_CHECKING:
    from pathlib import Path

    from skyrl_modal.backends.transfer_options import TransferOptions
    from skyrl_modal.protocol.events import RunEvent
    from skyrl_modal.protocol.job import Job
    from skyrl_modal.protocol.result import RunResultRecord
    from skyrl_modal.protocol.state import RunState, VolumeEntryKind
    from skyrl_modal.snapshots.snapshot import Snapshot
    from skyrl_modal.spec.bucket import AnyVolume
    from skyrl_modal.spec.run_spec import RunSpec

#: What ``Backend.attach`` finds a run by: plain data.
Handle = Mapping[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRun:
    """Everything that a backend needs to start a run.

    Attributes:
        job: What the container reads; each mount has the digest of its snapshot.
        spec: What the user declared.
        snapshots: The files of the job's mounts, in their order. The backend releases them.
        secret_values: Values of the job's secrets, by variable name.
    """

    job: Job
    spec: RunSpec
    snapshots: Sequence[Snapshot]
    secret_values: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class VolumeEntry:
    """One file or folder on a volume.

    Attributes:
        path: Its path in the container.
        type: ``"file"``, ``"dir"``, or ``"other"``.
        size: Bytes; 0 for a folder.
        mtime: Time of the last change in seconds since the epoch.
    """

    path: str
    type: VolumeEntryKind
    size: int
    mtime: float


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a run's folder.

    Attributes:
        path: Its path in the folder that was listed.
        size: Bytes.
    """

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class GpuChoice:
    """What one node of a run costs with one of the requested GPU types.

    Attributes:
        gpu: The request, such as ``"H100:8"``; empty without GPUs.
        per_hour: US dollars per hour of one node, with its CPU cores and memory; None if no rate is known.
    """

    gpu: str
    per_hour: float | None


@dataclass(frozen=True, slots=True)
class NodeRates:
    """What one node of a run costs.

    Attributes:
        choices: One for each requested GPU type, in the order of preference; one for a run without GPUs.
        source: Where the rates are from, with their date.
        notes: What the rates do not include.
    """

    choices: tuple[GpuChoice, ...]
    source: str
    notes: tuple[str, ...] = ()

    @property
    def per_hour(self) -> float | None:
        """US dollars per hour of one node: the highest of the choices; None if one of them is not known."""
        known = [choice.per_hour for choice in self.choices if choice.per_hour is not None]
        return max(known) if len(known) == len(self.choices) else None


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run waits for before its command starts.

    Attributes:
        phase: What happens, such as ``"building the image"`` or ``"waiting for H100:8"``.
        detail: How far it is, or why it waits; empty if that is not known.
        seconds: For how long; None if the phase has begun when it is first returned.
    """

    phase: str
    detail: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check of ``skyrl-modal doctor``.

    Attributes:
        subject: What was checked.
        ok: Whether it is as required.
        detail: What was found, and the remedy if it is not as required.
        optional: Whether runs work without it, or on another backend.
        is_required: Whether no run of its backend with the defaults of ``Launcher`` can be executed without it.
    """

    subject: str
    ok: bool
    detail: str
    optional: bool = False
    is_required: bool = False


class Execution(Protocol):
    """One run that a backend has started.

    An execution may have further methods:

    * ``events_from(offset: int) -> Iterator[RunEvent]``: like ``events``, without the first bytes of the output, whose
      number ``log_size`` has returned. Without it, the output is read from its beginning.
    * ``read_part(path: str, offset: int, limit: int) -> bytes``: a part of a file of the run's folder, with the errors
      of ``read_file``. Without it, a file that grows is read from its beginning each time.
    * ``progress() -> Progress | None``: what the run waits for now, which is displayed; None while the command runs, or
      if it is not known. It is called several times a second in a thread of its own, and must not wait.
    * ``take_lines() -> Sequence[str]``: the lines of a long step, such as the build of an image, since the last call.
      They are displayed with ``--verbose``. It must not wait.
    * ``read_last_lines(count: int) -> bytes | None``: the last lines of the output, without reading the rest of it;
      None if that is not possible now.
    """

    @property
    def handle(self) -> Handle:
        """What ``Backend.attach`` needs to find the run from another process; empty while it is not known."""

    @property
    def url(self) -> str | None:
        """URL of Ray's dashboard while it runs, else of a page about the run; None if there is neither."""

    @property
    def log_path(self) -> str:
        """Description of where output.log is."""

    def wait_started(self) -> None:
        """Wait until the run is started and ``handle`` is known.

        Raises:
            SkyRLModalError: The backend could not start it.
        """

    def events(self) -> Iterator[RunEvent]:
        """Yield what happens in the run, live, from the beginning of its output. The last event is a ResultEvent."""

    def log_size(self) -> int:
        """Return the current size of output.log in bytes.

        Raises:
            FileNotFoundError: The run has ended, and its folder does not exist any more.
        """

    def read_log(self, offset: int) -> bytes:
        """Return a part of output.log that starts at an offset; empty at the end of the file.

        A part is small compared to the memory, such as 1 MiB: the output is read in parts, also from its end.
        """

    def list_files(self, folder: str) -> Sequence[StoredFile]:
        """Return the files below a folder of the run's folder, sorted by path.

        Raises:
            FileNotFoundError: There is no such folder, or not yet.
        """

    def read_file(self, path: str) -> bytes:
        """Return the content of a file of the run's folder; of a large file, its end.

        Raises:
            FileNotFoundError: There is no such file.
        """

    def state(self) -> RunState:
        """Return the run's current state."""

    def wait(self, timeout: float | None = None) -> RunResultRecord:
        """Wait for the end of the run.

        Returns:
            Its result; ``RunResultRecord.without_record`` for a run that left none.

        Raises:
            TimeoutError: The run has not ended within ``timeout`` seconds.
        """

    def cancel(self, *, now: bool = False) -> None:
        """Stop the run, with its grace period or immediately. A run that has ended is not changed."""


class Backend(Protocol):
    """A place that executes runs.

    A backend may have further methods:

    * ``attach_by_call_id(call_id: str) -> Execution | None``: ``Run.attach`` then accepts ids that the backend has
      assigned. It returns None for an id that it does not recognize.
    * ``abandoned_folders() -> Iterator[Path]``: the folders on this machine that ``skyrl-modal clean`` removes.
    * ``forget(run_id: str) -> None``: removes what this machine keeps about a run that has ended, except its logs and
      results. ``skyrl-modal clean`` calls it after it has removed the record of the run.
    * ``node_rates(spec: RunSpec) -> NodeRates | None``: what one node of a run costs. It is called for runs, and for
      plans with ``check``, unless the run declares its rate. Without it, a run costs nothing unless it declares one.
    * ``checkpoint_listing(volume: AnyVolume, path: str) -> Listing``: a checkpoint folder on a volume, see
      ``skyrl_modal.formats.checkpoint_listing``. Without it, ``ls`` is called for each folder, and no file is read.
    * ``check_objects(job: Job, spec: RunSpec) -> Sequence[str]``: asks its servers for what the run names, such as
      volumes and secrets. It creates nothing. Its warnings and errors are like those of ``check``. Plans with
      ``check`` call it, and ``start`` reports the same errors.
    * ``prepare_check() -> AbstractContextManager[object]``: starts, without waiting for it, what ``check`` needs from
      other processes. It is entered before a plan is made, and left after the run was started, or could not be started.
    * ``prepare_start(expected: PreparedRun) -> AbstractContextManager[object]``: starts, without waiting for it, a run
      that is expected to be started in the ``with`` block and owned by this process. Its job has only the id, the
      paths, the volumes, the nodes and Ray. ``start`` may receive a run with the same id and other files.
    """

    @property
    def name(self) -> str:
        """Its name in messages and records."""

    def check(self, job: Job, spec: RunSpec) -> Sequence[str]:
        """Check whether this backend can execute a run, before anything is copied or started.

        Returns:
            Warnings for the user.

        Raises:
            BackendUnavailable: It cannot execute any run.
            SpecError: It cannot execute this run, for example since it does not mount buckets (``job.buckets``).
        """

    def describe(self, job: Job, spec: RunSpec) -> Sequence[tuple[str, str]]:
        """Return label and value pairs that describe where the run executes."""

    def start(self, run: PreparedRun, *, owned: bool) -> Execution:
        """Start a run.

        Args:
            run: The run with its files.
            owned: Whether the run ends when this process exits.
        """

    def attach(self, job: Job, handle: Handle) -> Execution:
        """Return a run that was started before, possibly by another process."""

    def diagnose(self) -> Iterator[CheckResult]:
        """Check what this backend needs on this machine, for ``skyrl-modal doctor``."""

    def ls(self, volume: AnyVolume, path: str) -> Sequence[VolumeEntry]:
        """List a folder of a volume, or one file. Paths start at the volume's root.

        Raises:
            FileNotFoundError: There is no such volume or path.
        """

    def kind(self, volume: AnyVolume, path: str, *, follow_links: bool = True) -> VolumeEntryKind | None:
        """Return what a path of a volume is; None if there is no such volume or path.

        With ``follow_links``, a symbolic link counts as what it leads to, where the backend can follow it.
        """

    def walk(self, volume: AnyVolume, path: str) -> Iterator[VolumeEntry]:
        """Yield all entries below a folder of a volume, or one file. Symbolic links are not followed.

        Raises:
            FileNotFoundError: There is no such volume or path.
        """

    def read(self, volume: AnyVolume, path: str) -> Iterator[bytes]:
        """Yield the content of a file of a volume in pieces, which are small compared to the memory.

        Raises:
            FileNotFoundError: There is no such volume or path.
        """

    def remove(self, volume: AnyVolume, path: str, *, recursive: bool) -> None:
        """Remove a file of a volume, or a folder with its content. The volume itself remains.

        Raises:
            FileNotFoundError: There is no such volume or path.
            SpecError: It is a folder, and ``recursive`` is False.
        """

    def pull(self, volume: AnyVolume, path: str, local: Path, options: TransferOptions) -> Sequence[str]:
        """Copy a file or folder from a volume to this machine. Nothing incomplete may remain at ``local``.

        Args:
            volume: The volume.
            path: What is copied.
            local: The path of the copy itself. An existing folder is merged with the copy of a folder.
            options: What the caller requests. With ``dry_run`` nothing is written.

        Returns:
            Warnings about entries that were not copied.
        """

    def push(self, volume: AnyVolume, local: Path, path: str, options: TransferOptions) -> Sequence[str]:
        """Copy a file or folder from this machine to a volume.

        Args:
            volume: The volume.
            local: What is copied.
            path: The path of the copy itself. An existing folder is merged with the copy of a folder.
            options: What the caller requests. With ``dry_run`` nothing is written.

        Returns:
            Warnings about entries that were not copied.
        """
