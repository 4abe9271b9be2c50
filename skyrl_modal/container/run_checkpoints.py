"""The checkpoint folders of a run on rank 0: they are claimed once, and prepared before each attempt.

It is imported only for runs whose checkpoint folders are known.
"""

from __future__ import annotations

import threading

from skyrl_modal.container.checkpoint_claims import ClaimedByOther, make_claim
from skyrl_modal.container.failures import Failure, StartError, describe_error
from skyrl_modal.container.lease_store import StoreUnavailable
from skyrl_modal.protocol.state import FailureCause

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from collections.abc import Callable

    from skyrl_modal.container.checkpoint_claims import Claim
    from skyrl_modal.container.lease_store import LeaseStore
    from skyrl_modal.container.resume import ResumedCommand
    from skyrl_modal.protocol.job import Job

#: Seconds for which a release waits for claims that are being made.
JOIN_TIMEOUT = 3.0


class RunCheckpoints:
    """The checkpoint folders of a run.

    Args:
        job: The run.
        store: The Dict with the leases, on Modal; None on this machine.
        report: Receives messages.
        note: Receives what only the log of the supervisor needs.
    """

    def __init__(
        self, job: Job, store: LeaseStore | None, report: Callable[[str], None], note: Callable[[str], None]
    ) -> None:
        self._job = job
        self._store = store
        self._report = report
        self._note = note
        self._claims: list[Claim] = []
        self._claiming: threading.Thread | None = None

    def claim(self) -> None:
        """Claim the folders.

        Without ``resume="auto"``, a folder that another run writes to is only reported, on Modal while the command
        starts.

        Raises:
            StartError: Another run that has not ended writes to one of them.
        """
        if self._job.resume is None and self._store is not None:
            self._claiming = threading.Thread(target=self._claim_all, name="checkpoint-claims", daemon=True)
            self._claiming.start()
        else:
            self._claim_all()

    def _claim_all(self) -> None:
        job = self._job
        targets = () if job.resume is None else job.resume.targets
        for folder in dict.fromkeys([*job.checkpoint_folders, *(target.folder for target in targets)]):
            claim = make_claim(job, folder, self._store, self._report)
            if claim is None:
                continue
            try:
                claim.acquire()
            except ClaimedByOther as error:
                if job.resume is not None:
                    raise StartError(Failure(FailureCause.CHECKPOINTS_IN_USE, str(error))) from error
                self._report(f"warning: {error}; both overwrite each other's checkpoints")
                continue
            except StoreUnavailable as error:
                self._report(f"warning: it is not known whether another run writes to {folder}: {error}")
                continue
            except OSError as error:  # such as a file system without locks: the training does not depend on them
                self._note(f"{folder} is not locked: {describe_error(error)}")
                continue
            self._claims.append(claim)

    @property
    def needs_new_containers(self) -> bool:
        """Whether a further attempt needs other containers: on Modal, a node sees what others wrote when it starts."""
        return self._store is not None and self._job.resume is not None and self._job.nodes > 1

    def resume(self, attempt: int) -> ResumedCommand | None:
        """Prepare the folders for an attempt, and return its command; None if it is started as it is.

        Raises:
            StartError: A trainer could not load its newest checkpoint.
        """
        if self._job.resume is None:
            return None
        from skyrl_modal.container.resume import resume_command

        return resume_command(self._job.resume, self._job.command, attempt)

    def release(self, *, is_continued: bool) -> None:
        """Release the folders.

        Args:
            is_continued: Whether another container continues the run.
        """
        if self._claiming is not None:
            self._claiming.join(JOIN_TIMEOUT)  # a claim that it makes later expires
        for claim in self._claims:
            claim.release(is_continued=is_continued)
