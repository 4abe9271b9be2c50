"""The last steps before a run starts: check it with its backend, and take snapshots of its files."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from skyrl_modal.backends import Backend
from skyrl_modal.backends.base import PreparedRun
from skyrl_modal.dataclass import replace
from skyrl_modal.declaration import evolve
from skyrl_modal.errors import SpecError
from skyrl_modal.findings import Severity
from skyrl_modal.mount import Snapshot, SnapshotStore
from skyrl_modal.prepare.command import shorten_command
from skyrl_modal.prepare.expected_run import record_files
from skyrl_modal.prepare.findings import backend_finding
from skyrl_modal.prepare.plan import Plan, PlanBasis
from skyrl_modal.prepare.ray_version import refuse_version_mismatch
from skyrl_modal.prepare.secret_values import read_secret_values, secret_folders
from skyrl_modal.prepare.user_cache import result_cache
from skyrl_modal.reporting import Reporter
from skyrl_modal.spec.run_spec import RunSpec
from skyrl_modal.user_folders import cache_folder, create_user_folder
from skyrl_modal.views.text import format_rows

if TYPE_CHECKING:
    from skyrl_modal.backends import FindRates, RunCheck
    from skyrl_modal.prepare.command_starts import CheckedState


def check_plan(plan: Plan, check: RunCheck) -> tuple[Plan, Mapping[str, str]]:
    """Check a plan before anything is copied or started. Plans and runs make the same checks.

    Args:
        plan: The plan.
        check: The check of its backend.

    Returns:
        The plan with further findings, and the values of the run's secrets.

    Raises:
        BackendUnavailable: The backend cannot execute any run.
        SpecError: The backend cannot execute this run, a secret has no value, or the command calls ``uv run`` and would
            have another version of Ray than its cluster.
    """
    refuse_version_mismatch(plan.job, plan.findings)
    spec = plan.spec
    folders = secret_folders(plan.checkout)
    values = read_secret_values(spec.secret_variables, folders, optional=spec.optional_variables)
    # The last check: a plan reports a backend that is not available as a finding, after what is wrong with the run.
    warnings = check(plan.job, plan.spec)
    return evolve(plan, findings=(*plan.findings, *map(backend_finding, warnings))), values


def refuse_errors(plan: Plan) -> None:
    """Refuse a plan with findings that are errors, for ``strict``.

    Raises:
        SpecError: It has one. The error names all of them.
    """
    errors = [f"[{finding.code}] {finding}" for finding in plan.findings if finding.severity is Severity.ERROR]
    if errors:
        remedy = "strict refuses a command with errors: " + "; ".join(errors)
        raise SpecError("command", shorten_command(plan.job.command), remedy)


def report_plan(
    plan: Plan, backend: Backend, reporter: Reporter, secret_values: Mapping[str, str], *, title: str = ""
) -> None:
    """Report where a run executes, and the findings.

    Args:
        plan: A plan that was checked.
        backend: Its backend.
        reporter: Receives the messages.
        secret_values: The values of the run's secrets.
        title: The first line; empty for none.
    """
    if title:
        reporter.info(title)
    rows = [*plan.mount_rows(), *backend.describe(plan.job, plan.spec), *plan.cost_rows()]
    if rows:
        reporter.info(format_rows(rows))
    for warning in plan.warnings:
        reporter.warn(warning)
    for name in plan.spec.optional_variables:
        if name not in secret_values:
            reporter.info(f"the optional secret {name} is left out: no such variable is defined")


class Preparation:
    """What the runs of one call have in common: the plan without the command, and one snapshot of each folder.

    It can be used in a ``with`` statement, which releases its own lock on the snapshots at the end. Several threads can
    use it.

    Args:
        spec: What the user declared.
        backend: The backend's name.
        find_rates: Returns what one node of a run costs; None if the backend has no rates.

    Raises:
        SpecError: The folder of a mount does not exist, or a file of the checkout cannot be read.
        CheckoutNotFound: A mount is the checkout, and there is none.
    """

    def __init__(self, spec: RunSpec, backend: str, find_rates: FindRates | None = None) -> None:
        self._basis = PlanBasis(spec, backend, find_rates)
        self._lock = threading.Lock()
        self._snapshots: list[Snapshot] = []

    def plan(self, command: str, state: CheckedState | None = None, *, run_id: str | None = None) -> Plan:
        """Return the plan of a command.

        Args:
            command: A shell string.
            state: What the backend and earlier runs show; None if they were not asked.
            run_id: The id of the run; None for a new one.

        Raises:
            SpecError: The plan is invalid.
        """
        return self._basis.plan(command, state, run_id=run_id)

    def take_snapshots(self, plan: Plan, secret_values: Mapping[str, str], reporter: Reporter) -> PreparedRun:
        """Take a snapshot of each mounted folder, or use that of an earlier call. Later edits do not affect the run.

        An edit that is made between the selection of the files and this call may or may not be in the snapshot.

        Args:
            plan: A plan of this preparation.
            secret_values: The values of the run's secrets.
            reporter: Receives the warnings.

        Raises:
            SnapshotError: A folder could not be copied.
            StorageError: The folder of the snapshots cannot be created.
        """
        with self._lock:
            if not self._snapshots:
                store = SnapshotStore(create_user_folder(cache_folder() / "snapshots"))
                self._snapshots = [store.take(selection, as_selected=True) for selection in self._basis.selections]
                roots = [selection.root for selection in self._basis.selections]
                record_files(plan.spec, roots, self._snapshots, result_cache())
            snapshots = [snapshot.share() for snapshot in self._snapshots]
        for snapshot in snapshots:
            for warning in snapshot.warnings:
                reporter.warn(warning)
        mounts = zip(plan.job.mounts, snapshots, strict=True)
        job = replace(plan.job, mounts=tuple(replace(mount, digest=snapshot.digest) for mount, snapshot in mounts))
        return PreparedRun(job=job, spec=plan.spec, snapshots=snapshots, secret_values=secret_values)

    def release(self) -> None:
        """Release the locks on the snapshots. Runs that have been prepared have their own."""
        for snapshot in self._snapshots:
            snapshot.release()

    def __enter__(self) -> Preparation:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
