"""A launcher's run inside of the command ``modal run``, which starts the app and displays its log."""

from __future__ import annotations

import dataclasses

import modal
import modal.exception

from skyrl_modal.backends.modal.app import RunApp
from skyrl_modal.backends.modal.backend import ModalBackend
from skyrl_modal.backends.modal.errors import backend_unavailable
from skyrl_modal.backends.modal.execution import ModalExecution
from skyrl_modal.findings import Severity
from skyrl_modal.launcher import Launcher
from skyrl_modal.prepare.command import normalize_command
from skyrl_modal.prepare.findings import find_problems
from skyrl_modal.prepare.plan import make_plan
from skyrl_modal.prepare.staging import check_with_backend, take_snapshots
from skyrl_modal.protocol.job import Job
from skyrl_modal.run.foreground import report_end
from skyrl_modal.run.handle import Run
from skyrl_modal.run.interrupts import STOPPING_MESSAGE
from skyrl_modal.run.result import RunResult
from skyrl_modal.views.text import StderrReporter

#: The command of the plan that is made before the real command is known. It names no script.
_PLACEHOLDER_COMMAND = ":"


class ModalRun:
    """One run in an app that ``modal run`` starts, displays and stops.

    Create it where the app's script is imported: the snapshots are taken then, and Modal builds and uploads when it
    starts the app. The record and the exit code are those of ``Launcher.run``.

    Args:
        launcher: What to run with. Its backend is ignored.

    Attributes:
        app: The app that ``modal run`` runs.

    Raises:
        SpecError: A value is invalid.
        CheckoutNotFound: There is no checkout.
        BackendUnavailable: There is no token for Modal.
    """

    app: modal.App

    def __init__(self, launcher: Launcher) -> None:
        self._backend = ModalBackend()
        self._reporter = StderrReporter()
        self._plan = make_plan(launcher, _PLACEHOLDER_COMMAND, self._backend.name)
        secret_values = check_with_backend(self._plan, self._backend, self._reporter)
        self._run_app = RunApp(take_snapshots(self._plan, secret_values, self._reporter))
        self.app, self._function = self._run_app.define()
        for warning in self._run_app.warnings:
            self._reporter.warn(warning)

    def run(self, command: str) -> RunResult:
        """Run a command to its end. Call it in the app's ``local_entrypoint``. ``modal run`` displays the output.

        Ctrl-C stops the command with its grace period; a second Ctrl-C kills it.

        Args:
            command: A shell string.

        Returns:
            How it ended.

        Raises:
            SpecError: The command is empty.
            BackendUnavailable: Modal cannot be reached, or did not accept the call.
        """
        job = dataclasses.replace(self._run_app.job, command=normalize_command(command))
        self._reporter.info(f"run {job.run_id}: {job.command}")
        self._warn_about_command(job)
        try:
            call = self._function.spawn(*self._run_app.arguments(job))
        except modal.exception.Error as error:
            raise backend_unavailable(error) from error
        self._run_app.release()
        execution = ModalExecution.attached(job, self._run_app.handle(call.object_id))
        run = Run(job, self._backend.name, execution, stored_spec=self._plan.stored_spec)
        run._save_to_index()
        result = self._wait(run)
        report_end(result, self._reporter)
        return result

    def _warn_about_command(self, job: Job) -> None:
        """Report what the plan could not find without the command, such as calls of ``ray start`` in its scripts."""
        for finding in find_problems(job, self._plan.selections):
            if finding.severity is not Severity.NOTE and finding not in self._plan.findings:
                self._reporter.warn(str(finding))

    def _wait(self, run: Run) -> RunResult:
        interrupts = 0
        while True:
            try:
                return run.wait()
            except KeyboardInterrupt:
                interrupts += 1
                self._reporter.info(STOPPING_MESSAGE)
                run.cancel(now=interrupts > 1)
