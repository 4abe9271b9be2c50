"""A snapshot that was taken, and the lock that keeps it from being removed."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from types import TracebackType

from attrs import field, frozen

from skyrl_modal.errors import SpecError


class Lease:
    """An open descriptor of a snapshot's folder with a shared lock on it, closed with its owner.

    Attributes:
        descriptor: The descriptor.
        close: Closes it, once.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.close = weakref.finalize(self, os.close, descriptor)


@frozen
class Snapshot:
    """A folder that holds exactly the files of a selection, as they were when it was taken.

    It is leased to who took it: it is not evicted while this object lives, or until ``release``; also usable in a
    ``with``. Its files are shared with other snapshots and must not be written to.

    Attributes:
        path: The folder.
        digest: Over paths, permissions and contents.
        files: How many there are.
        bytes: What they amount to.
        warnings: Files that could not be copied, or changed on the way.
    """

    path: Path
    digest: str
    files: int
    bytes: int
    warnings: tuple[str, ...] = ()
    _lease: Lease = field(kw_only=True, repr=False, eq=False)

    def hold(self) -> int:
        """A descriptor that keeps the snapshot from being evicted, for as long as it or a copy of it is open.

        It is inherited by child processes that are started with it (``pass_fds``), and its owner closes it.

        Raises:
            SpecError: The snapshot was released.
        """
        if not self._lease.close.alive:
            raise SpecError("snapshot", str(self.path), "was released: take it again")
        descriptor = os.dup(self._lease.descriptor)
        os.set_inheritable(descriptor, True)
        return descriptor

    def release(self) -> None:
        """Lets go of the snapshot; what holds it by a descriptor of its own goes on holding it."""
        self._lease.close()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
