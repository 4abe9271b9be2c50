"""Many commands at once, with a bound: results in order, one that fails does not stop the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Protocol

from skyrl_modal.backends import LOST_RETURNCODE
from skyrl_modal.errors import SkyRLModalError
from skyrl_modal.run.foreground import Interrupts, catch_interrupts, follow
from skyrl_modal.run.handle import Reporter, Run, RunResult, RunState


class Board(Protocol):
    """Shows how many runs are doing."""

    def update(self, number: int, *, run_id: str = "", state: str = "", line: str = "") -> None:
        """Show what has changed of one; what is empty stays as it was. Called from any thread."""


class _Row:
    """Reporter and sink of one run: its last line goes to the board."""

    def __init__(self, board: Board, number: int) -> None:
        self._board = board
        self._number = number
        self._rest = b""

    def line(self, text: str) -> None:
        """Our own lines are not shown: there is one line for each run."""

    def warn(self, text: str) -> None:
        self._board.update(self._number, line=f"warning: {text}")

    def write(self, data: bytes) -> None:
        # A progress bar's line ends with a carriage return; only what stands last is of interest.
        pieces = (self._rest + data)[-4096:].replace(b"\r", b"\n").split(b"\n")
        self._rest = pieces[-1]
        last = next((piece for piece in reversed(pieces) if piece.strip()), None)
        if last is not None:
            self._board.update(self._number, state="running", line=last.decode("utf-8", "replace"))


def run_many(
    commands: Sequence[str],
    start: Callable[[str, Reporter], Run],
    *,
    max_parallel: int,
    board: Board,
    backend: str,
) -> list[RunResult]:
    """Run commands, so many at once.

    Args:
        commands: What to run.
        start: Starts one.
        max_parallel: How many may run at the same time, at least 1.
        board: Shows how they are doing.
        backend: The backend's name, for the result of one that could not be started.

    Returns:
        A result for each, in their order. One that could not be started failed with 125 and has the error as detail.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; all that ran has been ended before.
    """
    results: list[RunResult | None] = [None] * len(commands)
    running: dict[int, Run] = {}
    lock, stopping = threading.Lock(), threading.Event()

    def one(number: int) -> None:
        row = _Row(board, number)
        with lock:
            if stopping.is_set():
                return
        board.update(number, state="preparing")
        try:
            run = start(commands[number], row)
        except SkyRLModalError as error:
            board.update(number, state="failed", line=str(error).splitlines()[0])
            now = datetime.now(UTC)
            results[number] = RunResult(
                run_id="",
                returncode=LOST_RETURNCODE,
                state=RunState.FAILED,
                attempts=0,
                started_at=now,
                duration=0.0,
                log_path="",
                backend=backend,
                detail=str(error),
            )
            return
        with lock:
            running[number] = run
        board.update(number, run_id=run.id)
        if stopping.is_set():  # Ctrl-C came while it started
            run.cancel()
        result = follow(run, row.write, row, Interrupts())
        with lock:
            del running[number]
        results[number] = result
        board.update(number, state=str(result.state), line=f"exit code {result.returncode}")

    with catch_interrupts() as interrupts, ThreadPoolExecutor(max_parallel, "skyrl-modal-map") as pool:
        ended = [pool.submit(one, number) for number in range(len(commands))]
        for future in ended:
            future.add_done_callback(lambda _: interrupts.events.put(("ended", None)))
        left = len(ended)
        while left:
            kind, value = interrupts.events.next()
            if kind == "ended":
                left -= 1
                continue
            stopping.set()
            with lock:
                mine = list(running.values())
            for run in mine:
                run.cancel(now=value > 1)
        for future in ended:
            future.result()
    interrupts.raise_if_pressed()
    return [result for result in results if result is not None]
