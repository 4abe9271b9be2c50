"""The start of the processes of a run on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from skyrl_modal.backends.base import PreparedRun
from skyrl_modal.backends.local.cleanup import start_cleanup
from skyrl_modal.backends.local.descriptors import DescriptorSet
from skyrl_modal.backends.local.environment import inherited_environment
from skyrl_modal.backends.local.event_stream import CHUNK_SIZE, EventStream
from skyrl_modal.backends.local.node_resources import assign_resources
from skyrl_modal.backends.local.rank_process import RankProcess, RankStarter, RankStreams
from skyrl_modal.backends.local.run_folder import host_run_folder
from skyrl_modal.backends.local.run_lock import lock_file, start_slots_folder, state_folder
from skyrl_modal.backends.local.sandbox import Sandbox
from skyrl_modal.backends.local.scratch import create_scratch_folder
from skyrl_modal.backends.temporary_folders import remove_tree
from skyrl_modal.dataclass import dataclass, replace
from skyrl_modal.errors import BackendUnavailable
from skyrl_modal.ports import MASTER_PORT, claim_port
from skyrl_modal.protocol.codec import encode
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.rank_config import ClusterTokens, RankConfig
from skyrl_modal.protocol.run_folder import write_all
from skyrl_modal.user_folders import create_user_folder

if TYPE_CHECKING:
    from skyrl_modal.backends.local.execution import LocalExecution
    from skyrl_modal.backends.local.network import ClusterNetwork

_LOOPBACK_ADDRESS = "127.0.0.1"


class RunStart:
    """The processes of a run, from their start until they are ready.

    ``close`` kills them if ``finish`` has not returned.

    Args:
        run: The run. Its snapshots remain locked by the ranks.
        sandbox: The sandbox; None to run without isolation.
        owned: Whether the run ends when this process exits, and is streamed to it.
        is_early: Whether the job is not complete yet. The supervisor then waits for ``finish``. It has to be a run on
            one node, without Ray, and in a sandbox.

    Raises:
        SkyRLModalError: A folder cannot be created.
        OSError: A process cannot be started.
    """

    def __init__(self, run: PreparedRun, sandbox: Sandbox | None, *, owned: bool, is_early: bool = False) -> None:
        job = run.job
        self._requirements = _requirements(run, sandbox, owned=owned)
        self._tokens = ClusterTokens.generate()
        self._start_fd: int | None = None
        with contextlib.ExitStack() as stack:
            self._fds = fds = stack.enter_context(DescriptorSet())
            # On any failure, also Ctrl-C in `submit`, the ranks are killed: no record of the run exists yet.
            self._on_failure = on_failure = stack.enter_context(contextlib.ExitStack())
            on_failure.callback(remove_tree, create_user_folder(state_folder(job.run_id)))
            lock_fd = fds.lock(lock_file(job.run_id))
            self._network = network = _create_network(job, sandbox, stack)
            master_port, port_claim = _claim_master_port(fds)
            self._streams = streams = _open_streams(job, network, port_claim, fds, owned=owned)
            wait_fd = None
            if is_early:
                wait_fd, self._start_fd = fds.pipe()
            starter = RankStarter(
                job=job,
                snapshots=run.snapshots,
                env=_environment(run),
                sandbox=sandbox,
                lock_fd=lock_fd,
                wait_fd=wait_fd,
            )
            configs = _rank_configs(job, network, self._tokens, fds)
            rank_fds = tuple(end for end, _ in streams.rank_alive_fds[1:])
            configs[0] = replace(configs[0], rank_fds=rank_fds, master_port=master_port)
            self._ranks = _start_ranks(starter, configs, streams, fds, on_failure, private_networks=network is not None)
            self._cleanup = _start_cleanup(starter, self._ranks, streams, fds, on_failure)
            self._resources = stack.pop_all()

    def is_suitable(self, run: PreparedRun, sandbox: Sandbox | None, *, owned: bool) -> bool:
        """Return whether the processes are those that a run requires, except for the rest of its job."""
        return self._requirements == _requirements(run, sandbox, owned=owned)

    def finish(self, run: PreparedRun) -> LocalExecution:
        """Wait until the supervisors are ready, and return the execution.

        Args:
            run: The run, whose job is complete.

        Raises:
            BackendUnavailable: A supervisor did not start. The text has the end of its log.
        """
        job = run.job
        if self._start_fd is not None:
            _send_job(job, self._ranks[0], self._start_fd)
        from skyrl_modal.backends.local.execution import LocalExecution  # while the supervisors start

        pids = [rank.wait_ready() for rank in self._ranks]
        _connect_ranks(self._network, pids)
        stream = self._streams.event_stream(self._fds)
        self._on_failure.pop_all()
        handle: dict[str, str | int] = {"pid": pids[0], "run_folder": str(host_run_folder(job))}
        if job.ray is not None and job.ray.dashboard:
            handle["ray_token"] = self._tokens.ray
        processes = [*(rank.process for rank in self._ranks), self._cleanup]
        return LocalExecution(job, handle, processes=processes, stream=stream)

    def close(self) -> None:
        """Close what is not used any more, and kill the processes unless ``finish`` has returned."""
        self._resources.close()


def _environment(run: PreparedRun) -> dict[str, str]:
    return {**inherited_environment(), **run.secret_values}


def _requirements(run: PreparedRun, sandbox: Sandbox | None, *, owned: bool) -> tuple[object, ...]:
    """Return everything that the processes of a run depend on, except for what the supervisor reads."""
    job = run.job
    mounts = [(mount.remote_path, snapshot.path) for mount, snapshot in zip(job.mounts, run.snapshots, strict=True)]
    ray = (job.nodes, job.ray)
    return (owned, sandbox, mounts, job.volumes, job.buckets, job.run_folder, ray, _environment(run))


def _send_job(job: Job, rank: RankProcess, start_fd: int) -> None:
    """Pass the job to a supervisor that waits for it."""
    write_all(rank.record_fd, json.dumps({"job": encode(job), "rank": encode(rank.config)}).encode())
    os.lseek(rank.record_fd, 0, os.SEEK_SET)  # the supervisor has a duplicate of the descriptor, with this position
    with contextlib.suppress(BrokenPipeError):  # it has exited: `wait_ready` reports it
        os.write(start_fd, b"\n")


@dataclass(frozen=True, slots=True)
class RunStreams:
    """The streams of a run.

    Attributes:
        head: Those of rank 0.
        others: Those of the other ranks.
        alive_fds: Both ends of a pipe. All ranks keep the one to write to.
        rank_alive_fds: Both ends of a pipe for each rank, which alone keeps the one to write to.
        output_fd: The end of the output's pipe to read from; None for a run that this process does not own.
        events_fd: The end of the events' pipe to read from; None for a run that this process does not own.
        caller_fd: What must stay open in this process until the run has ended; None if there is nothing.
    """

    head: RankStreams
    others: RankStreams
    alive_fds: tuple[int, int]
    rank_alive_fds: Sequence[tuple[int, int]]
    output_fd: int | None = None
    events_fd: int | None = None
    caller_fd: int | None = None

    def event_stream(self, fds: DescriptorSet) -> EventStream | None:
        """Return the events of a run that this process owns, and take over their descriptors; None for any other."""
        if self.output_fd is None or self.events_fd is None:
            return None
        caller = None if self.caller_fd is None else fds.release(self.caller_fd)
        return EventStream(fds.release(self.output_fd), fds.release(self.events_fd), caller)


def _claim_master_port(fds: DescriptorSet) -> tuple[int, int | None]:
    """Claim the port for MASTER_PORT, and return it with the claim, which rank 0 keeps.

    The supervisor could do it too, but it would need modules that it does not need otherwise.
    """
    port, claim = claim_port(MASTER_PORT)
    return port, None if claim is None else fds.add(claim.detach())


def _open_streams(
    job: Job, network: ClusterNetwork | None, port_claim: int | None, fds: DescriptorSet, *, owned: bool
) -> RunStreams:
    """Open the streams between this process and the ranks."""
    null = fds.open(os.devnull, os.O_WRONLY)
    alive, rank_alive = fds.pipe(), [fds.pipe() for _ in range(job.nodes)]
    head_keeps = [alive[1], *([] if port_claim is None else [port_claim])]
    if network is not None:
        head_keeps.append(network.descriptor)  # the network exists as long as rank 0
    others = RankStreams(null, keep_open=[alive[1]])
    if job.nodes > 1:
        # Rank 0 alone has the end to write to. The pipe is closed with rank 0, also for a rank that has not connected
        # to it yet.
        head_read, head_write = fds.pipe()
        head_keeps.append(head_write)
        others = RankStreams(null, caller=head_read, keep_open=[alive[1]])
    if not owned:
        return RunStreams(RankStreams(null, keep_open=head_keeps), others, alive, rank_alive)
    output_read, output_write = fds.pipe(CHUNK_SIZE)
    events_read, events_write = fds.pipe()
    caller_read, caller_write = fds.caller_alive_pipe()
    head = RankStreams(output_write, events_write, caller_read, head_keeps)
    return RunStreams(head, others, alive, rank_alive, output_read, events_read, caller_write)


def _create_network(job: Job, sandbox: Sandbox | None, stack: contextlib.ExitStack) -> ClusterNetwork | None:
    """Create the network of a run on several nodes; None if the ranks share this machine's."""
    if job.nodes == 1:
        return None
    from skyrl_modal.backends.local.network import ClusterNetwork, shared_network_reason

    if shared_network_reason(sandbox) is not None:
        return None
    network = ClusterNetwork.create(job.nodes)
    stack.callback(network.close)  # rank 0 has a duplicate of its descriptor
    return network


def _rank_configs(
    job: Job, network: ClusterNetwork | None, tokens: ClusterTokens, fds: DescriptorSet
) -> list[RankConfig]:
    slots = None
    if job.ray is not None:
        slots = fds.open(create_user_folder(start_slots_folder()), os.O_RDONLY | os.O_DIRECTORY)
    if job.nodes == 1:
        return [RankConfig(tokens=tokens, start_slots_fd=slots)]
    addresses = [_LOOPBACK_ADDRESS] * job.nodes if network is None else network.addresses
    env = {**os.environ, **job.env}
    listener = socket.create_server((addresses[0], 0), backlog=job.nodes)
    port: int = listener.getsockname()[1]
    configs = assign_resources(
        addresses, port, fds.add(listener.detach()), tokens, env=env, private_networks=network is not None
    )
    return [replace(configs[0], start_slots_fd=slots), *configs[1:]]


def _start_ranks(
    starter: RankStarter,
    configs: Sequence[RankConfig],
    streams: RunStreams,
    fds: DescriptorSet,
    on_failure: contextlib.ExitStack,
    *,
    private_networks: bool,
) -> list[RankProcess]:
    """Start all ranks. ``on_failure`` receives what undoes it."""
    ranks = []
    for config in configs:
        is_head = config.rank == 0
        has_ray = is_head and starter.job.ray is not None
        scratch = create_scratch_folder(starter.job.run_id, config.rank, starter.sandbox, fds, has_ray=has_ray)
        on_failure.callback(scratch.remove)
        rank = starter.start(
            replace(config, ray_folder=scratch.ray_folder, shares_tmp=starter.sandbox is None),
            scratch,
            fds,
            streams.head if is_head else streams.others,
            alive=streams.rank_alive_fds[config.rank],
            private_network=private_networks and not is_head,
        )
        on_failure.callback(rank.kill)
        ranks.append(rank)
    return ranks


def _start_cleanup(
    starter: RankStarter,
    ranks: Sequence[RankProcess],
    streams: RunStreams,
    fds: DescriptorSet,
    on_failure: contextlib.ExitStack,
) -> subprocess.Popen[bytes]:
    """Start the shell that removes the scratch folders if their own shells cannot."""
    alive_read, alive_write = streams.alive_fds
    folders = [folder for rank in ranks for folder in rank.scratch.folders]
    process = start_cleanup(folders, alive=alive_read, env=starter.env, pass_fds=[starter.lock_fd])
    on_failure.callback(process.wait)
    on_failure.callback(process.kill)
    fds.close(alive_write)
    return process


def _connect_ranks(network: ClusterNetwork | None, pids: Sequence[int]) -> None:
    """Connect the network namespaces of the ranks other than 0, which exist by now."""
    if network is None:
        return
    for number, pid in enumerate(pids[1:], start=1):
        try:
            network.connect(number, pid)
        except OSError as error:  # the rank was killed meanwhile
            text = f"rank {number} could not be connected to the run's network: {error}"
            raise BackendUnavailable("local", text) from error
