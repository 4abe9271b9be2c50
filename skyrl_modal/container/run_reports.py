"""The messages of rank 0: to the caller, and to the log of the supervisor. Secrets are masked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

from skyrl_modal.container.masking import SecretMask
from skyrl_modal.dataclass import replace
from skyrl_modal.protocol.events import MessageEvent
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.run_folder import SUPERVISOR_LOG, RunFolder
from skyrl_modal.protocol.state import FailureCause


class RunReports:
    """Passes messages on.

    Args:
        folder: The run's folder.
        secrets: The values to mask.
        emit: Passes a message to the caller.
    """

    def __init__(self, folder: RunFolder, secrets: SecretMask, emit: Callable[[MessageEvent], None]) -> None:
        self._folder = folder
        self._secrets = secrets
        self._emit = emit

    def report(self, text: str, cause: FailureCause | None = None) -> None:
        """Pass a message to the caller, and write it to the log."""
        text = self._secrets.mask_text(text)
        self._emit(MessageEvent(text, cause=cause))
        self.log(text)

    def log(self, text: str) -> None:
        """Write a message to the log of the supervisor only."""
        from skyrl_modal.container.masked_logs import append_private, make_private_folder  # most runs have no message

        with contextlib.suppress(OSError):  # the message was passed to the caller; a full disk must not end the run
            folder = self._folder.rank_logs(0)
            make_private_folder(folder)
            with open(append_private(folder / SUPERVISOR_LOG), "a", encoding="utf-8") as log:
                log.write(f"{self._secrets.mask_text(text)}\n")


def mask_job(job: Job, secrets: SecretMask) -> Job:
    """Return a job for its record: what its author wrote as free text is masked."""
    mask = secrets.mask_text

    def mask_values(env: Mapping[str, str]) -> dict[str, str]:
        return {name: mask(value) for name, value in env.items()}

    return replace(
        job,
        command=mask(job.command),
        env=mask_values(job.env),
        name=None if job.name is None else mask(job.name),
        tags=tuple(map(mask, job.tags)),
        ray=None if job.ray is None else replace(job.ray, env=mask_values(job.ray.env)),
    )
