"""The run's cluster as seen from rank 0: start Ray on all ranks, watch it while the command runs, and end it."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from skyrl_modal.container.cluster_readiness import (
    incomplete_cluster,
    missing_gpus,
    missing_resources,
    not_connected_ranks,
    ready_messages,
    start_timeout,
    start_timeout_exceeded,
)
from skyrl_modal.container.environment import claim_master_port, ray_session_folder, with_ray_token
from skyrl_modal.container.event_router import EventRouter
from skyrl_modal.container.events import (
    ClusterChanged,
    ClusterNodes,
    DeadlineReached,
    Event,
    RankDisconnected,
    RankEvent,
    RankJoined,
    RankMessageReceived,
    RayEvent,
    RayNodeExited,
    ReadinessProbeFailed,
    StopRequested,
)
from skyrl_modal.container.failures import Failure, Report, RunStopped, StartError, raise_if
from skyrl_modal.container.masking import SecretMask
from skyrl_modal.container.rank_connections import RankServer, listen
from skyrl_modal.container.ray_node import RayFolders, RayNode, require_ray
from skyrl_modal.container.ray_stop import ray_exit_failure
from skyrl_modal.container.start_slots import START_SLOT_FRACTION, wait_for_start_slots
from skyrl_modal.dataclass import dataclass
from skyrl_modal.protocol.job import Job, RayOptions, WorkerLossPolicy
from skyrl_modal.protocol.messages import (
    LogLine,
    RankFailed,
    RayExited,
    Shutdown,
    Stacks,
    StartRay,
    StepReached,
    StopRay,
    StopRequest,
    WriteStacks,
)
from skyrl_modal.protocol.rank_config import RankConfig
from skyrl_modal.protocol.state import FailureCause

if TYPE_CHECKING:
    from skyrl_modal.container.log_keeper import LogKeeper

#: Seconds in which another rank has to write the stacks of its processes. Its own limit is 10 s.
STACKS_TIMEOUT = 15.0
#: Number of times that a lost Ray node is started again in one attempt, with ``on_worker_loss="wait"``.
MAX_NODE_RESTARTS = 3
#: Variables that rank 0 sets for all ranks.
_CLUSTER_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "SKYRL_ATTEMPT", "SKYRL_MODAL_STARTED_AT")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterServices:
    """What a cluster uses of its supervisor.

    Attributes:
        events: The supervisor's events.
        report: Receives messages.
        open_url: Returns a URL by which a port of this node's 127.0.0.1 can be reached.
        keep_logs: Begins to keep the logs of an attempt, and returns what keeps them.
        secrets: The values to mask in the logs that are kept.
        watch_rank: Receives the events of other ranks, in their threads; None if they are not counted.
    """

    events: EventRouter
    report: Report
    open_url: Callable[[int], str]
    keep_logs: Callable[[int], LogKeeper]
    secrets: SecretMask
    watch_rank: Callable[[RankEvent], None] | None = None


class RayCluster:
    """The ranks of a run and their Ray. A run on one node is a cluster with one rank, without connections.

    Args:
        job: The run.
        config: Rank 0 of the cluster.
        env: The command's environment, without the variables of the cluster.
        services: What it uses of the supervisor.

    Attributes:
        env: The command's environment. It is complete after ``start``.
        url: URL of Ray's dashboard; None if it does not run.
        disconnected_ranks: Ranks that were lost while they were needed. They cannot be started again from here.
        steps: The greatest training step that the processes of each other rank have reached, and the time of
            ``time.monotonic()`` of the message about it.
    """

    def __init__(self, job: Job, config: RankConfig, env: dict[str, str], services: ClusterServices) -> None:
        self._job = job
        self._config = config
        self._services = services
        self._events = services.events
        self._report = services.report
        self._node: RayNode | None = None
        self._starts = 0
        self._attempt = 1
        self._cluster = ClusterNodes(version="", nodes=())
        self._restarts = dict.fromkeys(range(1, config.nodes), 0)
        self._started_ranks: set[int] = set()
        # Those whose node was started before the head was registered, and may exit for that reason.
        self._early_ranks: set[int] = set()
        self.url: str | None = None
        self.disconnected_ranks: set[int] = set()
        self.steps: dict[int, tuple[int, float]] = {}
        master_port, self._master_port_claim = claim_master_port(config)
        self.env = {**env, "MASTER_ADDR": config.addresses[0], "MASTER_PORT": str(master_port)}
        self._server: RankServer | None = None
        if config.nodes > 1:
            descriptor = config.listener_fd
            listener = listen(config.port) if descriptor is None else socket.socket(fileno=descriptor)
            self._server = RankServer(listener, token=config.tokens.ranks, nodes=config.nodes, put=self._route)
            self._server.watch(config.rank_fds)

    def _route(self, event: RankEvent) -> None:
        """Pass on an event of another rank. Its log lines are reported, and its stop request is one for the run."""
        if self._services.watch_rank is not None:
            self._services.watch_rank(event)
        if isinstance(event, RankMessageReceived):
            match event.message:
                case LogLine(text):
                    self._report(f"rank {event.rank}: {text}")
                    return
                case StopRequest(reason):
                    self._events.put(StopRequested(reason))
                    return
                case StepReached(step):
                    self.steps[event.rank] = (step, time.monotonic())
                    return
        self._events.put(event)

    # -- state -------------------------------------------------------------------------------------------------------

    @property
    def children(self) -> set[int]:
        """The processes whose exit status is collected here."""
        return set() if self._node is None else self._node.children

    @property
    def processes(self) -> set[int]:
        """Ray's living processes on this node."""
        return set() if self._node is None else self._node.processes

    @property
    def is_started(self) -> bool:
        """Whether the command can start without another call of ``start``."""
        return not self._not_connected_ranks if self._job.ray is None else self._node is not None

    @property
    def ray_exit(self) -> Failure | None:
        """The failure of Ray on this node if it has exited; None while it runs, and without Ray."""
        node, summary = self._node, None if self._node is None else self._node.exit_summary
        if node is None or summary is None:
            return None
        return ray_exit_failure(f"{summary} while the command ran", node.log_tail(), 0, is_stopped=node.is_stopped)

    def is_outdated(self, event: Event) -> bool:
        """Return whether an event belongs to a Ray that was stopped before."""
        if not isinstance(event, RayNodeExited | ClusterChanged | ReadinessProbeFailed):
            return False
        return self._node is None or event.start != self._node.start

    @property
    def _connected_ranks(self) -> set[int]:
        return set() if self._server is None else self._server.connected_ranks

    @property
    def _not_connected_ranks(self) -> set[int]:
        return not_connected_ranks(self._config, self._connected_ranks)

    @property
    def _log_tail(self) -> str:
        return "" if self._node is None else self._node.log_tail()

    # -- start -------------------------------------------------------------------------------------------------------

    def start(self, attempt: int) -> None:
        """Wait until all ranks have joined, and Ray runs on them with the requested resources.

        Args:
            attempt: Number of the attempt for which it is started.

        Raises:
            StartError: Something is missing, or did not start in time.
            RunStopped: The run was asked to stop.
        """
        self._attempt = attempt
        self.env["SKYRL_ATTEMPT"] = str(attempt)  # also for Ray's processes
        timeout = start_timeout(self._job)
        deadline = time.monotonic() + timeout
        with contextlib.ExitStack() as slots:
            if self._job.ray is not None:
                limit = timeout * START_SLOT_FRACTION
                slots.enter_context(wait_for_start_slots(self._config, self._events, self._report, limit))
                self._start_head(self._job.ray)
            begin = time.monotonic()
            self._wait_until_ready(deadline)
            self._report_ready(time.monotonic() - begin)

    def check_gpus(self) -> None:
        """Raise StartError if a rank that has joined has fewer GPUs than requested."""
        hellos = [] if self._server is None else self._server.hellos
        raise_if(missing_gpus(self._job, self._config, hellos))

    def _start_head(self, options: RayOptions) -> None:
        config, services = self._config, self._services
        ray = require_ray(options, self.env)
        self.env = with_ray_token(self.env, ray, config.tokens)
        self._cluster = ClusterNodes(version="", nodes=())
        self._restarts = dict.fromkeys(self._restarts, 0)
        self._started_ranks, self._early_ranks = set(), set()
        self._starts += 1
        keeper = services.keep_logs(self._attempt)
        put: Callable[[RayEvent], None] = self._events.put
        self._node = RayNode(
            self._job,
            config,
            ray,
            self.env,
            RayFolders(ray_session_folder(config), keeper.begin(self._attempt)),
            start=self._starts,
            put=put,
            secrets=services.secrets,
            keep_logs=keeper.collect,
        )
        self._node.start_head()
        self.env["RAY_ADDRESS"] = self._node.address
        for rank in self._connected_ranks:
            self._start_worker(rank)

    def _start_worker(self, rank: int) -> None:
        if self._server is not None and self._node is not None:
            env = {name: self.env[name] for name in _CLUSTER_VARIABLES}
            self._server.send(rank, StartRay(self._node.address, env, self._attempt))
            self._started_ranks.add(rank)
            if not self._cluster.nodes:
                self._early_ranks.add(rank)

    def _start_workers_of_ready_head(self) -> None:
        """Start the nodes of ranks that have none, if the head is registered."""
        if self._cluster.nodes:
            for rank in self._connected_ranks - self._started_ranks:
                self._start_worker(rank)

    def _wait_until_ready(self, deadline: float) -> None:
        job, config = self._job, self._config
        while self._not_connected_ranks or missing_resources(job, config, self._cluster.nodes):
            match self._events.get(deadline):
                case StopRequested(reason):
                    raise RunStopped(reason)
                case DeadlineReached():
                    connected, nodes, tail = self._connected_ranks, self._cluster.nodes, self._log_tail
                    raise StartError(
                        start_timeout_exceeded(job, config, connected=connected, nodes=nodes, log_tail=tail)
                    )
                case RankJoined(rank):
                    self.check_gpus()
                    if rank not in self._started_ranks:
                        self._start_worker(rank)
                case RankMessageReceived(rank, RayExited(returncode)) if rank in self._early_ranks:
                    # Ray 2.60: "No node info found for head node in GCS" if the head's raylet starts slowly.
                    self._early_ranks.discard(rank)
                    text = f"{config.rank_label(rank)}: `ray start` exited with code {returncode}; starting it again"
                    self._report(text)
                    self._started_ranks.discard(rank)
                    self._start_workers_of_ready_head()
                case ClusterChanged(_, cluster):
                    self._cluster = cluster
                    raise_if(incomplete_cluster(job, config, cluster.nodes))
                    self._start_workers_of_ready_head()
                case event:
                    raise_if(self._failure_during_start(event))

    def _failure_during_start(self, event: Event) -> Failure | None:
        """Return the failure that an event means while the cluster starts; None if it means none."""
        match event:
            case RayNodeExited(_, returncode):
                summary = f"`ray start` exited with code {returncode}"
                return Failure(FailureCause.RAY_NOT_READY, summary, self._log_tail, rank=0)
            case ReadinessProbeFailed(_, returncode):
                summary = f"the Ray readiness probe exited with code {returncode}"
                return Failure(FailureCause.RAY_NOT_READY, summary, self._log_tail, rank=0)
            case RankMessageReceived(rank, RayExited(returncode, log_tail)):
                summary = f"{self._config.rank_label(rank)}: `ray start` exited with code {returncode}"
                return Failure(FailureCause.RAY_NOT_READY, summary, log_tail, rank)
        return self._rank_failure(event)

    def _rank_failure(self, event: Event) -> Failure | None:
        """Return the failure of a rank's supervisor that an event means; None if it means none."""
        match event:
            case RankDisconnected(rank):
                self.disconnected_ranks.add(rank)
                label = self._config.rank_label(rank)
                summary = f"lost the connection to {label}: its container or supervisor exited"
                return Failure(FailureCause.RANK_LOST, summary, rank=rank)
            case RankMessageReceived(rank, RankFailed(cause, detail)):
                return Failure(cause, f"{self._config.rank_label(rank)}: {detail}", rank=rank)
        return None

    def _report_ready(self, seconds: float) -> None:
        node = self._node
        if node is None:
            self._report(f"{self._config.nodes} nodes have joined. Without Ray, only rank 0 runs the command")
            return
        for message in ready_messages(self._job, self._cluster, node.address, seconds):
            self._report(message)
        if node.dashboard_port:
            self.url = self._services.open_url(node.dashboard_port)
            self._report(f"Ray's dashboard: {self.url}")

    # -- while the command runs --------------------------------------------------------------------------------------

    def failure_of(self, event: Event) -> Failure | None:
        """Return the failure that an event means for the running command; None if the command continues.

        With ``on_worker_loss="wait"``, the loss of another rank's node is no failure: the node is started again.
        """
        failure = self._rank_failure(event)
        match event:
            case RayNodeExited():
                return self.ray_exit
            case RankMessageReceived(rank, RayExited(returncode, log_tail, is_stopped)):
                summary = f"{self._config.rank_label(rank)}: Ray exited with code {returncode} while the command ran"
                failure = ray_exit_failure(summary, log_tail, rank, is_stopped=is_stopped)
            case RankMessageReceived(_, RankFailed()):
                return failure
        if failure is None or failure.rank is None or not self._waits_for_lost_nodes:
            return failure
        self._restart_worker(failure.rank, failure)
        return None

    @property
    def _waits_for_lost_nodes(self) -> bool:
        return self._job.ray is not None and self._job.ray.on_worker_loss is WorkerLossPolicy.WAIT

    def _restart_worker(self, rank: int, failure: Failure) -> None:
        """Start the lost node of a rank again, unless it was lost too often or its rank has disconnected."""
        if self._restarts[rank] < MAX_NODE_RESTARTS and rank in self._connected_ranks:
            self._restarts[rank] += 1
            self._report(f"{failure.text}\nrestarting its Ray node; the command continues")
            self._start_worker(rank)
        else:
            self._report(f"{failure.text}\nnot restarting it; the command continues")

    def read_stacks(self) -> dict[int, str]:
        """Return the stacks of the Python processes of the other ranks, of those that answer in time."""
        ranks, texts = self._connected_ranks, dict[int, str]()
        if self._server is None or not ranks:
            return texts
        self._server.send_all(WriteStacks())
        deadline = time.monotonic() + STACKS_TIMEOUT

        def is_answer(event: Event) -> bool:
            return isinstance(event, RankMessageReceived) and isinstance(event.message, Stacks)

        while texts.keys() < ranks:
            match self._events.wait_for(is_answer, deadline):
                case RankMessageReceived(rank, Stacks(text)):
                    texts[rank] = text
                case DeadlineReached():
                    missing = dict.fromkeys(ranks - texts.keys(), f"no answer within {STACKS_TIMEOUT:g} s")
                    return {**texts, **missing}
        return texts

    # -- end ---------------------------------------------------------------------------------------------------------

    def end_attempt(self) -> None:
        """End a Ray that the next attempt cannot use: one that has exited, and any on several nodes."""
        if self._node is None or (self._config.nodes == 1 and self._node.exit_summary is None):
            return
        self._end_ranks(StopRay(is_failed=True))

    def end(self, *, is_failed: bool) -> None:
        """End Ray and wait until the other ranks have saved their logs, committed their volumes and exited.

        Args:
            is_failed: Whether the last attempt has failed.
        """
        self._end_ranks(Shutdown(is_failed))
        if self._master_port_claim is not None:
            self._master_port_claim.close()

    def _end_ranks(self, request: StopRay | Shutdown) -> None:
        """Send a request to the other ranks, end this node meanwhile, and wait until each has complied."""
        ranks, server = self._connected_ranks, self._server
        if server is not None:
            server.send_all(request)
        if self._node is not None:
            self._node.end()
            self._node = None
        if server is not None:
            from skyrl_modal.container.rank_shutdown import RankShutdown  # imported here: most runs have one rank

            shutdown = RankShutdown(self._config, self._events, self._report)
            shutdown.wait_for_ranks(ranks, request)
            if isinstance(request, Shutdown):
                shutdown.end_late_ranks(server, request)
                server.close()
