"""The local backend: starts runs on this machine and finds them again."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skyrl_modal.backends.base import CheckResult, Handle, PreparedRun, VolumeEntry
from skyrl_modal.backends.local.checks import check_ray, run_checks
from skyrl_modal.backends.local.cleanup import start_cleanup
from skyrl_modal.backends.local.descriptors import DescriptorSet
from skyrl_modal.backends.local.environment import check_environment_size, inherited_environment
from skyrl_modal.backends.local.event_stream import CHUNK_SIZE, EventStream
from skyrl_modal.backends.local.execution import LocalExecution
from skyrl_modal.backends.local.mount_points import check_mount_points
from skyrl_modal.backends.local.node_resources import assign_resources
from skyrl_modal.backends.local.rank_process import RankProcess, RankStarter, RankStreams
from skyrl_modal.backends.local.ray_folder import find_ray_place
from skyrl_modal.backends.local.run_folder import host_run_folder
from skyrl_modal.backends.local.run_lock import lock_file, remove_state, start_slots_folder, state_folder
from skyrl_modal.backends.local.sandbox import Sandbox, find_sandbox, forget_search, search_in_background
from skyrl_modal.backends.local.scratch import (
    abandoned_folders,
    create_scratch_folder,
    scratch_parent,
    scratch_root,
)
from skyrl_modal.backends.local.volume_folder import volume_folder
from skyrl_modal.backends.temporary_folders import remove_tree
from skyrl_modal.dataclass import dataclass, replace
from skyrl_modal.errors import BackendUnavailable, SpecError, StorageError
from skyrl_modal.ports import MASTER_PORT, claim_port
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.rank_config import ClusterTokens, RankConfig
from skyrl_modal.user_folders import create_user_folder

if TYPE_CHECKING:
    from skyrl_modal.backends.local.network import ClusterNetwork
    from skyrl_modal.backends.transfer_options import TransferOptions
    from skyrl_modal.formats.checkpoint_listing import Listing
    from skyrl_modal.protocol.state import VolumeEntryKind
    from skyrl_modal.spec.run_spec import RunSpec
    from skyrl_modal.spec.volume import VolumeSpec

_LOOPBACK_ADDRESS = "127.0.0.1"


class LocalBackend:
    """Runs on this machine. A run uses the GPUs, CPUs and memory that the machine has.

    Example:
        >>> LocalBackend().name
        'local'
    """

    name = "local"

    @contextlib.contextmanager
    def prepare_check(self) -> Iterator[None]:
        """Search for a sandbox while the ``with`` block runs. ``check`` reports problems."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(StorageError):
                stack.enter_context(search_in_background(create_user_folder(scratch_root())))
            yield

    def check(self, job: Job, spec: RunSpec) -> Sequence[str]:
        """Check whether this machine can execute a run.

        Returns:
            Warnings for the user.

        Raises:
            BackendUnavailable: This is not a POSIX system, a folder cannot be created, or no folder is suitable for
                Ray's sockets.
            SpecError: The run uses a secret that Modal stores, a volume that does not exist and may not be created, or
                a Ray that is too old.
        """
        if os.name != "posix":
            raise BackendUnavailable(self.name, 'it requires Linux or macOS (on Windows: WSL), or use backend="modal"')
        stored = [secret.name for secret in spec.named_secrets if not secret.optional]
        if stored:
            raise SpecError(
                "secrets",
                stored,
                "the local backend cannot read secrets that Modal stores. Give the names of variables instead, such as "
                'secrets=["WANDB_API_KEY"], and set them in your environment or .env',
            )
        for volume in job.volumes:
            if not volume.create_if_missing and not volume_folder(volume.name).is_dir():
                remedy = f"{volume_folder(volume.name)} does not exist; create it, or use create_if_missing=True"
                raise SpecError("name", volume.name, remedy)
        check_environment_size(job)
        check_ray(job)
        try:
            create_user_folder(scratch_root())
            search = find_sandbox(scratch_root())
        except StorageError as error:
            raise BackendUnavailable(self.name, str(error)) from error
        if job.ray is not None:
            find_ray_place(scratch_parent(search.sandbox), search.sandbox)
        warnings = [
            f"the optional secret {secret.name} is left out: it is stored on Modal" for secret in spec.named_secrets
        ]
        if search.sandbox is None:
            warnings.append(
                "This machine does not allow namespaces, so /root/SkyRL and /root/data do not exist. Use "
                f"$SKYRL_REPO_ROOT and $SKYRL_DATA instead ({'; '.join(search.reasons)})."
            )
        else:
            check_mount_points(job)
        return warnings

    def describe(self, job: Job, spec: RunSpec) -> Sequence[tuple[str, str]]:
        """Return label and value pairs that describe where the run executes."""
        search = find_sandbox(scratch_root())
        sandbox = search.sandbox
        where = (
            f"this machine, in separate namespaces, with {search.layers}"
            if sandbox
            else "this machine, without isolation"
        )
        volumes = [("volume", f"{volume.mount_path} is {volume_folder(volume.name)}") for volume in job.volumes]
        if job.ray is not None:
            place = find_ray_place(scratch_parent(sandbox), sandbox)
            if place.parent is not None:
                volumes.append(("ray's files", place.description))
        if job.nodes == 1:
            return [("where", where), *volumes]
        from skyrl_modal.backends.local.network import shared_network_reason  # imported here: most runs have one node

        reason = shared_network_reason(sandbox)
        network = f"on this machine's network ({reason})" if reason else "each with an address of its own"
        return [("where", where), ("nodes", f"{job.nodes} on this machine, {network}"), *volumes]

    def start(self, run: PreparedRun, *, owned: bool) -> LocalExecution:
        """Start the ranks of a run.

        Args:
            run: The run. Its snapshots are released; the ranks keep duplicates of their locks.
            owned: Whether the run ends when this process exits, and is streamed to it.

        Raises:
            BackendUnavailable: A supervisor did not start. The text has the end of its log.
        """
        job = run.job
        sandbox = find_sandbox(scratch_root()).sandbox
        tokens = ClusterTokens.generate()
        with contextlib.ExitStack() as stack:
            for snapshot in run.snapshots:
                stack.callback(snapshot.release)
            fds = stack.enter_context(DescriptorSet())
            # On any failure, also Ctrl-C in `submit`, the ranks are killed: no record of the run exists yet.
            on_failure = stack.enter_context(contextlib.ExitStack())
            on_failure.callback(remove_tree, create_user_folder(state_folder(job.run_id)))
            lock_fd = fds.lock(lock_file(job.run_id))
            network = _create_network(job, sandbox, stack)
            master_port, port_claim = _claim_master_port(fds)
            streams = _open_streams(job, network, port_claim, fds, owned=owned)
            starter = RankStarter(
                job=job,
                snapshots=run.snapshots,
                env={**inherited_environment(), **run.secret_values},
                sandbox=sandbox,
                lock_fd=lock_fd,
            )
            configs = _rank_configs(job, network, tokens, fds)
            rank_fds = tuple(end for end, _ in streams.rank_alive_fds[1:])
            configs[0] = replace(configs[0], rank_fds=rank_fds, master_port=master_port)
            ranks = _start_ranks(starter, configs, streams, fds, on_failure, private_networks=network is not None)
            cleanup = _start_cleanup(starter, ranks, streams, fds, on_failure)
            try:
                pids = [rank.wait_ready() for rank in ranks]
            except BackendUnavailable:
                forget_search(scratch_root())  # the sandbox may not work any more
                raise
            _connect_ranks(network, pids)
            stream = streams.event_stream(fds)
            on_failure.pop_all()
        handle: dict[str, str | int] = {"pid": pids[0], "run_folder": str(host_run_folder(job))}
        if job.ray is not None and job.ray.dashboard:
            handle["ray_token"] = tokens.ray
        return LocalExecution(job, handle, processes=[*(rank.process for rank in ranks), cleanup], stream=stream)

    def attach(self, job: Job, handle: Handle) -> LocalExecution:
        """Return a run that was started before, possibly by another process.

        Raises:
            RecordError: The handle was not created by this backend.
        """
        return LocalExecution(job, handle)

    def diagnose(self) -> Iterator[CheckResult]:
        """Check what this backend needs on this machine, for ``skyrl-modal doctor``."""
        return run_checks()

    # What reads and writes volumes is imported in these methods, since a run does not need it.

    def ls(self, volume: VolumeSpec, path: str) -> Sequence[VolumeEntry]:
        """Return the entries of a folder of a volume. For a file, return one entry."""
        from skyrl_modal.backends.local.volumes import list_folder

        return list_folder(volume, path)

    def checkpoint_listing(self, volume: VolumeSpec, path: str) -> Listing:
        """Return a checkpoint folder on a volume.

        Raises:
            SpecError: The path leads out of the volume.
        """
        from skyrl_modal.backends.local.volumes import path_on_volume
        from skyrl_modal.formats.checkpoint_listing import FolderListing

        return FolderListing(str(path_on_volume(volume, path)))

    def kind(self, volume: VolumeSpec, path: str, *, follow_links: bool = True) -> VolumeEntryKind | None:
        """Return what a path of a volume is; None if there is no such volume or path."""
        from skyrl_modal.backends.local.volumes import find_kind

        return find_kind(volume, path, follow_links=follow_links)

    def walk(self, volume: VolumeSpec, path: str) -> Iterator[VolumeEntry]:
        """Yield all entries below a folder of a volume. Symbolic links are not followed."""
        from skyrl_modal.backends.local.volumes import walk_folder

        return walk_folder(volume, path)

    def read(self, volume: VolumeSpec, path: str) -> Iterator[bytes]:
        """Yield the content of a file of a volume in pieces."""
        from skyrl_modal.backends.local.volumes import read_file

        return read_file(volume, path)

    def remove(self, volume: VolumeSpec, path: str, *, recursive: bool) -> None:
        """Remove a file of a volume, or a folder with its content."""
        from skyrl_modal.backends.local.volumes import remove

        remove(volume, path, recursive=recursive)

    def pull(self, volume: VolumeSpec, path: str, local: Path, options: TransferOptions) -> Sequence[str]:
        """Copy a file or folder from a volume to ``local``. Return warnings about entries that were not copied."""
        from skyrl_modal.backends.local.volumes import copy_from_volume

        return copy_from_volume(volume, path, local, options)

    def push(self, volume: VolumeSpec, local: Path, path: str, options: TransferOptions) -> Sequence[str]:
        """Copy a file or folder from this machine to a volume. Return warnings about entries that were not copied."""
        from skyrl_modal.backends.local.volumes import copy_to_volume

        return copy_to_volume(volume, local, path, options)

    def abandoned_folders(self) -> Iterator[Path]:
        """Yield the scratch folders of runs that are not active any more, and were killed before they removed them."""
        return abandoned_folders()

    def forget(self, run_id: str) -> None:
        """Remove what this machine keeps about a run that has ended, except its logs and results."""
        remove_state(run_id)


@dataclass(frozen=True, slots=True)
class _RunStreams:
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
) -> _RunStreams:
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
        return _RunStreams(RankStreams(null, keep_open=head_keeps), others, alive, rank_alive)
    output_read, output_write = fds.pipe(CHUNK_SIZE)
    events_read, events_write = fds.pipe()
    caller_read, caller_write = fds.caller_alive_pipe()
    head = RankStreams(output_write, events_write, caller_read, head_keeps)
    return _RunStreams(head, others, alive, rank_alive, output_read, events_read, caller_write)


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
    streams: _RunStreams,
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
    streams: _RunStreams,
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
