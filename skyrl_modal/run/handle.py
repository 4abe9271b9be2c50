"""Handles of runs.

Importing this module loads what the list of runs needs. Output and results are loaded where a method returns them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from skyrl_modal.backends import get_backend, installed_backends
from skyrl_modal.dataclass import replace
from skyrl_modal.errors import (
    AmbiguousRun,
    BackendUnavailable,
    RecordError,
    RunNotFound,
    RunTimeout,
    SkyRLModalError,
    SpecError,
    translate_system_errors,
)
from skyrl_modal.protocol.job import Job
from skyrl_modal.run.index import IndexRecord, RunIndex
from skyrl_modal.run.log_lines import TAIL_BYTES, decode_lines
from skyrl_modal.run.unavailable import UnavailableExecution

if TYPE_CHECKING:
    from pathlib import Path

    from skyrl_modal.backends import Execution
    from skyrl_modal.findings import Finding
    from skyrl_modal.formats.checkpoints import Checkpoint
    from skyrl_modal.protocol.events import RunEvent
    from skyrl_modal.protocol.result import RunResultRecord
    from skyrl_modal.protocol.state import RunState
    from skyrl_modal.run.kept_logs import KeptLog
    from skyrl_modal.run.metrics import Metrics
    from skyrl_modal.run.output_reader import OutputReader
    from skyrl_modal.run.result import RunResult
    from skyrl_modal.run.rollouts import Rollouts
    from skyrl_modal.views.chart import Chart


class Run:
    """Handle of a run, returned by ``Launcher.submit`` and ``Run.attach``.

    Attributes:
        id: The run's id.
        job: What the run executes.
    """

    def __init__(
        self,
        job: Job,
        backend_name: str,
        execution: Execution,
        *,
        stored_spec: Mapping[str, Any] | None = None,
        findings: Sequence[Finding] = (),
    ) -> None:
        self.id = job.run_id
        self.job = job
        self._backend_name = backend_name
        self._execution = execution
        self._stored_spec = stored_spec or {}
        self._findings = tuple(findings)

    def __repr__(self) -> str:
        return f"Run(id={self.id!r}, command={self.job.command!r}, backend={self._backend_name!r})"

    def _repr_html_(self) -> str:
        """Return the run for a notebook, with its state now."""
        from skyrl_modal.views.notebook import rows_to_html  # only a notebook needs it

        try:
            state, reason, url = str(self.state), self.unavailable_reason or "", self.url or ""
        except SkyRLModalError as error:  # the run is shown, although its backend does not answer
            state, reason, url = "unknown", str(error), ""
        job = self.job
        rows = [
            ("reason", reason),
            ("run", self.id),
            ("backend", self.backend),
            ("name", job.name or ""),
            ("tags", ", ".join(job.tags)),
            ("command", job.command),
            ("created", job.created_at.partition(".")[0].replace("T", " ")),
            ("url", url),
        ]
        return rows_to_html(rows, state=state)

    @classmethod
    @translate_system_errors()
    def attach(cls, run_id: str) -> Run:
        """Return the handle of a run, in any process of the user who started it.

        Args:
            run_id: The run's id, the beginning of it, its name, ``"latest"`` for the newest run; or the id of a
                function call on Modal (``"fc-..."``). A call can be attached to from any machine with the same account;
                if it was started on another machine, only its log and its result are available.

        Raises:
            RunNotFound: No run has this id. The error contains similar ids.
            AmbiguousRun: Several runs match. The error contains their ids.
            RecordError: The run's record is damaged, or was written by a newer version.
            BackendUnavailable: It is the id of a call on Modal, and there is no token.
            StorageError: The record cannot be read.
        """
        index = RunIndex()
        try:
            return cls._from_record(index.find(run_id))
        except AmbiguousRun:
            raise
        except RunNotFound:
            run = cls._find_by_call(index, run_id)
            if run is None:
                raise
            return run

    @classmethod
    def _find_by_call(cls, index: RunIndex, call_id: str) -> Run | None:
        """Return the run with an id that a backend assigned; None if no backend recognizes the id."""
        for name in installed_backends():
            try:
                attach_by_call_id = getattr(get_backend(name), "attach_by_call_id", None)
            except BackendUnavailable:
                continue
            try:
                execution = attach_by_call_id(call_id) if attach_by_call_id is not None else None
            except SkyRLModalError:
                raise
            except Exception as error:  # any error of a backend that another package may provide
                raise BackendUnavailable(name, f"{type(error).__name__}: {error}") from error
            if execution is None:
                continue
            for record in index.newest_first():
                if record.backend == name and call_id in record.handle.values():
                    return cls._from_record(record)
            job = Job(run_id=call_id, command="", workdir="", run_folder="", created_at="")
            return cls(job, name, execution)
        return None

    @classmethod
    def _from_record(cls, record: IndexRecord) -> Run:
        """Return the handle of a run in the index. A backend that fails does not raise here: other runs are listed."""
        execution: Execution
        try:
            execution = get_backend(record.backend).attach(record.job, record.handle)
        except Exception as error:  # any error of a backend that another package may provide
            reason = str(error) if isinstance(error, SkyRLModalError) else f"{type(error).__name__}: {error}"
            execution = UnavailableExecution(record.backend, record.handle, reason)
        return cls(record.job, record.backend, execution, stored_spec=record.spec, findings=record.findings)

    @translate_system_errors()
    def _save_to_index(self) -> None:
        """Write the record that ``attach`` reads, if the backend knows the run's handle already."""
        handle = self._execution.handle
        if handle:
            record = IndexRecord(
                job=self.job,
                backend=self._backend_name,
                handle=dict(handle),
                spec=self._stored_spec,
                findings=self._findings,
            )
            RunIndex().add(record)

    @property
    @translate_system_errors()
    def state(self) -> RunState:
        """The current state; ``unknown`` if the run's backend is not installed.

        Raises:
            BackendUnavailable: The backend cannot answer now.
        """
        return self._execution.state()

    @property
    def unavailable_reason(self) -> str | None:
        """Why the run cannot be reached from here, for example since its backend is not installed; None if it can."""
        return self._execution.reason if isinstance(self._execution, UnavailableExecution) else None

    @property
    def backend(self) -> str:
        """The name of the backend that executes the run."""
        return self._backend_name

    @property
    @translate_system_errors()
    def url(self) -> str | None:
        """URL of Ray's dashboard while it runs (``RaySpec(dashboard=True)``); else of Modal's page of the app, or None.

        The dashboard requires ``dashboard_token``.
        """
        return self._execution.url

    @property
    def dashboard_token(self) -> str | None:
        """The token that Ray's dashboard requires; None for a run without a dashboard.

        Anyone who has it and can reach the dashboard can execute code in the run's containers.
        """
        token = self._execution.handle.get("ray_token")
        return None if token is None else str(token)

    @property
    @translate_system_errors()
    def cost(self) -> float | None:
        """What the containers of all attempts cost, in US dollars, until now or until the end of the run.

        It is an estimate by the rate that was known when the run started; Modal's invoice has precedence. A local run
        costs nothing unless ``Launcher.rate`` was given. None if the rate, or the time of a run that was lost, is not
        known.

        Raises:
            BackendUnavailable: The backend cannot answer now.
        """
        return self.cost_at(self.state)

    def cost_at(self, state: RunState) -> float | None:
        """Like ``cost``, for a state that ``state`` has returned a moment ago."""
        if self.job.rate is None:
            return self._cost_without_rate
        if state.is_final:
            with suppress(TimeoutError):  # it has a result, and its supervisor still removes files
                return self._final_cost(self._execution.wait(0))
        from skyrl_modal.run.cost import cost_until_now  # imported here, since most runs cost nothing

        return cost_until_now(self.job, self._execution)

    @property
    def _cost_without_rate(self) -> float | None:
        """A run without a rate costs nothing, except on Modal: then its rate is not known."""
        return None if self._backend_name == "modal" else 0.0

    def _final_cost(self, record: RunResultRecord) -> float | None:
        if record.cost is not None or self.job.rate is None:
            return self._cost_without_rate if record.cost is None else record.cost
        from skyrl_modal.run.cost import cost_of_lost_run  # imported here, since most runs leave a result

        return cost_of_lost_run(self.job, self._execution)

    @property
    def log_path(self) -> str:
        """Where the complete output is stored."""
        return self._execution.log_path

    def logs(self, follow: bool = False, tail: int | None = None, *, rank: int | None = None) -> Iterator[str]:
        r"""Yield the lines of the output without their newline.

        Only ``\n`` ends a line; ``\r`` and everything else that the command printed is part of it. With ``follow``, a
        line is yielded when it ends. Bytes that are not UTF-8 become U+FFFD, and a line of more than 128 Mi characters
        is divided. ``log_bytes`` yields the output unchanged, and also lines that have not ended.

        Args:
            follow: Whether to continue until the run has ended.
            tail: Number of existing lines to return; followed lines are always returned. None for all.
            rank: Return the kept logs of this rank instead of the command's output, each after a line with its name.
                ``kept_logs`` lists them. Dumps of Ray's internal state are left out.

        Raises:
            RunLost: The run has ended, and its output does not exist any more, for example because its volume was
                removed.
            SpecError: There is no such rank, or its logs are to be followed.
            PathNotFound: The rank has stored no logs, or not yet. It is also a FileNotFoundError.
            RecordError: The file with the output is not a regular file.
            BackendUnavailable: The backend cannot answer now.
            StorageError: The output cannot be read.
        """
        yield from decode_lines(self.log_bytes(follow, tail, rank=rank))

    def log_bytes(self, follow: bool = False, tail: int | None = None, *, rank: int | None = None) -> Iterator[bytes]:
        """Yield the output byte for byte, in pieces that may end anywhere. Arguments and errors are those of ``logs``.

        With ``follow``, the pieces arrive live, also those of a progress bar that prints no newline. While a run on
        Modal has not ended, its output is read from Modal's log, which is text: bytes that are not UTF-8 become U+FFFD.

        Warns:
            UserWarning: A part of the output is missing.
        """
        with translate_system_errors():
            if rank is None:
                yield from self._output(warnings.warn).read(follow=follow, tail=tail)
            else:
                from skyrl_modal.run.kept_logs import list_kept_logs, read_logs
                from skyrl_modal.spec.fields import check_whole_number

                check_whole_number("rank", rank, 0, self.job.nodes - 1)
                if follow:
                    message = "the logs of a rank cannot be followed; omit follow, or omit rank"
                    raise SpecError("follow", follow, message)
                logs = list_kept_logs(self._execution, rank=rank)
                if not logs:
                    raise FileNotFoundError(f"rank {rank} has stored no logs")
                yield from read_logs(logs, tail)

    @translate_system_errors()
    def kept_logs(self, *, rank: int | None = None, attempt: int | None = None, pattern: str = "*") -> list[KeptLog]:
        """Return the logs that are kept in the run's folder: of its supervisors, of Ray, SkyRL and the machine.

        They are sorted by rank, attempt and name. While the run is active, they contain what has been stored until now:
        on this machine what was written some seconds ago, and on Modal what was committed.

        Args:
            rank: Those of this rank; None for all.
            attempt: Those of this attempt; None for all.
            pattern: Those whose name matches a pattern of ``fnmatch``, such as ``ray/worker-*.err``.

        Raises:
            SpecError: There is no such rank.
            PathNotFound: No logs are stored, or not yet. It is also a FileNotFoundError.
            BackendUnavailable: The backend cannot answer now.
        """
        from skyrl_modal.run.kept_logs import list_kept_logs

        if rank is not None:
            from skyrl_modal.spec.fields import check_whole_number

            check_whole_number("rank", rank, 0, self.job.nodes - 1)
        return list_kept_logs(self._execution, rank=rank, attempt=attempt, pattern=pattern)

    @translate_system_errors()
    def checkpoints(self) -> list[Checkpoint]:
        """Return the checkpoints in the folders that the run's trainers write to, in ascending order of their steps.

        They are those that are there now, also of other runs with the same folder, and of a run that has ended. Which
        folders these are was found out before the run; without a known one, the list is empty. Nothing is unpickled.

        On Modal, they are those that were committed: after each new checkpoint, some seconds later. Sizes and JSON
        files are examined there; on this machine also whether the files of PyTorch were written to their ends.

        Raises:
            SpecError: A folder leads out of its volume.
            BackendUnavailable: The backend cannot answer now, or is not installed.
            StorageError: A folder cannot be read.

        Example:
            >>> from skyrl_modal import runs
            >>> for run in runs(limit=1):
            ...     complete = [checkpoint.step for checkpoint in run.checkpoints() if checkpoint.complete]
        """
        from skyrl_modal.run.checkpoints import list_checkpoints

        return list_checkpoints(get_backend(self._backend_name), self.job) if self.job.checkpoint_folders else []

    @translate_system_errors()
    def metrics(self, follow: bool = False, *, path: str | None = None) -> Metrics:
        """Return the metrics that the processes of the run have logged, with one row for each step.

        They are recorded while the run executes, whatever tracker the training uses: see docs/metrics.md. A run on
        Modal shows what its container has committed, about once a minute.

        Args:
            follow: Whether an iteration over the rows continues until the run has ended.
            path: Read this file of a volume of the run instead: lines of JSON, such as ``metrics.jsonl`` of a Tinker
                client, by its path in the container.

        Raises:
            SpecError: The path is on no volume of the run, or is to be followed.
            PathNotFound: There is no such path. It is also a FileNotFoundError.
            BackendUnavailable: The backend cannot answer now.

        Example:
            >>> from skyrl_modal import runs
            >>> for run in runs(limit=1):
            ...     rewards = [row.get("reward/avg_raw_reward") for row in run.metrics()]
        """
        from skyrl_modal.run.metrics import Metrics, RunFiles, VolumeFile

        if path is None:
            return Metrics(RunFiles(self._execution), follow=follow)
        if follow:
            raise SpecError("follow", follow, "a file on a volume cannot be followed; omit follow, or omit path")
        return Metrics(VolumeFile(self.job, self._backend_name, path))

    def plot(self, *keys: str) -> Chart:
        """Return a chart of metrics as they are now: a notebook shows it as SVG, ``print`` as plain text.

        Args:
            *keys: The metrics; none for those that show whether a training learns.

        Raises:
            SpecError: A key was not logged. The error contains similar ones.
            BackendUnavailable: The backend cannot answer now.

        Example:
            >>> from skyrl_modal import runs
            >>> for run in runs(limit=1):
            ...     print(run.plot())
        """
        return self.metrics().plot(*keys)

    def watch(self, *keys: str) -> None:
        """Show state, curves, last lines and cost until the run ends, in a notebook updated in place.

        Elsewhere, a line is printed for each new state and step. Ctrl-C, or an interrupt of the cell, ends the view and
        not the run, and the method returns.

        Args:
            *keys: The metrics to plot; none for those that show whether a training learns.

        Raises:
            BackendUnavailable: The backend cannot answer now.
        """
        from skyrl_modal.run.watch import watch_run

        watch_run(self, keys)

    @translate_system_errors()
    def rollouts(
        self,
        step: int | None = None,
        best: int | None = None,
        worst: int | None = None,
        *,
        source: str | None = None,
        path: str | None = None,
    ) -> Rollouts:
        """Return rollouts of the run: prompts, responses and rewards, by step. See docs/rollouts.md for their sources.

        Without ``best`` and ``worst`` they are sorted by step and source, and those of the same prompt are together.

        Args:
            step: Only those of this step; None for all.
            best: Only so many with the highest rewards, from the highest on.
            worst: Only so many with the lowest rewards, from the lowest on, after those of ``best``.
            source: Only those of this source, such as ``train``, ``eval`` or ``eval/openai_gsm8k``.
            path: Read this file of a volume of the run instead, or the files in this folder: lines of JSON, such as
                those of a Tinker client, by its path in the container.

        Raises:
            SpecError: An argument is wrong, or the path is on no volume of the run.
            PathNotFound: There is no such path. It is also a FileNotFoundError.
            BackendUnavailable: The backend cannot answer now, or is not installed.
            StorageError: A file cannot be read.

        Example:
            >>> from skyrl_modal import runs
            >>> for run in runs(limit=1):
            ...     for rollout in run.rollouts(best=3):
            ...         print(rollout)
        """
        from skyrl_modal.run.rollouts import read_rollouts

        return read_rollouts(
            get_backend(self._backend_name),
            self.job,
            self._execution,
            self.log_bytes,
            step=step,
            best=best,
            worst=worst,
            source=source,
            path=path,
        )

    @translate_system_errors()
    def pull(
        self, local: str | Path = ".", *, checkpoints: bool = False, force: bool = False, quiet: bool = False
    ) -> Path:
        """Copy what the run wrote to this machine: its folder with the records, output, logs, metrics and trackers.

        Files that were copied before and are unchanged are not copied again, so that it can be repeated while the run
        is active.

        Args:
            local: The folder that receives the copy, in a folder with the run's id.
            checkpoints: Whether to copy also the folders that the run's trainers write checkpoints to, as far as they
                are known, to ``checkpoints/`` in the copy. They may be large, and contain those of other runs.
            force: Whether to copy files again that are unchanged.
            quiet: Whether to suppress the progress, which is displayed while a transfer takes longer than a moment.

        Returns:
            The folder with the copy.

        Raises:
            PathNotFound: No volume holds the run's folder, or it does not exist any more. It is also a
                FileNotFoundError.
            BackendUnavailable: The backend cannot answer now, or is not installed.
            StorageError: The copy cannot be written.

        Example:
            >>> from skyrl_modal import runs
            >>> for run in runs(limit=1):  # doctest: +SKIP
            ...     print(run.pull("results"))
        """
        from skyrl_modal.run.files import pull_run
        from skyrl_modal.views.transfer_progress import TransferProgress

        progress = TransferProgress("pull", quiet=quiet)
        backend = get_backend(self._backend_name)
        return pull_run(backend, self.job, local, checkpoints=checkpoints, force=force, progress=progress)

    def _output(self, warn: Callable[[str], object]) -> OutputReader:
        from skyrl_modal.run.output_reader import OutputReader

        return OutputReader(self.id, self._execution, warn)

    def events(self) -> Iterator[RunEvent]:
        """Yield what happens in the run, from the beginning of its output. See ``skyrl_modal.protocol.events``.

        Raises:
            RecordError: A record of the run, or the file with its output, is damaged.
            BackendUnavailable: The backend cannot answer now.
            StorageError: The output cannot be read.
        """
        with translate_system_errors():
            yield from self._execution.events()

    def wait(self, timeout: float | None = None) -> RunResult:
        """Wait until the run has ended.

        Args:
            timeout: Seconds to wait at most; None for no limit.

        Raises:
            RunTimeout: The run did not end within that time. It continues.
            RecordError: The run's result is damaged, or was written by a newer version.
            BackendUnavailable: The backend cannot answer now.
        """
        with translate_system_errors():
            try:
                record = self._execution.wait(timeout)
            except TimeoutError as error:
                raise RunTimeout(run_id=self.id, seconds=timeout or 0.0) from error
            return self._to_result(record)

    def result(self, timeout: float | None = None) -> RunResult:
        """Wait until the run has ended, and return its result, like the method of a ``concurrent.futures.Future``.

        Arguments and errors are those of ``wait``. ``result(0)`` does not wait.
        """
        return self.wait(timeout)

    @translate_system_errors()
    def cancel(self, *, now: bool = False) -> None:
        """Stop the run: send INT to the command, then TERM, then KILL. A run that has ended is not changed.

        Args:
            now: Whether to send KILL immediately, without a grace period.
        """
        self._execution.cancel(now=now)

    def _to_result(self, record: RunResultRecord, output_tail: bytes | None = None) -> RunResult:
        """Build the result from a record, and from the end of the output (None: as it is stored)."""
        from skyrl_modal.run.result import RunResult

        if output_tail is None:
            try:
                output_tail = self._output(warnings.warn).read_end(TAIL_BYTES)
            except (OSError, RecordError, BackendUnavailable):  # the record describes how the run ended
                output_tail = b""
        result = RunResult.from_record(
            record, backend=self._backend_name, log_path=self.log_path, output_tail=output_tail
        )
        if record.cost is not None:
            return result
        try:
            return replace(result, cost=self._final_cost(record))
        except BackendUnavailable:  # the record describes how the run ended
            return result
