"""For ``modal run``: a launcher's function in an app that the modal command itself runs and shows."""

from __future__ import annotations

import modal
from attrs import evolve

from skyrl_modal.backends.modal.app import RunApp
from skyrl_modal.backends.modal.backend import ModalBackend
from skyrl_modal.backends.modal.execution import ModalExecution
from skyrl_modal.launcher import Launcher
from skyrl_modal.prepare.staging import stage
from skyrl_modal.run.foreground import STOPPING, tell_end
from skyrl_modal.run.handle import Run, RunResult
from skyrl_modal.views.text import Lines


class ModalRun:
    """One run in an app that ``modal run`` starts, shows the log of, and ends.

    It is made where the app's script is imported: the files are taken then, and Modal builds and uploads as it starts
    the app. The record, the exit code and all else are those of ``Launcher.run``.

    Args:
        launcher: What to run with; its backend is not asked.

    Attributes:
        app: What ``modal run`` runs.

    Raises:
        SpecError: Something that was declared is wrong.
        CheckoutNotFound: There is no checkout.
    """

    app: modal.App

    def __init__(self, launcher: Launcher) -> None:
        plan = evolve(launcher, backend="modal").plan("nvidia-smi")
        self._reporter = Lines()
        staged = stage(plan, ModalBackend(), launcher.secrets, self._reporter)
        self._run_app = RunApp(staged.job, staged.snapshots, staged.secrets)
        self.app, self._function = self._run_app.define()

    def run(self, command: str) -> RunResult:
        """Run a command inside of the app's ``local_entrypoint``, to its end. Its output is shown by ``modal run``.

        Args:
            command: A shell string.

        Returns:
            How it ended. After Ctrl-C the command has had its time to save.
        """
        job = evolve(self._run_app.job, command=command)
        self._reporter.line(f"run {job.id}: {command}")
        call = self._function.spawn(*self._run_app.arguments(job))
        self._run_app.release()
        run = Run(job, "modal", ModalExecution(job, call_id=call.object_id))
        run.remember()
        presses = 0
        while True:
            try:
                result = run.wait()
                break
            except KeyboardInterrupt:
                presses += 1
                self._reporter.line(STOPPING)
                run.cancel(now=presses > 1)
        tell_end(result, self._reporter)
        return result
