"""The last steps before a run starts: check it with its backend, and take snapshots of its files."""

from __future__ import annotations

from collections.abc import Mapping

from skyrl_modal.backends import Backend
from skyrl_modal.backends.base import PreparedRun
from skyrl_modal.mount import SnapshotStore
from skyrl_modal.prepare.plan import Plan
from skyrl_modal.prepare.ray_version import refuse_version_mismatch
from skyrl_modal.prepare.secret_values import read_secret_values, secret_folders
from skyrl_modal.protocol.dataclass import replace
from skyrl_modal.reporting import Reporter
from skyrl_modal.user_folders import cache_folder, create_user_folder
from skyrl_modal.views.text import format_rows


def check_with_backend(plan: Plan, backend: Backend, reporter: Reporter, *, title: str = "") -> Mapping[str, str]:
    """Check whether a backend can execute a planned run, and report the plan. Nothing has been copied or started yet.

    Args:
        plan: The plan.
        backend: The backend.
        reporter: Receives the description of the run and the warnings.
        title: The first line of the description; empty for none.

    Returns:
        The values of the run's secrets.

    Raises:
        BackendUnavailable: The backend cannot execute any run.
        SpecError: The backend cannot execute this run, a secret has no value, or the command calls ``uv run`` and would
            have another version of Ray than its cluster.
    """
    refuse_version_mismatch(plan.job, plan.findings)
    warnings = [*plan.warnings, *backend.check(plan.job, plan.spec)]
    spec = plan.spec
    folders = secret_folders(plan.checkout)
    secret_values = read_secret_values(spec.secret_variables, folders, optional=spec.optional_variables)
    if title:
        reporter.info(title)
    rows = [*plan.mount_rows(), *backend.describe(plan.job, plan.spec)]
    if rows:
        reporter.info(format_rows(rows))
    for warning in warnings:
        reporter.warn(warning)
    for name in spec.optional_variables:
        if name not in secret_values:
            reporter.info(f"the optional secret {name} is left out: no such variable is defined")
    return secret_values


def take_snapshots(plan: Plan, secret_values: Mapping[str, str], reporter: Reporter) -> PreparedRun:
    """Take a snapshot of each mounted folder. Later edits of the folders do not affect the run.

    Args:
        plan: The plan.
        secret_values: The values of the run's secrets.
        reporter: Receives the warnings.

    Raises:
        SnapshotError: A folder could not be copied.
        StorageError: The folder of the snapshots cannot be created.
    """
    store = SnapshotStore(create_user_folder(cache_folder() / "snapshots"))
    snapshots = [store.take(selection) for selection in plan.selections]
    for snapshot in snapshots:
        for warning in snapshot.warnings:
            reporter.warn(warning)
    mounts = zip(plan.job.mounts, snapshots, strict=True)
    job = replace(plan.job, mounts=tuple(replace(mount, digest=snapshot.digest) for mount, snapshot in mounts))
    return PreparedRun(job=job, spec=plan.spec, snapshots=snapshots, secret_values=secret_values)
