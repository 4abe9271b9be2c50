"""Runs that this process owns: stream the output to a sink, forward Ctrl-C, and report the end."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Collection

from skyrl_modal.dataclass import dataclass, replace
from skyrl_modal.errors import SkyRLModalError
from skyrl_modal.event_queue import EventQueue
from skyrl_modal.protocol.events import (
    HandleEvent,
    MessageEvent,
    MessageLevel,
    OutputEvent,
    ResultEvent,
    RunEvent,
    StateEvent,
)
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.run_folder import OUTPUT_FILE, RESULT_FILE
from skyrl_modal.protocol.state import FailureCause, RunState
from skyrl_modal.reporting import NullReporter, PlainDisplay, Reporter, WaitDisplay
from skyrl_modal.run.handle import Run
from skyrl_modal.run.interrupts import InterruptEvent, Interrupts
from skyrl_modal.run.log_lines import TAIL_BYTES
from skyrl_modal.run.output_sink import OutputTarget, Sink, open_sink
from skyrl_modal.run.result import RunResult
from skyrl_modal.views.text import StateText

#: States of runs whose cause is searched for in their logs, and number of lines that are reported with it.
_EXPLAINED_STATES = (RunState.FAILED, RunState.TIMED_OUT, RunState.LOST)
_REPORTED_EVIDENCE = 2
#: Limit of the queue between the thread that reads events and the sink, so that a slow sink does not fill the memory.
MAX_QUEUED_EVENTS = 16


@dataclass(frozen=True, slots=True)
class _ReadingEnded:
    """The thread that reads the run's events has ended.

    Attributes:
        error: The exception that ended it; None after the last event.
    """

    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class _CancelFailed:
    """The run could not be cancelled.

    Attributes:
        error: The exception of the backend.
    """

    error: Exception


@dataclass(frozen=True, slots=True)
class _StreamEnded:
    """No further interrupts are forwarded to the run."""


class ForegroundRun:
    """Streams a run that this process owns until it ends.

    Args:
        run: The run.
        sink: Receives the output.
        display: Receives the launcher's messages, and displays what the run waits for.
        interrupts: Source of Ctrl-C. The first one stops the run with its grace period, the second one kills it. A
            thread forwards them, since a sink or a reporter may not return, for example if a pipe is not read. None if
            another object forwards them.
        on_event: Receives messages, changes of the run's state, and its result.
    """

    def __init__(
        self,
        run: Run,
        sink: Sink,
        display: WaitDisplay,
        interrupts: Interrupts | None,
        on_event: Callable[[RunEvent], None] | None = None,
    ) -> None:
        self._run = run
        self._sink: Sink | None = sink
        self._display = display
        self._interrupts = interrupts
        self._events: EventQueue[object] = EventQueue()
        self._on_event = on_event
        self._free_places = threading.BoundedSemaphore(MAX_QUEUED_EVENTS)
        self._record: RunResultRecord | None = None
        self._tail = b""
        self._reported: set[FailureCause] = set()
        self._error: BaseException | None = None
        self._is_token_reported = False
        self._is_ended = threading.Event()
        self._interrupting: threading.Thread | None = None

    def stream(self) -> RunResult:
        """Stream the run until it ends, and report how it ended.

        Raises:
            Exception: What the backend, or code of the caller such as the sink, raised. The run has been stopped.
        """
        self._start_thread("read", self._read_events)
        if self._interrupts is not None:
            self._start_thread("cancel", self._forward_interrupts)
        try:
            return self._handle_events()
        except (KeyboardInterrupt, SystemExit):  # raised by a signal handler of the application
            self._run.cancel()
            raise
        finally:
            self._is_ended.set()
            if self._interrupting is not None:
                self._interrupting.join()  # its signal must not reach the handlers of the application
            if self._interrupts is not None:
                self._interrupts.events.put(_StreamEnded())

    def _start_thread(self, name: str, function: Callable[[], None]) -> threading.Thread:
        run, name = contextvars.copy_context().run, f"skyrl-modal-{name}-{self._run.id}"
        thread = threading.Thread(target=run, args=(function,), name=name, daemon=True)
        thread.start()
        return thread

    def _handle_events(self) -> RunResult:
        self._call_safely(self._report_token)
        while True:
            match self._events.get():
                case InterruptEvent(1) as event:
                    self._call_safely(self._report_interrupt, event)
                case InterruptEvent():
                    pass
                case _CancelFailed(error):
                    raise self._error or error
                case _ReadingEnded(None):
                    return self._finish()
                case _ReadingEnded(error) if error is not None:
                    self._run.cancel()
                    raise self._error or error
                case event:
                    self._call_safely(self._handle, event)
                    self._free_places.release()

    def _call_safely(self, function: Callable[..., object], *args: object) -> None:
        """Call a function that may call code of the caller: sink, reporter, or ``on_event``.

        If it fails, the run is stopped, as a broken pipe would end a program, and the caller's code is not called any
        more. The error is raised when the run has ended: otherwise the run would continue without an owner.
        The same applies if Ctrl-C interrupts it: if the sink blocks, the reporter may block as well.
        """
        try:
            self._begin_callback()
            function(*args)
            self._end_callback()
        except (Exception, KeyboardInterrupt) as error:
            self._end_callback()
            self._error = self._error or error
            self._display.close()
            self._sink, self._display, self._on_event = None, PlainDisplay(NullReporter()), None
            self._run.cancel()

    def _report_interrupt(self, event: InterruptEvent) -> None:
        self._display.info(event.message)
        self._display.watch(None)
        self._display.begin("stopping the run")

    def _begin_callback(self) -> None:
        if self._interrupts is not None:
            self._interrupts.begin_callback()

    def _end_callback(self) -> None:
        if self._interrupts is not None:
            self._interrupts.end_callback()

    def _forward_interrupts(self) -> None:
        """Cancel the run for each interrupt. Runs in a thread of its own."""
        if self._interrupts is None:
            return
        while isinstance(event := self._interrupts.events.get(), InterruptEvent):
            self._events.put(event)
            if event.count == 2:
                self._interrupting = self._start_thread("interrupt", self._interrupt_callback)
            try:
                self._run.cancel(now=event.count > 1)
            except Exception as error:  # raised again by stream()
                self._events.put(_CancelFailed(error))

    def _interrupt_callback(self) -> None:
        """Interrupt a sink or a reporter that does not return after a second Ctrl-C. Runs in a thread of its own."""
        if self._interrupts is not None:
            self._interrupts.interrupt_callback(self._is_ended)

    def _read_events(self) -> None:
        """Put the run's events into the queue. Runs in a thread of its own."""
        try:
            for event in self._run.events():
                self._free_places.acquire()
                self._events.put(event)
        except BaseException as error:  # raised again by stream()
            self._events.put(_ReadingEnded(error))
        else:
            self._events.put(_ReadingEnded())

    def _handle(self, event: RunEvent | object) -> None:
        if isinstance(event, MessageEvent | StateEvent | ResultEvent) and self._on_event is not None:
            self._display.call(self._on_event, event)
        match event:
            case OutputEvent(data):
                self._tail = (self._tail + data[-TAIL_BYTES:])[-TAIL_BYTES:]
                if self._sink is not None:
                    self._display.write(self._sink, data)
            case StateEvent(state, attempt):
                show_state(self._display, state, attempt, self._run.job)
            case MessageEvent(text, level, cause):
                if cause is not None:
                    self._reported.add(cause)
                if level is MessageLevel.WARNING:
                    self._display.warn(text)
                else:
                    self._display.info(text)
            case HandleEvent():
                self._save_to_index()
                self._report_token()
            case ResultEvent(record):
                self._record = record

    def _save_to_index(self) -> None:
        try:
            self._run._save_to_index()
        except SkyRLModalError as error:  # the run does not depend on its record
            self._display.warn(f"this run cannot be attached to from another process: {error}")

    def _report_token(self) -> None:
        token = self._run.dashboard_token
        if token is not None and not self._is_token_reported:
            self._is_token_reported = True
            self._display.info(f"Token for Ray's dashboard: {token}")

    def _finish(self) -> RunResult:
        result = self._run.wait() if self._record is None else self._run._to_result(self._record, self._tail)
        self._call_safely(report_end, result, self._display, self._reported)
        if self._error is not None:
            raise self._error
        return result


def stream_to_end(
    run: Run,
    output: OutputTarget,
    reporter: Reporter,
    interrupts: Interrupts | None,
    on_event: Callable[[RunEvent], None] | None = None,
    display: WaitDisplay | None = None,
) -> RunResult:
    """Stream a run that this process started until it ends.

    Args:
        run: The run.
        output: Receives the output.
        reporter: Receives the launcher's messages.
        interrupts: Source of Ctrl-C; None if another object forwards it.
        on_event: Receives messages, changes of the run's state, and its result.
        display: Displays what the run waits for, and passes messages on to the reporter; None to display nothing.

    Raises:
        Exception: What the backend, or code of the caller such as the sink, raised. The run has been stopped.
    """
    used = PlainDisplay(reporter) if display is None else display
    return ForegroundRun(run, open_sink(output, reporter), used, interrupts, on_event).stream()


def show_state(display: WaitDisplay, state: RunState, attempt: int, job: Job) -> None:
    """Display a new state of a run.

    Args:
        display: Displays it.
        state: The state.
        attempt: Number of attempts that were started.
        job: The run.
    """
    if state is RunState.PREPARING:
        where = "the container" if job.nodes == 1 else f"{job.nodes} containers"
        display.begin(f"preparing {where}" if job.ray is None else f"preparing {where} and starting Ray")
    elif state is RunState.RUNNING:
        display.begin("running" if attempt <= 1 else f"running, attempt {attempt}", is_command=True)


def show_events(run: Run, sink: Sink, display: WaitDisplay) -> None:
    """Show the output and the messages of a run that this process does not own, from the beginning to the end.

    Args:
        run: The run.
        sink: Receives the output.
        display: Receives the messages, and displays what the run waits for.
    """
    if run.dashboard_token is not None:
        display.info(f"Token for Ray's dashboard: {run.dashboard_token}")
    for event in run.events():
        match event:
            case OutputEvent(data):
                display.write(sink, data)
            case StateEvent(state, attempt):
                show_state(display, state, attempt, run.job)
            case MessageEvent(text, MessageLevel.WARNING):
                display.warn(text)
            case MessageEvent(text):
                display.info(text)


def report_end(result: RunResult, reporter: Reporter, reported: Collection[FailureCause] = ()) -> None:
    """Report a run's final state and log path, and the cause of a failure unless it was already reported.

    Args:
        result: How the run ended.
        reporter: Receives the messages.
        reported: Causes that messages of the run have reported.
    """
    failed = (RunState.FAILED, RunState.LOST, RunState.OVER_BUDGET)
    is_failure = result.state in failed or result.cause is FailureCause.LEASE_EXPIRED
    if is_failure and result.detail and result.cause not in reported:
        reporter.info(result.detail)
    limit = "" if result.time_limit is None else f" at the limit of {result.time_limit:,.10g} s"
    ending = f"{result.state}{limit}, exit code {result.returncode} after {result.duration:.1f} s"
    if result.cost:
        from skyrl_modal.views.money import format_money  # imported here, since most local runs cost nothing

        ending += f", cost {format_money(result.cost)}"
    reporter.info(StateText(f"{ending}; log: {result.log_path}", result.state))
    if result.state in _EXPLAINED_STATES:
        _report_cause(result, reporter)


def _report_cause(result: RunResult, reporter: Reporter) -> None:
    """Report why a run failed. Without a known cause, only that other logs than the output have errors."""
    diagnosis = result.diagnosis
    if diagnosis is None:
        return
    more = f"skyrl-modal why {result.run_id} shows more"
    if diagnosis.is_known:
        from skyrl_modal.views.diagnosis import format_diagnosis  # a run that succeeds does not need it

        evidence = [line for line in diagnosis.evidence if line.file != RESULT_FILE]  # its detail was reported
        shown = replace(diagnosis, evidence=tuple(evidence[:_REPORTED_EVIDENCE]))
        reporter.info(f"{format_diagnosis(shown)}\n{more}")
    elif any(line.file != OUTPUT_FILE for line in diagnosis.evidence):
        reporter.info(f"The cause is not known, and logs other than the output have errors: {more}")
