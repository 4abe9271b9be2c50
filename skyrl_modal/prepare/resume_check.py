"""Checks of ``resume="auto"`` against the checkpoints that are there, before anything is started."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from skyrl_modal.backends.checkpoint_listing import read_checkpoint_folder
from skyrl_modal.errors import SkyRLModalError, SpecError
from skyrl_modal.findings import Finding, Severity
from skyrl_modal.formats.checkpoint_match import find_mismatch
from skyrl_modal.prepare.resume import NO_VOLUME

if TYPE_CHECKING:
    from skyrl_modal.backends import Backend
    from skyrl_modal.prepare.plan import Plan


def find_resume_problems(plan: Plan, backend: Backend) -> Iterator[Finding]:
    """Yield a finding for each trainer that could not load its newest checkpoint, as far as it can be found out.

    Args:
        plan: The plan.
        backend: Its backend, which is asked for the checkpoints.
    """
    for target in () if plan.job.resume is None else plan.job.resume.targets:
        try:
            folder = read_checkpoint_folder(backend, plan.job, target.folder)
            chosen = None if folder is None else folder.newest_loadable()
        except (SkyRLModalError, OSError):  # the container examines them too
            continue
        problem = ""
        if chosen is not None:
            problem = find_mismatch(chosen, strategy=target.strategy, world_sizes=target.world_sizes)
        if chosen is not None and problem:
            yield Finding(
                code="resume-mismatch",
                severity=Severity.ERROR,
                message=f"{target.program} cannot continue from {chosen.path}: {problem}",
                remedy="Request the GPUs and the strategy that saved it, or pass another ckpt_path.",
            )


def refuse_resume(plan: Plan, backend: Backend) -> None:
    """Refuse a run whose attempts could not continue, before GPUs are paid.

    Raises:
        SpecError: There is no writable volume for its checkpoints, or the newest checkpoint cannot be loaded.
    """
    known = (finding for finding in plan.findings if finding.code == NO_VOLUME)
    for finding in (*known, *find_resume_problems(plan, backend)):
        raise SpecError("resume", plan.spec.resume, str(finding))
