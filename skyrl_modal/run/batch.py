"""Several runs, with a limit on how many are active at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from skyrl_modal.dataclass import dataclass
from skyrl_modal.errors import SkyRLModalError
from skyrl_modal.protocol.events import RunEvent, StateEvent
from skyrl_modal.protocol.exit_codes import LAUNCHER_FAILED
from skyrl_modal.protocol.state import FailureCause, RunState
from skyrl_modal.reporting import Reporter, RunTable
from skyrl_modal.run.foreground import stream_to_end
from skyrl_modal.run.handle import Run
from skyrl_modal.run.interrupts import InterruptEvent, catch_interrupts
from skyrl_modal.run.result import ResultList, RunResult

#: Bytes of an incomplete line that are kept in order to display it.
_MAX_LINE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class _RunEnded:
    """One run of the batch has ended."""


class _TableRow:
    """Reporter and sink of one run: displays its last line in the table."""

    def __init__(self, table: RunTable, number: int) -> None:
        self._table = table
        self._number = number
        self._rest = b""

    def info(self, text: str) -> None:
        """Discard a message: each run has one line in the table."""

    def warn(self, text: str) -> None:
        self._table.update(self._number, line=f"warning: {text}")

    def write(self, data: bytes) -> None:
        # The lines of a progress bar end with a carriage return. Only the last one is displayed.
        lines = (self._rest + data)[-_MAX_LINE_BYTES:].replace(b"\r", b"\n").split(b"\n")
        self._rest = lines[-1]
        last = next((line for line in reversed(lines) if line.strip()), None)
        if last is not None:
            # On Modal, the first output is the only sign that the command runs.
            self._table.update(self._number, state=RunState.RUNNING, line=last.decode("utf-8", "replace"))

    def show(self, event: RunEvent) -> None:
        if isinstance(event, StateEvent) and not event.state.is_final:
            self._table.update(self._number, state=event.state)


@dataclass(frozen=True, slots=True)
class BatchRun:
    """One run of a batch.

    Attributes:
        start: Starts it.
        backend: The backend's name, for the result if it could not be started.
    """

    start: Callable[[Reporter], Run]
    backend: str


class Batch:
    """Several runs, of which a limited number are active at the same time.

    Args:
        items: The runs.
        max_parallel: Number of runs that may be active at the same time, at least 1.
        table: Displays the progress.
        on_event: Receives messages, changes of state and the result of each run, from several threads.
    """

    def __init__(
        self,
        items: Sequence[BatchRun],
        *,
        max_parallel: int,
        table: RunTable,
        on_event: Callable[[Run, RunEvent], None] | None = None,
    ) -> None:
        self._items = items
        self._max_parallel = max_parallel
        self._table = table
        self._on_event = on_event
        self._running: dict[int, Run] = {}
        self._lock = threading.Lock()
        self._is_stopping = False

    def run(self) -> list[RunResult]:
        """Execute all runs.

        Returns:
            A result for each, in their order. One that could not be started has the exit code 125.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed. All runs have ended.
        """
        with catch_interrupts() as interrupts, ThreadPoolExecutor(self._max_parallel, "skyrl-modal-map") as pool:
            futures = [pool.submit(self._run_one, number) for number in range(len(self._items))]
            for future in futures:
                future.add_done_callback(lambda _: interrupts.events.put(_RunEnded()))
            remaining = len(futures)
            while remaining:
                match interrupts.events.get():
                    case _RunEnded():
                        remaining -= 1
                    case InterruptEvent(count):
                        self._cancel_all(now=count > 1)
            results = [future.result() for future in futures]
        interrupts.raise_if_recorded()
        return ResultList(result for result in results if result is not None)

    def _run_one(self, number: int) -> RunResult | None:
        """Execute one run; None if the batch was stopped before its start."""
        row = _TableRow(self._table, number)
        if self._is_stopping:
            return None
        item = self._items[number]
        self._table.update(number, state=RunState.PREPARING)
        try:
            run = item.start(row)
        except SkyRLModalError as error:
            self._table.update(number, state=RunState.FAILED, line=str(error).splitlines()[0])
            return _not_started(item.backend, error)
        self._table.update(number, run_id=run.id)
        with self._lock:
            self._running[number] = run
            is_stopping = self._is_stopping
        if is_stopping:  # Ctrl-C was pressed while the run started
            run.cancel()

        def receive(event: RunEvent) -> None:
            row.show(event)
            if self._on_event is not None:
                self._on_event(run, event)

        try:
            result = stream_to_end(run, row.write, row, None, receive)
        finally:
            with self._lock:
                del self._running[number]
        self._table.update(number, state=result.state, line=f"exit code {result.returncode}")
        return result

    def _cancel_all(self, *, now: bool) -> None:
        with self._lock:
            self._is_stopping = True
            running = list(self._running.values())
        for run in running:
            run.cancel(now=now)


def _not_started(backend: str, error: SkyRLModalError) -> RunResult:
    return RunResult(
        run_id="",
        returncode=LAUNCHER_FAILED,
        state=RunState.FAILED,
        cause=FailureCause.NOT_STARTED,
        attempts=0,
        started_at=datetime.now(UTC),
        duration=0.0,
        log_path="",
        backend=backend,
        detail=str(error),
    )
