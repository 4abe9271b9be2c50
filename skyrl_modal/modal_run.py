"""A launcher's run inside of the command ``modal run``, which starts the app and displays its log."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence

import modal
import modal.config

from skyrl_modal.backends.modal.app import RunApp
from skyrl_modal.backends.modal.backend import ModalBackend
from skyrl_modal.backends.modal.errors import translated_client_errors
from skyrl_modal.backends.modal.execution import ModalExecution
from skyrl_modal.dataclass import replace
from skyrl_modal.gitfiles.report import format_size
from skyrl_modal.launcher import Launcher
from skyrl_modal.prepare.command import normalize_command
from skyrl_modal.prepare.plan import Plan
from skyrl_modal.prepare.staging import Preparation, check_plan, report_plan
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.start_deadline import with_submission_time
from skyrl_modal.run.foreground import report_end
from skyrl_modal.run.handle import Run
from skyrl_modal.run.interrupts import STOPPING_MESSAGE
from skyrl_modal.run.result import RunResult
from skyrl_modal.views.text import StderrReporter

#: The command of the plan if the real one is not known when the app's script is imported. It names no script.
_PLACEHOLDER_COMMAND = ":"
#: Seconds for which ``modal run`` displays the rest of the output after the end of the app: 50 MB need more than the
#: client's default of 10 s (modal 1.6.4). It ends earlier when it has displayed everything.
LOGS_TIMEOUT = 60.0
_CLIENT_LOGS_TIMEOUT = 10.0
#: Number of bytes of output that ``modal run`` displays before it ends, also on a slow machine.
DISPLAYED_BYTES = 1 << 20
#: The option of ``modal run`` that names the command, as in SkyRL's own script.
_COMMAND_OPTION = "--command"


def command_option(arguments: Sequence[str]) -> str | None:
    """Return the command that arguments of ``modal run`` name with ``--command``; None if they name none.

    Example:
        >>> command_option(["modal", "run", "main.py", "--command", "python train.py"])
        'python train.py'
    """
    for number, argument in enumerate(arguments):
        if argument == _COMMAND_OPTION and number + 1 < len(arguments):
            return arguments[number + 1]
        if argument.startswith(f"{_COMMAND_OPTION}="):
            return argument.partition("=")[2]
    return None


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
        _extend_logs_timeout()
        command = command_option(sys.argv)
        planned = _PLACEHOLDER_COMMAND if command is None else normalize_command(command)
        self._preparation = Preparation(launcher, self._backend.name)
        self._plan, secret_values = check_plan(self._preparation.plan(planned), self._backend.check)
        report_plan(self._plan, self._backend, self._reporter, secret_values)
        with self._preparation, translated_client_errors():
            self._run_app = RunApp(self._preparation.take_snapshots(self._plan, secret_values, self._reporter))
            self._run_app.make_archives()
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
            SpecError: The command is empty or invalid.
            BackendUnavailable: Modal cannot be reached, or did not accept the call.
        """
        text, plan = normalize_command(command), self._plan
        self._reporter.info(f"run {self._run_app.job.run_id}: {text}")
        if text != plan.job.command:
            plan = self._check_command(text)
        if plan.job.resume is not None:
            from skyrl_modal.prepare.resume_check import refuse_resume  # imported here, since most runs do not need it

            refuse_resume(plan, self._backend)
        self._run_app.job = job = with_submission_time(_with_command_of(plan.job, self._run_app.job))
        with translated_client_errors():
            call = self._function.spawn(*self._run_app.arguments(job))
        self._run_app.release()
        execution = ModalExecution.attached(job, self._run_app.handle(call.object_id))
        run = Run(job, self._backend.name, execution, stored_spec=self._plan.stored_spec)
        run._save_to_index()
        result = self._wait(run)
        report_end(result, self._reporter)
        self._report_long_output(run.id, execution.wait().output.bytes)
        return result

    def _report_long_output(self, run_id: str, size: int) -> None:
        """Report at the exit of this process that ``modal run`` may not have displayed the whole output.

        After the end of the app it displays for ``MODAL_LOGS_TIMEOUT`` seconds what it has not displayed yet, and omits
        the rest without a message on standard output (modal 1.6.4). It does not report what it has displayed.
        """
        if size > DISPLAYED_BYTES:
            text = (
                f"`modal run` may have displayed only a part of the output, which has {format_size(size)}. "
                f"`skyrl-modal logs {run_id}` prints all of it"
            )
            atexit.register(self._reporter.warn, text)

    def _check_command(self, command: str) -> Plan:
        """Return the plan of a command that was not known when the app's script was imported. Report new warnings.

        Raises:
            SpecError: The command is invalid.
        """
        plan, _ = check_plan(self._preparation.plan(command), self._backend.check)
        for warning in plan.warnings:
            if warning not in self._plan.warnings:
                self._reporter.warn(warning)
        return plan

    def _wait(self, run: Run) -> RunResult:
        interrupts = 0
        while True:
            try:
                return run.wait()
            except KeyboardInterrupt:
                interrupts += 1
                self._reporter.info(STOPPING_MESSAGE)
                run.cancel(now=interrupts > 1)


def _with_command_of(planned: Job, job: Job) -> Job:
    """Return a job with the command of another one, and with what was found out about that command."""

    def own_path(path: str) -> str:
        return path.replace(planned.run_id, job.run_id)  # the id may be a part of it

    resume = planned.resume
    if resume is not None:
        resume = replace(resume, targets=tuple(replace(each, folder=own_path(each.folder)) for each in resume.targets))
    return replace(
        job,
        command=planned.command,
        checkpoint_folders=tuple(map(own_path, planned.checkpoint_folders)),
        export_folders=tuple(map(own_path, planned.export_folders)),
        resume=resume,
        continues_wandb_run=planned.continues_wandb_run,
    )


def _extend_logs_timeout() -> None:
    """Let ``modal run`` display the output for longer after the end of the app, unless the user has set the time.

    It reads the setting when it starts the app, after it has imported the app's script (modal 1.6.0 to 1.6.4).
    """
    if float(modal.config.config.get("logs_timeout")) == _CLIENT_LOGS_TIMEOUT:
        os.environ.setdefault("MODAL_LOGS_TIMEOUT", f"{LOGS_TIMEOUT:g}")
