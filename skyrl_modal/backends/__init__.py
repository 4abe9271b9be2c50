"""What a place that runs jobs must offer. ``Launcher(backend=...)`` takes any object that has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from attrs import frozen

from skyrl_modal.errors import SpecError
from skyrl_modal.protocol.job import Job
from skyrl_modal.snapshots.snapshot import Snapshot

#: What happens in a run: ``("output", bytes)``, ``("line", str)`` of ours, ``("state", str)``, ``("handle", mapping)``
#: where the handle is known only later than the start, ``("result", record)``.
Event = tuple[Literal["output", "line", "state", "handle", "result"], Any]


@frozen
class VolumeEntry:
    """One file or folder on a volume.

    Attributes:
        path: Its path in the container.
        type: ``"file"``, ``"dir"``, or ``"other"``.
        size: Bytes; 0 for a folder.
        mtime: Seconds since the epoch.
    """

    path: str
    type: str
    size: int
    mtime: float


class Execution(Protocol):
    """One started run, as its backend sees it."""

    @property
    def handle(self) -> Mapping[str, Any]:
        """What ``Backend.attach`` needs to find it from another process; plain data."""

    @property
    def url(self) -> str | None:
        """A page about the run, where there is one."""

    @property
    def log_path(self) -> str:
        """Where output.log is, in words that its reader can use."""

    def wait_started(self) -> None:
        """Wait until the run is handed over and ``handle`` is known.

        Raises:
            SkyRLModalError: The backend would not have it.
        """

    def events(self) -> Iterator[Event]:
        """What happens, live, from the start of the output on. It ends when the run has ended and all is told.

        The last event is ``("result", record)``.
        """

    def log_size(self) -> int:
        """Bytes that output.log has now.

        Raises:
            FileNotFoundError: The run has ended, and what kept its output is gone.
        """

    def read_log(self, offset: int) -> bytes:
        """A part of output.log from an offset on; empty at its end."""

    def read_files(self, folder: str) -> Iterator[tuple[str, bytes]]:
        """The files below a folder of the run's own, each with its path there and its content.

        Raises:
            FileNotFoundError: There is no such folder, or not yet.
        """

    def state(self) -> str:
        """The run's state now."""

    def wait(self, timeout: float | None = None) -> Mapping[str, Any]:
        """Wait for the end; gives the result's record (see ``lost_record`` for a run that died without one).

        Raises:
            TimeoutError: It has not ended within that many seconds.
        """

    def cancel(self, *, now: bool = False) -> None:
        """Ask the run to end: gently, or at once. A run that has ended is left as it is."""


class Backend(Protocol):
    """A place that runs jobs."""

    @property
    def name(self) -> str:
        """How messages and records call it."""

    def check(self, job: Job) -> Sequence[str]:
        """See whether this backend can take the job, before any work is done.

        Returns:
            Warnings for the user.

        Raises:
            BackendUnavailable: It cannot take any.
            SpecError: It cannot take this one.
        """

    def describe(self, job: Job) -> Sequence[tuple[str, str]]:
        """What runs where, for the header: pairs of a word and what it is."""

    def start(self, job: Job, snapshots: Sequence[Snapshot], secrets: Mapping[str, str], *, owned: bool) -> Execution:
        """Hand over the mounts' files and start the run.

        Args:
            job: The run.
            snapshots: What goes, one for each of the job's mounts, in their order. The backend releases them when it
                needs them no more.
            secrets: Values of the job's secrets.
            owned: Whether the run ends when this process does.
        """

    def attach(self, job: Job, handle: Mapping[str, Any]) -> Execution:
        """Find a run that was started before, maybe by another process."""

    def ls(self, volume: str, path: str) -> Sequence[VolumeEntry]:
        """List a folder of a volume; ``path`` and the entries' paths begin at the volume's root.

        Raises:
            FileNotFoundError: There is no such volume or path.
        """

    def pull(self, volume: str, path: str, local: Path) -> None:
        """Copy a file or folder from a volume to this machine."""

    def push(self, volume: str, local: Path, path: str) -> None:
        """Copy a file or folder from this machine to a volume."""


#: Exit code of a run that died without telling one.
LOST_RETURNCODE = 125


def lost_record(job: Job, detail: str) -> Mapping[str, Any]:
    """The result's record of a run that died without leaving one."""
    begin = datetime.fromisoformat(job.created_at)
    return {
        "run_id": job.id,
        "state": "lost",
        "returncode": LOST_RETURNCODE,
        "attempts": 0,
        "started_at": job.created_at,
        "duration": (datetime.now(UTC) - begin).total_seconds(),
        "detail": detail,
    }


#: The backends that are chosen by name.
BACKENDS = ("modal", "local")


def backend_named(name: str) -> Backend:
    """The backend of a name.

    Raises:
        SpecError: There is none.
    """
    if name == "local":
        from skyrl_modal.backends.local.backend import LocalBackend

        return LocalBackend()
    if name == "modal":
        from skyrl_modal.backends.modal.backend import ModalBackend

        return ModalBackend()
    raise unknown_backend(name)


def unknown_backend(value: object) -> SpecError:
    """The error for a backend that is none."""
    return SpecError("backend", value, 'give "modal", "local", or an object with the Backend protocol')
