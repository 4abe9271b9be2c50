"""Run one rank as a process: ``python skyrl_modal/container/__main__.py [--OPTION DESCRIPTOR ...] < RECORD.json``.

The local backend starts it, inside its namespaces. The record on standard input is
``{"job": Job, "rank": RankConfig}``, so no file with it has to be visible here. The command's output is written to
standard output. The options name open file descriptors:

- ``--events``: Events for the caller are written to it, as lines of JSON.
- ``--caller``: It becomes readable, or is closed, when the caller exits (on ranks other than 0: when rank 0 exits).
- ``--input``: The record is read from it instead of from standard input.
- ``--wait``: A byte is read from it before the record, which is not complete earlier. Without one, the process exits.
- ``--ready``: The process id is written to it when signals are handled.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence

from skyrl_modal.container.live_view import PipeWriter
from skyrl_modal.container.supervisor import Supervisor, SupervisorServices
from skyrl_modal.container.unsaved_files import sandbox_places
from skyrl_modal.dataclass import replace
from skyrl_modal.protocol.codec import decode, encode_tagged
from skyrl_modal.protocol.events import ResultEvent, SupervisorEvent
from skyrl_modal.protocol.exit_codes import LAUNCHER_FAILED
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.rank_config import RankConfig
from skyrl_modal.protocol.run_folder import OUTPUT_FILE, RunFolder
from skyrl_modal.protocol.state import StopReason

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from skyrl_modal.container.rank_worker import RankWorker


#: Bytes of events that a caller has not read, above which further events are not kept. Messages are also in the log of
#: the supervisor, and the result is in result.json.
MAX_UNREAD_EVENT_BYTES = 1 << 20


class _EventWriter:
    """Writes events to a descriptor, from any thread, until its reader closes it. It does not wait for the reader."""

    def __init__(self, descriptor: int | None) -> None:
        self._pipe = None if descriptor is None else PipeWriter(descriptor)

    def write(self, event: SupervisorEvent) -> None:
        """Write an event as a line of JSON."""
        if self._pipe is not None and self._pipe.unstored_bytes < MAX_UNREAD_EVENT_BYTES:
            self._pipe.write((json.dumps(encode_tagged(event)) + "\n").encode())

    def finish(self) -> None:
        """Wait, for a limited time, until the caller has read the events."""
        if self._pipe is not None:
            self._pipe.finish()


def _stop_when_closed(descriptor: int | None, rank: Supervisor | RankWorker, reason: StopReason) -> None:
    """Request a stop when the caller's pidfd becomes readable or its pipe is closed."""
    if descriptor is None:
        return
    poller = select.poll()
    poller.register(descriptor, select.POLLIN | select.POLLHUP)

    def wait() -> None:
        poller.poll()
        rank.request_stop(reason)

    threading.Thread(target=wait, daemon=True).start()


def _install_signal_handlers(rank: Supervisor | RankWorker, ready: int | None) -> bool:
    """Install the signal handlers and report readiness. Return False if the caller has already exited."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: rank.request_stop(StopReason.CANCELLED))
    signal.signal(signal.SIGQUIT, lambda *_: rank.request_stop(StopReason.KILL))
    signal.signal(signal.SIGCHLD, lambda *_: rank.child_exited())
    if ready is not None:
        try:
            os.write(ready, b"%d\n" % os.getpid())
        except BrokenPipeError:
            return False
        os.close(ready)
    return True


def _run_worker(job: Job, config: RankConfig, ready: int | None, caller: int | None) -> int:
    from skyrl_modal.container.rank_worker import RankWorker  # imported here, since most runs have one rank

    worker = RankWorker(
        job, config, report_locally=lambda text: print(text, file=sys.stderr, flush=True), lost_places=sandbox_places
    )
    if _install_signal_handlers(worker, ready):
        _stop_when_closed(caller, worker, StopReason.RANK_ZERO_EXITED)
        worker.run()
    worker.close()
    return 0


def _run_supervisor(job: Job, config: RankConfig, ready: int | None, caller: int | None, events: int | None) -> int:
    writer = _EventWriter(events)
    services = SupervisorServices(
        live=PipeWriter(1, RunFolder(job.run_folder).file(OUTPUT_FILE)), emit=writer.write, lost_places=sandbox_places
    )
    if job.rate is not None:
        from skyrl_modal.container.usage_meter import UsageMeter  # imported here, since most local runs cost nothing

        services = replace(services, usage=UsageMeter(job, job.rate, os.urandom(8).hex()))
    supervisor = Supervisor(job, config, services, start_timeout=job.limits.start_deadline)
    if not _install_signal_handlers(supervisor, ready):
        return LAUNCHER_FAILED
    _stop_when_closed(caller, supervisor, StopReason.CALLER_EXITED)
    result = supervisor.run()
    supervisor.release_checkpoints(result)
    writer.write(ResultEvent(result))
    writer.finish()
    return result.returncode


def _read_descriptors(arguments: Sequence[str]) -> dict[str, int]:
    """Return the descriptors by option. ``argparse`` would take a fifth of the start-up time."""
    return {option: int(value) for option, value in zip(arguments[::2], arguments[1::2], strict=True)}


def main() -> int:
    """Run one rank of a job to its end. Return the run's exit code on rank 0, else 0."""
    descriptors = _read_descriptors(sys.argv[1:])
    ready, caller = descriptors.get("--ready"), descriptors.get("--caller")
    wait = descriptors.get("--wait")
    if wait is not None and not os.read(wait, 1):
        return LAUNCHER_FAILED  # the caller has exited, or has not used this process
    source = descriptors.get("--input", sys.stdin.fileno())
    with open(source, "rb", closefd="--input" in descriptors) as file:
        record = json.loads(file.read())
    job, config = decode(Job, record["job"]), decode(RankConfig, record["rank"])
    if config.rank:
        return _run_worker(job, config, ready, caller)
    return _run_supervisor(job, config, ready, caller, descriptors.get("--events"))
