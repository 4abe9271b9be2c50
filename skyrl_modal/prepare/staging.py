"""From a plan to what a backend takes: looked at, told, and with the files as they are at this moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import platformdirs
from attrs import evolve, frozen

from skyrl_modal.backends import Backend
from skyrl_modal.mount import Snapshot, SnapshotStore
from skyrl_modal.prepare.plan import Plan
from skyrl_modal.prepare.secret_values import read_secrets
from skyrl_modal.protocol.job import Job
from skyrl_modal.run.foreground import Interrupts
from skyrl_modal.run.handle import Reporter
from skyrl_modal.spec.secret import SecretSpec


@frozen
class Staged:
    """What a run is started with.

    Attributes:
        job: The run, each mount with the digest of its files.
        snapshots: The files, one for each of the job's mounts.
        secrets: Values of the job's secrets.
    """

    job: Job
    snapshots: Sequence[Snapshot]
    secrets: Mapping[str, str]


def stage(
    plan: Plan,
    backend: Backend,
    secrets: Sequence[str | SecretSpec],
    reporter: Reporter,
    *,
    title: str = "",
    interrupts: Interrupts | None = None,
) -> Staged:
    """Take what goes. Edits of the folders reach the run no more.

    Args:
        plan: What is to run.
        backend: Where.
        secrets: As they were declared; the values of names are read here.
        reporter: Gets the header's lines and the warnings.
        title: The header's first line.
        interrupts: Ctrl-C that was pressed before the files are taken ends it.

    Raises:
        BackendUnavailable: The backend cannot take any job.
        SpecError: It cannot take this one, or a secret has no value.
    """
    job = plan.job
    # Seen before any work: a run that cannot be had is refused while it has cost nothing.
    notes = [*plan.warnings, *backend.check(job)]
    folders = [Path.cwd(), *([Path(job.checkout["root"])] if job.checkout else [])]
    values = read_secrets([name for name in secrets if isinstance(name, str)], folders)
    if title:
        reporter.line(title)
    for word, text in [*plan.mount_lines(), *backend.describe(job)]:
        reporter.line(f"{word:>8}  {text}")
    for note in notes:
        reporter.warn(note)
    if interrupts is not None:
        interrupts.raise_if_pressed()
    store = SnapshotStore(platformdirs.user_cache_path("skyrl_modal") / "snapshots")
    snapshots = [store.take(selection) for selection in plan.selections]
    for snapshot in snapshots:
        for note in snapshot.warnings:
            reporter.warn(note)
    mounts = zip(job.mounts, snapshots, strict=True)
    job = evolve(job, mounts=[evolve(mount, digest=snapshot.digest) for mount, snapshot in mounts])
    return Staged(job, snapshots, values)
