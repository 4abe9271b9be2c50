"""What a rank other than 0 does: join, run its node of Ray as rank 0 says, and end when rank 0 does."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from skyrl_modal.container import rank_connections as control
from skyrl_modal.container.environment import environment, gpus_of, prepare_workdir, ray_environment
from skyrl_modal.container.process import become_subreaper, descendants, end_all, reap_orphans
from skyrl_modal.container.ray_cluster import join_timeout
from skyrl_modal.container.ray_node import RayError, RayNode
from skyrl_modal.event_queue import Events
from skyrl_modal.protocol.rank_config import Place

#: Seconds, beyond the command's grace, after which a rank that was asked to stop ends also without a word of rank 0's.
_PATIENCE = 30.0


class Worker:
    """One rank of a run's cluster, other than 0.

    Args:
        job: The job's record.
        place: Where this node stands.
        say: Takes a line of ours where rank 0 is not there to take it.
    """

    def __init__(self, job: Mapping[str, Any], place: Place, *, say: Callable[[str], None]) -> None:
        self._job = job
        self._place = place
        self._say_here = say
        self._events: Events[tuple[str, Any]] = Events()
        self._logs = Path(job["run_dir"]) / "ray" / str(place.rank)
        self._temp_dir = Path(os.environ.get("TMPDIR", "/tmp")) / "ray"
        self._node: RayNode | None = None
        self._head: control.Peer | None = None
        self._baseline: set[int] = set()
        self._stopping = threading.Event()

    # -- from outside ------------------------------------------------------------------------------------------------

    def request_stop(self, reason: str) -> None:
        """Ask the rank to end, ``"now"`` at once; else it waits for rank 0, whose command may still save something."""
        self._stopping.set()
        self._events.put(("stop", reason))

    def child_ended(self) -> None:
        """Tell that some child of this process ended; adopted ones are collected. For a handler of SIGCHLD."""
        self._events.put(("child", None))

    def leave(self) -> None:
        """Let rank 0 know that nothing more comes from here: the logs are kept, and the volumes committed."""
        if self._head is not None:
            self._head.close()

    # -- its life ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Join and follow rank 0 to the end; nothing of this rank's processes is left when it returns."""
        become_subreaper()
        self._baseline = descendants(os.getpid())
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            if self._join():
                self._follow()
        except OSError as error:
            self.say(f"it failed: {error}")
            self._tell({"kind": "failed", "text": str(error)})
        finally:
            self._end_ray()
            end_all(lambda: descendants(os.getpid()) - self._baseline, grace=0)

    def _join(self) -> bool:
        """Connect to rank 0; gives whether it is there, and wanted."""
        place, timeout = self._place, join_timeout(self._job)
        hello = {"token": place.token, "rank": place.rank, "gpus": place.gpus}
        try:
            self._head = control.join(
                place.addresses[0],
                place.port,
                hello,
                timeout=timeout,
                on_event=lambda *event: self._events.put(event),
                give_up=self._stopping,
            )
        except OSError as error:
            raise OSError(f"{place.describe(0)} could not be reached within {timeout:g} s: {error}") from error
        if self._head is None:
            self.say("stopped before rank 0 was there")
            return False
        self._note(f"joined {place.describe(0)} as {place.describe(place.rank)}")
        said = prepare_workdir(self._job)
        if said:
            self._note(said)
        return True

    def _follow(self) -> None:
        deadline: float | None = None
        while True:
            try:
                kind, value = self._events.next(deadline)
            except queue.Empty:
                self.say("rank 0 has not ended in time")
                return
            if kind == "child":
                reap_orphans(set() if self._node is None else self._node.children)
            elif kind == "stop":
                if value == "now":
                    return
                # Modal may move one container alone, and rank 0 would hear of it when this one is gone.
                self._tell({"kind": "stop", "reason": value})
                deadline = deadline or time.monotonic() + float(self._job["grace"]) + _PATIENCE
            elif kind == "head-gone":
                self.leave()
                self._head = None
                self.say("rank 0 is gone; ending")
                return
            elif kind == "ray-ended" and value[0] is self._node:
                node, returncode = value
                self.say(f"its Ray node ended with exit code {returncode}")
                self._tell({"kind": "ray-ended", "returncode": returncode, "words": node.last_words()})
            elif kind == "head-said":
                if value["kind"] == "end":
                    return
                self._obey(value)

    def _obey(self, message: Mapping[str, Any]) -> None:
        if message["kind"] == "start-ray":
            self._end_ray()
            try:
                self._start_ray(message)
            except RayError as error:
                self._tell({"kind": "failed", "text": str(error)})
        elif message["kind"] == "end-ray":
            self._end_ray()
            self._tell({"kind": "ray-gone"})

    def _start_ray(self, message: Mapping[str, Any]) -> None:
        spec = self._job["ray"]
        self._node = node = RayNode(
            spec,
            self._place,
            gpus=gpus_of(self._job, self._place),
            env=ray_environment({**environment(self._job, self._place), **message["env"]}, spec, self._place),
            temp_dir=self._temp_dir,
            log=self._logs / "start.log",
            on_event=lambda kind, value: self._events.put((kind, (node, value))),
        )
        self._note(f"starting a Ray node that joins {message['address']}")
        node.start_worker(message["address"])

    def _end_ray(self) -> None:
        if self._node is not None:
            self._node.end(self.say)
            self._node = None

    def _tell(self, message: Mapping[str, Any]) -> None:
        if self._head is not None:
            self._head.send(message)

    def say(self, text: str) -> None:
        """Say a line of ours: to rank 0 where it is there, and to this rank's own log."""
        if self._head is None:
            self._say_here(text)
        self._tell({"kind": "line", "text": text})
        self._note(text)

    def _note(self, text: str) -> None:
        """Write a line to this rank's own log."""
        with contextlib.suppress(OSError), open(self._logs / "supervisor.log", "a", encoding="utf-8") as log:
            log.write(f"{text}\n")
