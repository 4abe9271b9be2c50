"""One rank as a process of its own: ``python skyrl_modal/container/__main__.py [options] < RECORD.json``.

The local backend starts it so, inside its namespaces. The job, and this rank's place, come by standard input, so that
no file of them need be visible here; the command's output goes to standard output; events for the caller go, a line of
JSON each, to the descriptor given by ``--events``.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started by its path, on whatever Python there is, without the package's dependencies
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from skyrl_modal.container.rank_worker import Worker
from skyrl_modal.container.supervisor import BROKEN, Supervisor
from skyrl_modal.protocol.rank_config import Place


class _Teller:
    """Writes events to a descriptor, from any thread, until nobody reads them."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def tell(self, event: dict[str, Any]) -> None:
        view = memoryview((json.dumps(event) + "\n").encode())
        with self._lock:
            while self._descriptor is not None and view:
                try:
                    view = view[os.write(self._descriptor, view) :]
                except OSError:  # the caller is gone
                    self._descriptor = None


def _watch_caller(descriptor: int | None, rank: Supervisor | Worker, who: str) -> None:
    """Have a rank stop at the caller's end: its pidfd gets readable, or the pipe that only it holds is closed."""
    if descriptor is None:
        return
    poller = select.poll()
    poller.register(descriptor, select.POLLIN | select.POLLHUP)

    def wait() -> None:
        poller.poll()
        rank.request_stop(f"{who} is gone")

    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    """Run one rank of a job to its end; gives the command's exit code."""
    parser = argparse.ArgumentParser(prog="skyrl_modal.container")
    parser.add_argument("--events", type=int, help="descriptor that gets the events")
    parser.add_argument("--caller", type=int, help="descriptor that gets readable when the caller ends, or rank 0")
    parser.add_argument("--ready", type=int, help="descriptor that gets this process's id once it takes signals")
    options = parser.parse_args()
    record = json.loads(sys.stdin.read())
    job, place = record["job"], Place.of(record["place"])
    if place.rank:
        worker = Worker(job, place, say=lambda text: print(text, file=sys.stderr, flush=True))
        if _take_signals(worker, options.ready):
            _watch_caller(options.caller, worker, "rank 0")
            worker.run()
        worker.leave()
        return 0
    telling = _Teller(options.events)

    def show(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]

    supervisor = Supervisor(job, live=show, tell=telling.tell, place=place)
    if not _take_signals(supervisor, options.ready):
        return BROKEN
    _watch_caller(options.caller, supervisor, "the caller")
    result = supervisor.run()
    telling.tell({"event": "result", "result": result})
    code: int = result["returncode"]
    return code


def _take_signals(rank: Supervisor | Worker, ready: int | None) -> bool:
    """Turn signals into requests, and say so; gives whether there is still somebody who knows of the run."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: rank.request_stop("cancelled"))
    signal.signal(signal.SIGQUIT, lambda *_: rank.request_stop("now"))
    signal.signal(signal.SIGCHLD, lambda *_: rank.child_ended())
    if ready is not None:
        try:
            os.write(ready, b"%d\n" % os.getpid())
        except BrokenPipeError:
            return False
        os.close(ready)
    return True


if __name__ == "__main__":
    sys.exit(main())
