"""Claims of checkpoint folders: two runs that train into one folder would overwrite each other's checkpoints.

On this machine a claim is a lock on a file beside the folder, which ends with the process. On Modal it is an entry of
the Dict with the leases, which is renewed, so that the claim of a container that was killed expires.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time

from skyrl_modal.container.lease_store import StoreUnavailable, send
from skyrl_modal.event_queue import wait_interruptibly
from skyrl_modal.protocol.leases import (
    EXPIRY_TIMEOUT,
    RENEWAL_INTERVAL,
    CheckpointEntry,
    checkpoints_key,
)

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from collections.abc import Callable

    from skyrl_modal.container.lease_store import LeaseStore
    from skyrl_modal.protocol.job import Job

#: Seconds between two requests while another run may hold a claim.
POLL_INTERVAL = 1.0
#: Seconds for the release, which is not needed: the claim would expire.
_RELEASE_TIMEOUT = 5.0
#: What the name of a lock file ends with. It begins with a dot and the name of the folder.
LOCK_SUFFIX = ".skyrl-modal.lock"
_MAX_RUN_ID = 200


class ClaimedByOther(Exception):
    """Another run that has not ended writes to the folder.

    Attributes:
        run_id: That run.
        folder: The folder.
    """

    def __init__(self, run_id: str, folder: str) -> None:
        super().__init__(f"the run {run_id}, which has not ended, writes its checkpoints to {folder}")
        self.run_id = run_id
        self.folder = folder


class FileClaim:
    """A claim by a lock file beside a folder.

    Args:
        run_id: The run.
        folder: The folder, which need not exist.
        mount_paths: The mount paths of volumes. The lock of such a folder is inside of it.
    """

    def __init__(self, run_id: str, folder: str, mount_paths: tuple[str, ...] = ()) -> None:
        real = os.path.realpath(folder)
        parent, name = os.path.split(real)
        if not name or folder in mount_paths or real in map(os.path.realpath, mount_paths):
            parent, name = real, "checkpoints"
        self._path = os.path.join(parent, f".{name}{LOCK_SUFFIX}")
        self._run_id, self._folder = run_id, folder
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Claim the folder.

        Raises:
            ClaimedByOther: Another run holds the lock.
            OSError: The file system does not allow it.
        """
        import fcntl  # imported here, since it is not needed on Modal

        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        while self._descriptor is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(self._path, flags, 0o600)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(f"{self._path} is not a regular file")
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    text = os.pread(descriptor, _MAX_RUN_ID, 0).decode("utf-8", "replace").strip()
                    raise ClaimedByOther(_printable(text), self._folder) from None
                if not _is_same_file(descriptor, self._path):
                    continue  # its holder has removed it meanwhile
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{self._run_id}\n".encode(), 0)
                self._descriptor = descriptor
            finally:
                if self._descriptor is None:
                    os.close(descriptor)

    def release(self, *, is_continued: bool = False) -> None:
        """Release the claim, and remove the file."""
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        os.close(self._descriptor)
        self._descriptor = None


class StoreClaim:
    """A claim by an entry of the Dict with the leases.

    Args:
        store: The Dict.
        job: The run.
        folder: The folder, on one of the run's volumes.
        report: Receives messages.
    """

    def __init__(self, store: LeaseStore, job: Job, folder: str, report: Callable[[str], None]) -> None:
        volume = max(
            (item for item in job.volumes if _is_below(folder, item.mount_path)),
            key=lambda item: len(item.mount_path),
        )
        self._key = checkpoints_key(volume.name, folder[len(volume.mount_path) :])
        self._store, self._run_id, self._folder, self._report = store, job.run_id, folder, report
        self._holder = os.urandom(8).hex()
        self._count = 0
        self._stopped = threading.Event()
        self._renewing: threading.Thread | None = None

    def acquire(self) -> None:
        """Claim the folder. The claim of a container that was killed is waited for until it has expired.

        Raises:
            ClaimedByOther: Another run renews its claim.
            StoreUnavailable: The Dict cannot be reached.
        """
        first, begin = self._try_to_acquire(), time.monotonic()
        if first is not None and first.run_id != self._run_id:
            self._report(f"waiting until it is known whether the run {first.run_id} still writes to {self._folder}")
        entry = first
        while entry is not None:
            if entry.run_id == self._run_id or time.monotonic() - begin >= EXPIRY_TIMEOUT:
                # An earlier container of this run has ended, by the lease of its attempt; or nothing was renewed.
                send(lambda: self._store.put(self._key, self._value()))
                break
            wait_interruptibly(threading.Event().wait, POLL_INTERVAL)
            entry = self._try_to_acquire()
            if entry is not None and entry != first:
                raise ClaimedByOther(entry.run_id, self._folder)
        self._renewing = threading.Thread(target=self._renew, name="checkpoint-claim", daemon=True)
        self._renewing.start()

    def _try_to_acquire(self) -> CheckpointEntry | None:
        """Acquire the claim if there is none. Return the entry of another holder otherwise."""
        if send(lambda: self._store.put(self._key, self._value(), skip_if_exists=True)):
            return None
        value = send(lambda: self._store.get(self._key))
        if value is None:  # it was released meanwhile
            return self._try_to_acquire()
        entry = CheckpointEntry.decode(value)
        return None if entry.holder == self._holder else entry

    def _value(self) -> str:
        return CheckpointEntry(self._run_id, self._holder, self._count).encode()

    def _renew(self) -> None:
        while not self._stopped.wait(RENEWAL_INTERVAL):
            with contextlib.suppress(StoreUnavailable):  # the next renewal may succeed
                value = send(lambda: self._store.get(self._key))
                entry = CheckpointEntry.decode(value)
                if value is not None and entry.holder != self._holder:
                    if entry.run_id != self._run_id:
                        self._report(
                            f"warning: the run {entry.run_id} writes to {self._folder} too, since this run could not "
                            "renew its claim in time"
                        )
                    return
                self._count += 1
                send(lambda: self._store.put(self._key, self._value()))

    def release(self, *, is_continued: bool = False) -> None:
        """Release the claim, unless another container continues the run: it takes it over, or it expires."""
        self._stopped.set()
        if self._renewing is None:
            return
        self._renewing.join(_RELEASE_TIMEOUT)
        if is_continued:
            return
        with contextlib.suppress(StoreUnavailable):
            value = send(lambda: self._store.get(self._key), _RELEASE_TIMEOUT)
            if value is not None and CheckpointEntry.decode(value).holder == self._holder:
                send(lambda: self._store.pop(self._key, None), _RELEASE_TIMEOUT)


Claim = FileClaim | StoreClaim


def make_claim(job: Job, folder: str, store: LeaseStore | None, report: Callable[[str], None]) -> Claim | None:
    """Return the claim of a folder; None for one that no other container can reach.

    Args:
        job: The run.
        folder: A folder that it writes checkpoints to.
        store: The Dict with the leases, on Modal; None on this machine.
        report: Receives messages.
    """
    folder = os.path.normpath(folder)
    if store is None:
        return FileClaim(job.run_id, folder, tuple(volume.mount_path for volume in job.volumes))
    if any(_is_below(folder, volume.mount_path) for volume in job.volumes):
        return StoreClaim(store, job, folder, report)
    return None


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _is_same_file(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _printable(text: str) -> str:
    return ascii(text)[1:-1] or "unknown"
