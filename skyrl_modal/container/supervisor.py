"""The supervisor: prepares, starts Ray, runs the command, streams, tears down, leaves a result. Every backend runs it.

It is rank 0's; the other ranks of a cluster have a Worker.

It learns of everything by events in one queue: the command's end, Ray's readiness and end, a request to stop, the
clock. It waits for nothing else while the command runs, so a stalled reader of the output cannot hold up a time-out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from skyrl_modal.container.environment import environment, prepare_workdir
from skyrl_modal.container.output import CHUNK, Output
from skyrl_modal.container.process import (
    Child,
    become_subreaper,
    descendants,
    end_all,
    reap_orphans,
    returncode_of,
    shell_argv,
)
from skyrl_modal.container.ray_cluster import RayCluster, Stopped
from skyrl_modal.container.ray_node import RayError
from skyrl_modal.event_queue import Events
from skyrl_modal.protocol.rank_config import Place

#: Exit code of a run that was ended at its time-out, as of timeout(1).
TIMED_OUT = 124
#: Exit code where the run failed before or beside its command.
BROKEN = 125
#: Seconds that processes which the command left behind get between TERM and KILL.
LEFTOVER_GRACE = 2.0
#: Seconds that the cause of a failed command, a node of its cluster that died, may take to be known.
_CAUSE = 2.5

Tell = Callable[[dict[str, Any]], None]


class Supervisor:
    """One run, from its start to its result.

    Args:
        job: The job's record (see skyrl_modal.protocol.job), with the paths as they are here.
        live: Takes the command's output as it comes; it may raise OSError when nobody reads any more.
        tell: Takes events for the caller: ``{"event": "line", "text": ...}``, ``{"event": "state", "state": ...}``.
        place: Where this node stands among the run's; None for the only one.
        open_url: Gives the URL by which a port of this machine's 127.0.0.1 is reached from outside.
        attempts: Attempts that were made before, in a container that is gone.
        note: A line for the output before anything else.
    """

    def __init__(
        self,
        job: Mapping[str, Any],
        *,
        live: Callable[[bytes], None],
        tell: Tell,
        place: Place | None = None,
        open_url: Callable[[int], str] = "http://127.0.0.1:{}".format,
        attempts: int = 0,
        note: str = "",
    ) -> None:
        self._job = job
        self._attempts = attempts
        self._note_first = note
        self._place = place or Place()
        self._open_url = open_url
        self._tell = tell
        self._events: Events[tuple[str, Any]] = Events()
        self._run_dir = Path(job["run_dir"])
        self._logs = self._run_dir / "ray"
        self._output = Output(self._run_dir / "output.log", live, self._say)
        self._cluster: RayCluster | None = None
        self._baseline: set[int] = set()
        self._command: Child | None = None
        self._detail = ""
        self._limit: float | None = None
        self._restart = False
        self._temp_dir = Path(os.environ.get("TMPDIR", "/tmp"))

    # -- from outside ------------------------------------------------------------------------------------------------

    def request_stop(self, reason: str) -> None:
        """Ask the run to end: ``"cancelled"``, ``"caller gone"``, or ``"now"`` for an end without a grace.

        It may be called from any thread and from a signal handler.
        """
        self._events.put(("stop", reason))

    def child_ended(self) -> None:
        """Tell that some child of this process ended; adopted ones are collected. For a handler of SIGCHLD."""
        self._events.put(("child", None))

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run to the end, whatever it is, and return the result's record, which is in result.json as well."""
        started_at, begin = datetime.now(UTC), time.monotonic()
        become_subreaper()
        self._baseline = descendants(os.getpid())
        state, returncode, attempts = "failed", BROKEN, self._attempts
        try:
            self._prepare()
            if self._note_first:
                self._output.note(self._note_first)
            env = environment(self._job, self._place)
            self._cluster = self._make_cluster(env)
            if self._job.get("limit") is not None:
                self._limit = begin + self._job["limit"]
            while True:
                if not self._cluster.is_up:
                    self._state("preparing")
                    self._cluster.start()
                attempts += 1
                self._detail = ""
                state, returncode = self._attempt(env, attempts)
                if not self._may_retry(state, returncode, attempts):
                    break
                self._output.note(f"attempt {attempts} ended with exit code {returncode}; starting again")
                self._cluster.end_attempt()
        except Stopped as stopped:
            state, returncode = "cancelled", 130
            self._detail = stopped.reason
        except (RayError, OSError) as error:
            self._detail = str(error)
            self._say(str(error))
        finally:
            self._tear_down()
        result = {
            "version": 1,
            "run_id": self._job["id"],
            "state": state,
            "returncode": returncode,
            "attempts": attempts,
            "started_at": started_at.isoformat(),
            "duration": round(time.monotonic() - begin, 6),
            "detail": "\n".join(filter(None, [self._detail, self._output.log_error])),
            "log_bytes": self._output.log_bytes,
            "log_error": self._output.log_error,
            "restart": self._restart,
        }
        try:
            write_json(self._run_dir / "result.json", result, room=self._run_dir / "state.json")
        except OSError as error:
            self._say(f"result.json could not be written: {error}")
        return result

    def _say(self, text: str) -> None:
        self._tell({"event": "line", "text": text})
        with contextlib.suppress(OSError):  # on a full disk the caller is who hears of it
            self._logs.joinpath("0").mkdir(parents=True, exist_ok=True)
            with open(self._logs / "0" / "supervisor.log", "a", encoding="utf-8") as log:
                log.write(f"{text}\n")

    def _may_retry(self, state: str, returncode: int, attempts: int) -> bool:
        if state not in ("failed", "timed_out") or attempts > self._job["retries"]:
            return False
        wanted = self._job.get("should_retry")
        if wanted is not None and returncode not in wanted:
            return False
        if self._limit is not None and time.monotonic() >= self._limit:
            return False
        # A rank that is gone cannot be started again from here; where the whole cluster can be, its starter does so.
        self._restart = self._cluster is not None and bool(self._cluster.lost)
        return not self._restart

    def _prepare(self) -> None:
        self._run_dir.mkdir(parents=True, exist_ok=True)
        write_json(self._run_dir / "job.json", dict(self._job))
        said = prepare_workdir(self._job)
        if said:
            self._say(said)

    def _make_cluster(self, env: dict[str, str]) -> RayCluster:
        return RayCluster(
            self._job,
            self._place,
            env,
            temp_dir=self._temp_dir,
            logs=self._logs,
            take=self._next_event,
            put=self._events.put,
            say=self._say,
            open_url=self._open_url,
        )

    def _attempt(self, env: Mapping[str, str], number: int) -> tuple[str, int]:
        """Run the command once; gives the state and the exit code."""
        # Before it starts: an attempt that nobody knows of would be made again where its container dies.
        self._attempts = number
        self._state("running")
        reading, writing = os.pipe()
        _enlarge(writing)
        try:
            child = Child(
                shell_argv(self._job["command"]),
                cwd=self._job["workdir"],
                env={**env, "SKYRL_ATTEMPT": str(number)},
                output=writing,
                on_exit=lambda status: self._events.put(("exit", status)),
            )
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._command = child
        secrets = [env[name] for name in self._job["secrets"] if name in env]
        pump = threading.Thread(target=self._output.pump, args=(reading, secrets), name="output", daemon=True)
        pump.start()
        ended_by, status = self._watch(child)
        # What the command left in the background goes now: its output ends only when nobody can write to it any more.
        end_all(self._command_pids, grace=LEFTOVER_GRACE)
        pump.join()
        returncode = returncode_of(status)
        if ended_by == "itself" and returncode:
            self._detail = self._find_cause()
        elif ended_by == "broken":
            self._output.note(self._detail)
        if ended_by == "timed_out":
            return "timed_out", TIMED_OUT
        if ended_by == "cancelled":
            return "cancelled", returncode or 128 + signal.SIGINT
        if ended_by == "broken":
            return "failed", returncode or BROKEN
        return ("succeeded" if returncode == 0 else "failed"), returncode

    def _watch(self, child: Child) -> tuple[str, int]:
        """Wait for the command's end, or bring it about; gives what ended it and Popen's exit status."""
        deadline: float | None = time.monotonic() + self._job["timeout"]
        if self._limit is not None:
            deadline = min(deadline, self._limit) if deadline is not None else self._limit
        ended_by = "itself"
        steps: list[tuple[int, float | None]] = []  # signals still to be sent, and the seconds to wait after each
        while True:
            kind, value = self._next_event(deadline)
            if kind == "exit":
                return ended_by, value
            if kind == "stop" and value == "now":
                ended_by = "cancelled" if ended_by == "itself" else ended_by
                steps = [(signal.SIGKILL, None)]
            elif kind == "clock" and ended_by != "itself":
                pass  # the patience after the last signal is at its end: on to the next
            elif ended_by != "itself":
                continue
            elif kind == "clock":
                ended_by, steps = "timed_out", self._ladder(signal.SIGTERM)
                self._detail = f"ended at its timeout of {self._job['timeout']:g} s"
                self._say(f"{self._detail}: the command has {self._job['grace']:g} s to save and end")
            elif kind == "stop":
                ended_by, steps, self._detail = "cancelled", self._ladder(signal.SIGINT), value
                self._say(f"stopping the command ({value}): it has {self._job['grace']:g} s to save and end")
            elif self._cluster is not None and (broken := self._cluster.broken_by(kind, value)):
                ended_by, steps, self._detail = "broken", self._ladder(signal.SIGTERM), broken
                self._say(f"{broken.splitlines()[0].rstrip(':')}; ending the command")
            else:
                continue
            number, patience = steps.pop(0)
            child.signal_group(number)
            if number == signal.SIGKILL:
                end_all(self._command_pids, grace=0)
            deadline = None if patience is None else time.monotonic() + patience

    def _find_cause(self) -> str:
        """Why a command failed, where it is that Ray, or a node of the cluster, ended beneath it; else empty."""
        cluster = self._cluster
        if cluster is None:
            return ""
        if cluster.ended_words:
            return f"Ray ended before the command did:\n{cluster.ended_words}"
        if self._place.nodes == 1:
            return ""
        # The command may see a node's death sooner than that node's supervisor, which polls its Ray.
        deadline, held, cause = time.monotonic() + _CAUSE, [], ""
        while not cause:
            kind, value = self._next_event(deadline)
            if kind == "clock":
                break
            if kind == "stop":
                held.append((kind, value))
            else:
                cause = cluster.broken_by(kind, value)
        for event in held:
            self._events.put(event)
        return cause

    def _ladder(self, first: int) -> list[tuple[int, float | None]]:
        grace = float(self._job["grace"])
        if first == signal.SIGINT:
            return [(signal.SIGINT, grace / 2), (signal.SIGTERM, grace / 2), (signal.SIGKILL, None)]
        return [(signal.SIGTERM, grace), (signal.SIGKILL, None)]

    def _next_event(self, deadline: float | None) -> tuple[str, Any]:
        """The next thing that happened; ``("clock", None)`` at the deadline."""
        while True:
            try:
                kind, value = self._events.next(deadline)
            except queue.Empty:
                return "clock", None
            if kind == "child":
                reap_orphans(self._waited_for())
            elif not kind.startswith("ray-"):
                return kind, value
            elif self._cluster is not None and self._cluster.is_current(value[0]):
                return kind, value[1]

    def _waited_for(self) -> set[int]:
        """Children whose exit status somebody waits for."""
        found = {self._command.pid} if self._command is not None else set()
        return found | self._cluster.children if self._cluster is not None else found

    def _command_pids(self) -> set[int]:
        """The command's processes, wherever they have put themselves: all below this one that are not Ray's."""
        ray = self._cluster.pids if self._cluster is not None else set()
        return descendants(os.getpid()) - self._baseline - ray

    # -- the end -----------------------------------------------------------------------------------------------------

    def _tear_down(self) -> None:
        if self._cluster is not None:
            self._cluster.end()
        refused = end_all(lambda: descendants(os.getpid()) - self._baseline, grace=0)
        if refused:
            self._say(f"processes of other users are left, which may not be ended from here: {sorted(refused)}")
        reap_orphans(self._waited_for())

    def _state(self, state: str) -> None:
        try:
            url = self._cluster.url if self._cluster is not None else ""
            record = {"version": 1, "state": state, "attempt": self._attempts, "url": url}
            write_json(self._run_dir / "state.json", record)
        except OSError as error:
            self._say(f"state.json could not be written: {error}")
        self._tell({"event": "state", "state": state})


def write_json(path: Path, record: Mapping[str, Any], *, room: Path | None = None) -> None:
    """Write a record so that a reader finds the old one or the new one, never a part.

    Args:
        path: Where.
        record: What.
        room: A file of no further use that gives its room where the disk is full.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    content = (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
    try:
        try:
            beside.write_bytes(content)
        except OSError as error:
            if room is None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            room.replace(beside)
            with beside.open("r+b") as file:
                file.write(content)
                file.truncate()
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _enlarge(pipe: int) -> None:
    """Ask for a pipe that holds more: fewer turns for the same output. Systems that refuse lose nothing but time."""
    number = getattr(fcntl, "F_SETPIPE_SZ", None)
    if number is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, number, CHUNK)
