"""The cluster as rank 0 sees it: all ranks there, Ray up on every node with what was asked for, and watched."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from skyrl_modal.container.environment import gpus_of, ray_environment
from skyrl_modal.container.rank_connections import Hub, listen
from skyrl_modal.container.ray_node import RayError, RayNode, claim_port, claim_turns
from skyrl_modal.protocol.rank_config import Place, node_name

Event = tuple[str, Any]

#: torch's own default; where it is taken, a free port is used.
MASTER_PORT = 29500
#: Seconds that the other ranks get to join where the run has no Ray, and with it no ``start_timeout``.
JOIN_TIMEOUT = 120.0
#: Seconds that a rank gets to end its part of Ray between two attempts.
_ENDING = 30.0
#: Seconds that a rank gets at the end to keep its logs and commit its volumes.
_LEAVING = 120.0
#: Seconds that a run waits at its end for ranks that have not joined, which look for it until they give up.
_LATE = 30.0
#: Seconds between two looks whether it is this run's turn to start its Ray. There is no event for it.
_TURN_INTERVAL = 0.1
#: How often a node that was lost is started again in one attempt, with ``on_worker_loss="wait"``.
_RESTARTS = 3


_NO_DASHBOARD = (
    'The dashboard is not installed there. On this machine: pip install "ray[default]"; in an image: add it to '
    "ImageSpec(pip=[...]) with the version of its Ray; or leave out RaySpec(dashboard=True)"
)


def join_timeout(job: Mapping[str, Any]) -> float:
    """Seconds that the ranks of a run get to come together."""
    return JOIN_TIMEOUT if job.get("ray") is None else float(job["ray"]["start_timeout"])


class Stopped(Exception):
    """The run was asked to stop before its command had started."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RayCluster:
    """The nodes of a run, of which this is rank 0. A run on one node is a cluster of one, and needs no connections.

    Args:
        job: The job's record.
        place: Where this node stands.
        env: The environment for Ray's processes; gets RAY_ADDRESS, MASTER_ADDR and MASTER_PORT.
        temp_dir: Folder for Ray's session.
        logs: Folder for each rank's logs.
        take: Gives the next event, ``("clock", None)`` at its deadline.
        put: Puts an event where ``take`` finds it.
        say: Takes a line of ours.
        open_url: Gives the URL by which a port of this node's 127.0.0.1 is reached from outside.

    Attributes:
        url: Ray's dashboard; empty for none.
        lost: Ranks whose supervisor is gone: there is nobody to start them again.
    """

    def __init__(
        self,
        job: Mapping[str, Any],
        place: Place,
        env: dict[str, str],
        *,
        temp_dir: Path,
        logs: Path,
        take: Callable[[float | None], Event],
        put: Callable[[Event], None],
        say: Callable[[str], None],
        open_url: Callable[[int], str],
    ) -> None:
        self._job = job
        self._spec: Mapping[str, Any] | None = job.get("ray")
        self._place = place
        self._env = env
        self._temp_dir = temp_dir
        self._logs = logs
        self._take = take
        self._put = put
        self._say = say
        self._open_url = open_url
        self.url = ""
        self._node: RayNode | None = None
        self._nodes: list[dict[str, Any]] = []
        self._version = ""
        self._restarts = dict.fromkeys(range(1, place.nodes), 0)
        self._started: set[int] = set()
        self.lost: set[int] = set()
        self._timeout = join_timeout(job)
        master_port, self._claim = claim_port(MASTER_PORT)
        env.update(MASTER_ADDR=place.addresses[0], MASTER_PORT=str(master_port))
        self._hub: Hub | None = None
        if place.nodes > 1:
            listener = listen(place.port) if place.listener is None else socket.socket(fileno=place.listener)
            self._hub = Hub(listener, token=place.token, nodes=place.nodes, on_event=self._hear)

    def _hear(self, kind: str, value: Any) -> None:
        """Take what comes from the other ranks: a line is said, and a stop that one was asked for is the run's."""
        said = value[1].get("kind") if kind == "rank-said" else ""
        if said == "line":
            self._say(f"rank {value[0]}: {value[1].get('text')}")
        elif said == "stop":
            self._put(("stop", value[1].get("reason")))
        else:
            self._put((kind, value))

    # -- what the supervisor asks ------------------------------------------------------------------------------------

    @property
    def children(self) -> set[int]:
        """The processes whose exit status is waited for here."""
        return set() if self._node is None else self._node.children

    @property
    def pids(self) -> set[int]:
        """Ray's processes on this node."""
        return set() if self._node is None else self._node.pids

    @property
    def ended_words(self) -> str:
        """What is to be said where this node's Ray has ended; empty while it lives, and for none."""
        return "" if self._node is None or not self._node.has_ended else self._node.last_words()

    @property
    def is_up(self) -> bool:
        """Whether there is nothing to wait for before the command can start."""
        return not self._missing_ranks() if self._spec is None else self._node is not None

    def is_current(self, node: RayNode) -> bool:
        """Whether an event is this attempt's: what an earlier Ray still had to tell is of no interest."""
        return node is self._node

    # -- the start ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Wait until every rank is there, and Ray on it, with what was asked for.

        Raises:
            RayError: It cannot be had; the text names the rank, what is missing, and Ray's last words.
            Stopped: The run was asked to stop.
        """
        self._check_gpus(0, self._place.gpus)
        with contextlib.ExitStack() as turns:
            if self._spec is not None:
                for turn in self._await_turn():
                    turns.enter_context(turn)
                self._start_head(self._spec)
            begin = time.monotonic()
            self._await_ready(begin + self._timeout)
            self._tell_ready(time.monotonic() - begin)

    def _await_turn(self) -> list[socket.socket]:
        """Wait until not too many others start their Ray on this machine."""
        held: list[Event] = []
        is_told = False
        while (turns := claim_turns(self._place.nodes)) is None:
            if not is_told:
                is_told = True
                self._say("waiting while other runs on this machine start their Ray")
            kind, value = self._take(time.monotonic() + _TURN_INTERVAL)
            if kind == "stop":
                raise Stopped(value)
            if kind != "clock":
                held.append((kind, value))
        for event in held:
            self._put(event)
        return turns

    def _await_ready(self, deadline: float) -> None:
        while not self._is_ready():
            kind, value = self._take(deadline)
            if kind == "stop":
                raise Stopped(value)
            if kind == "clock":
                raise RayError(self._what_is_missing())
            if kind == "rank-joined":
                rank, facts = value
                self._check_gpus(rank, facts.get("gpus"))
                if rank not in self._started:
                    self._start_worker(rank)
            elif kind == "ray-nodes":
                self._version, self._nodes = value["version"], value["nodes"]
                if len(self._nodes) >= self._place.nodes and self._lacking():
                    raise RayError(f"the cluster is up without what was asked for: {self._told(self._lacking())}")
            else:
                broken = self.broken_by(kind, value, starting=True)
                if broken:
                    raise RayError(broken)

    def _start_head(self, spec: Mapping[str, Any]) -> None:
        self._nodes, self._restarts, self._started = [], dict.fromkeys(self._restarts, 0), set()
        self._node = node = RayNode(
            spec,
            self._place,
            gpus=gpus_of(self._job, self._place),
            env=ray_environment(self._env, spec, self._place),
            temp_dir=self._temp_dir / "ray",
            log=self._logs / "0" / "start.log",
            on_event=lambda kind, value: self._put((kind, (node, value))),
        )
        node.start_head()
        self._env["RAY_ADDRESS"] = node.address
        for rank in self._hub.ranks if self._hub is not None else ():
            self._start_worker(rank)

    def _start_worker(self, rank: int) -> None:
        if self._hub is not None and self._node is not None:
            names = ("MASTER_ADDR", "MASTER_PORT")
            message = {"kind": "start-ray", "address": self._node.address, "env": {n: self._env[n] for n in names}}
            self._hub.send(rank, message)
            self._started.add(rank)

    def _check_gpus(self, rank: int, seen: int | None) -> None:
        asked = self._job.get("gpus")
        if asked and seen is not None and seen < asked and self._spec is not None:
            raise RayError(
                f"{self._place.describe(rank)} has {seen} of the {asked} GPUs that were asked for, as nvidia-smi lists "
                "them there. Start the run again; where it stays so, see the image's CUDA version, or ask Modal"
            )

    def _missing_ranks(self) -> list[int]:
        joined = {0} if self._hub is None else {0} | self._hub.ranks
        return sorted(set(range(self._place.nodes)) - joined)

    def _lacking(self) -> dict[int, str]:
        """What Ray lacks, by rank."""
        asked = {"GPU": self._job.get("gpus"), "CPU": self._spec.get("num_cpus") if self._spec else None}
        found = {node["name"]: node["resources"] for node in self._nodes}
        lacking = {}
        for rank in range(self._place.nodes):
            resources = found.get(node_name(rank))
            if resources is None:
                lacking[rank] = "its Ray node has not come up"
                continue
            short = [
                f"{resources.get(name, 0):g} of {amount:g} {name}s"
                for name, amount in asked.items()
                if amount and resources.get(name, 0) < amount
            ]
            if short:
                lacking[rank] = f"its Ray node has {' and '.join(short)}"
        return lacking

    def _is_ready(self) -> bool:
        return not self._missing_ranks() and (self._spec is None or not self._lacking())

    def _what_is_missing(self) -> str:
        within = f"within {self._timeout:g} s"
        if self._place.nodes == 1:
            return f"Ray was not ready {within}. Its last words:\n{self._last_words()}"
        absent = self._missing_ranks()
        lacking = dict.fromkeys(absent, "it has not joined")
        if self._spec is not None:
            lacking = {**self._lacking(), **lacking}
        words = "" if self._node is None else f" The head's last words:\n{self._last_words()}"
        return f"the cluster was not ready {within}: {self._told(lacking)}.{words}"

    def _told(self, lacking: Mapping[int, str]) -> str:
        return "; ".join(f"{self._place.describe(rank)}: {what}" for rank, what in sorted(lacking.items()))

    def _last_words(self) -> str:
        return "" if self._node is None else self._node.last_words()

    def _tell_ready(self, seconds: float) -> None:
        if self._node is None or self._spec is None:
            self._say(f"{self._place.nodes} nodes are there; without Ray only rank 0 runs the command")
            return
        taken = f" (port {self._spec['port']} is taken)" if self._node.port != self._spec["port"] else ""
        self._say(f"Ray {self._version} at {self._node.address}{taken}, ready after {seconds:.1f} s")
        pinned = self._job.get("checkout", {}).get("ray")
        if pinned and pinned != self._version:
            self._say(
                f"the checkout pins ray=={pinned}: a driver with that one, as below `uv run`, is refused here with "
                "`Version mismatch`; choose the image by ImageSpec(base=...), on this machine the Ray that is installed"
            )
        if self._node.dashboard_port:
            self.url = self._open_url(self._node.dashboard_port)
            self._say(f"Ray's dashboard: {self.url}")
        for node in sorted(self._nodes, key=lambda node: str(node["name"])) if self._place.nodes > 1 else ():
            resources = ", ".join(
                f"{node['resources'][name]:g} {name}s" for name in ("CPU", "GPU") if name in node["resources"]
            )
            self._say(f"{node['name']} at {node['address']}: {resources}, node id {node['id']}")

    # -- while the command runs --------------------------------------------------------------------------------------

    def broken_by(self, kind: str, value: Any, *, starting: bool = False) -> str:
        """What an event breaks, in words; empty for one that breaks nothing.

        Args:
            kind: The event's.
            value: Its value.
            starting: Whether the command has not started yet.
        """
        when = "" if starting else " while the command ran"
        if kind == "ray-ended":
            if starting:
                words = self._last_words()
                if self._spec is not None and self._spec["dashboard"] and "missing packages" in words:
                    words += f"\n{_NO_DASHBOARD}"
                return f"`ray start` ended with exit code {value}. Its last words:\n{words}"
            return f"Ray ended with exit code {value}{when}:\n{self._last_words()}"
        if kind == "ray-probe-failed" and starting:
            return f"the question whether Ray is ready ended with exit code {value}. Last words:\n{self._last_words()}"
        if kind == "rank-gone":
            self.lost.add(value[0])
            return self._lost(value[0], "it is gone: its container or its supervisor ended", starting)
        if kind != "rank-said":
            return ""
        rank, message = value
        if message.get("kind") == "ray-ended":
            text = f"its Ray node ended with exit code {message.get('returncode')}{when}:\n{message.get('words')}"
            return self._lost(rank, text, starting)
        if message.get("kind") == "failed":
            return f"{self._place.describe(rank)}: {message.get('text')}"
        return ""

    def _lost(self, rank: int, what: str, starting: bool) -> str:
        text = f"{self._place.describe(rank)}: {what}"
        if starting or self._spec is None or self._spec.get("on_worker_loss") != "wait":
            return text
        again = self._restarts[rank] < _RESTARTS and self._hub is not None and rank in self._hub.ranks
        self._say(f"{text}\n{'it is started again' if again else 'it stays away'}; the command goes on")
        if again:
            self._restarts[rank] += 1
            self._start_worker(rank)
        return ""

    # -- the end -----------------------------------------------------------------------------------------------------

    def end_attempt(self) -> None:
        """End Ray where the next attempt must not meet it: one that has died, and all of one on several nodes."""
        if self._node is None or (self._place.nodes == 1 and not self._node.has_ended):
            return
        self._end_all("end-ray", "ray-gone", _ENDING, "has not ended its Ray")

    def end(self) -> None:
        """End Ray and every rank; each has kept its logs and committed its volumes by then."""
        self._end_all("end", "", _LEAVING, "has not ended")
        if self._hub is not None:
            self._end_late(self._hub)
            self._hub.close()
        if self._claim is not None:
            self._claim.close()

    def _end_late(self, hub: Hub) -> None:
        """Tell ranks to end that join only now, and wait until they have."""
        deadline, held = time.monotonic() + _LATE, []
        while hub.absent:
            event = self._take(deadline)
            if event[0] == "stop":
                held.append(event)
            if event[0] == "clock" or event == ("stop", "now"):
                late = ", ".join(self._place.describe(rank) for rank in sorted(hub.absent))
                self._say(f"not there yet, and left to end without a word: {late}")
                break
        for event in held:
            self._put(event)
        hub.send_all({"kind": "end"})
        self._await(hub.ranks, "", _LEAVING, "has not ended")

    def _end_all(self, word: str, answer: str, seconds: float, otherwise: str) -> None:
        """Tell the other ranks to end, end this node beside them, and wait until each has answered or is gone."""
        ranks: set[int] = set()
        if self._hub is not None:
            ranks = self._hub.ranks
            self._hub.send_all({"kind": word})
        if self._node is not None:
            self._node.end(self._say)
            self._node = None
        self._await(ranks, answer, seconds, otherwise)

    def _await(self, ranks: set[int], kind: str, seconds: float, otherwise: str) -> None:
        """Wait until each of some ranks has said something, or is gone."""
        deadline, held = time.monotonic() + seconds, []
        while ranks:
            event = self._take(deadline)
            if event[0] == "clock":
                for rank in sorted(ranks):
                    self._say(f"{self._place.describe(rank)} {otherwise} within {seconds:g} s; it is left to itself")
                break
            if event[0] == "stop":
                held.append(event)  # for whoever takes events next
            elif event[0] == "rank-gone":
                ranks.discard(event[1][0])
            elif event[0] == "rank-said":
                rank, message = event[1]
                if message.get("kind") == kind:
                    ranks.discard(rank)
        for event in held:
            self._put(event)
