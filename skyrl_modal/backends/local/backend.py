"""Runs on the machine at hand, by the same supervisor and at the same paths as in a container.

Each rank of a run here is a small chain of processes in a session of its own: a shell that removes the rank's scratch
folder at the end, whoever ends first; bubblewrap; and the supervisor as process 1 of its own process namespace, with
whose end everything that the rank started is gone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs

from skyrl_modal.backends import VolumeEntry
from skyrl_modal.backends.local.descriptors import Descriptors
from skyrl_modal.backends.local.execution import CHUNK, LiveStreams, LocalExecution, is_alive, run_folder
from skyrl_modal.backends.local.network import ClusterNetwork, cannot
from skyrl_modal.backends.local.rank_process import RankProcess, RankStarter, Streams, places
from skyrl_modal.backends.local.sandbox import TRIAL, Sandbox, find_sandbox, remove_tree
from skyrl_modal.errors import BackendUnavailable, SpecError
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.rank_config import Place
from skyrl_modal.snapshots.snapshot import Snapshot

_APP = "skyrl_modal"
LOOPBACK = "127.0.0.1"
#: The variable by which the nodes of a run share this machine's own network, for tasks that need the internet.
NETWORK = "SKYRL_MODAL_LOCAL_NETWORK"


def volume_folder(name: str) -> Path:
    """The folder on this machine that a volume of this name is."""
    return platformdirs.user_data_path(_APP) / "volumes" / name


class LocalBackend:
    """The machine at hand. What it has of GPUs, CPUs and memory is what a run gets.

    Example:
        >>> LocalBackend().name
        'local'
    """

    name = "local"

    def check(self, job: Job) -> Sequence[str]:
        """See whether a run can be had here; gives warnings.

        Raises:
            BackendUnavailable: This is no POSIX system, or its folders cannot be written.
            SpecError: The job names a Modal secret, or asks for a volume that may not be made.
        """
        if os.name != "posix":
            raise BackendUnavailable(self.name, 'it needs Linux or macOS (on Windows: WSL), or backend="modal"')
        if job.named_secrets:
            raise SpecError(
                "secrets",
                list(job.named_secrets),
                "secrets that Modal keeps cannot be read from here; name the variables instead, such as "
                'secrets=["WANDB_API_KEY"], and set them in your environment or .env',
            )
        for volume in job.volumes:
            if not volume.create_if_missing and not volume_folder(volume.name).is_dir():
                remedy = f"there is no folder {volume_folder(volume.name)}; make it, or create_if_missing=True"
                raise SpecError("name", volume.name, remedy)
        scratch = self._scratch_root()
        try:
            scratch.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BackendUnavailable(self.name, f"{scratch} cannot be made: {error}") from error
        search = find_sandbox(scratch)
        if search.sandbox is None:
            return [
                "no private namespaces can be had on this machine, so /root/SkyRL and /root/data are not there: use "
                f"$SKYRL_REPO_ROOT and $SKYRL_DATA in your command ({'; '.join(search.reasons)})"
            ]
        return []

    def describe(self, job: Job) -> Sequence[tuple[str, str]]:
        """What runs where, for the header."""
        sandbox = find_sandbox(self._scratch_root()).sandbox
        where = "this machine, in namespaces of its own" if sandbox else "this machine, without isolation"
        volumes = [("volume", f"{v.mount_path} is {volume_folder(v.name)}") for v in job.volumes]
        if job.nodes == 1:
            return [("where", where), *volumes]
        reason = why_side_by_side(sandbox)
        how = f"side by side on its network ({reason})" if reason else "each with an address of its own"
        nodes = f"{job.nodes} on this machine, {how}"
        return [("where", where), ("nodes", nodes), *volumes]

    def start(
        self, job: Job, snapshots: Sequence[Snapshot], secrets: Mapping[str, str], *, owned: bool
    ) -> LocalExecution:
        """Start the supervisor on the snapshots.

        Raises:
            BackendUnavailable: The supervisor did not start; the text has its last words.
        """
        sandbox = find_sandbox(self._scratch_root()).sandbox
        notes = run_folder(job.id)
        notes.mkdir(parents=True, exist_ok=True)
        ranks: list[RankProcess] = []
        with Descriptors() as fds:
            # Locked before there is a scratch folder: one without such a lock is nobody's.
            alive = fds.lock(notes / "alive")
            starter = RankStarter(
                job=job,
                snapshots=snapshots,
                env={**os.environ, **secrets},
                sandbox=sandbox,
                notes=notes,
                volumes=[volume_folder(volume.name) for volume in job.volumes],
                alive=alive,
            )
            output_r, output_w = fds.pipe(CHUNK) if owned else (None, fds.open(os.devnull, os.O_WRONLY))
            events_r, events_w = fds.pipe() if owned else (None, None)
            caller_r, caller_w = fds.caller() if owned else (None, None)
            # Only rank 0 holds the writing end: the others hear of its end, also before they have joined it.
            head_r, head_w = fds.pipe() if job.nodes > 1 else (None, None)
            nothing = fds.open(os.devnull, os.O_WRONLY) if job.nodes > 1 else output_w
            is_apart = job.nodes > 1 and not why_side_by_side(sandbox)
            network = ClusterNetwork.create(job.nodes) if is_apart else None
            try:
                for place in _places(job, network, fds):
                    scratch = self._make_scratch(_scratch_name(job.id, place.rank), sandbox)
                    streams = Streams(nothing, None, head_r) if place.rank else Streams(output_w, events_w, caller_r)
                    keep = [head_w] if head_w is not None and place.rank == 0 else []
                    if network is not None and place.rank == 0:
                        keep.append(network.descriptor)  # it is there for as long as rank 0
                    private = network is not None and place.rank > 0
                    try:
                        ranks.append(starter.start(place, scratch, fds, streams, private_network=private, keep=keep))
                    except BaseException:
                        remove_tree(scratch)
                        raise
                pids = [rank.wait_ready() for rank in ranks]
                for number, rank_pid in enumerate(pids):
                    if network is not None and number > 0:
                        network.join(number, rank_pid)
            except BaseException:  # also Ctrl-C in `submit`: nobody would know of the run
                for rank in ranks:
                    rank.kill()
                raise
            finally:
                if network is not None:
                    network.close()  # rank 0 holds it
                for snapshot in snapshots:
                    snapshot.release()  # the run holds them by descriptors of its own
            live = None
            if output_r is not None and events_r is not None:
                live = LiveStreams(
                    fds.take(output_r), fds.take(events_r), None if caller_w is None else fds.take(caller_w)
                )
        handle = {"pid": pids[0], "run_dir": str(_host_run_dir(job, notes))}
        return LocalExecution(job, handle, processes=[rank.process for rank in ranks], live=live)

    def _make_scratch(self, name: str, sandbox: Sandbox | None) -> Path:
        """A folder for the files of a run's own. Folders of callers that were killed while they started a run go."""
        if sandbox is None:
            # Short, since Ray's sockets lie below it and a socket's path holds about 100 characters.
            return Path(tempfile.mkdtemp(prefix="skyrl-"))
        root = self._scratch_root()
        root.mkdir(parents=True, exist_ok=True)
        for old in root.iterdir():
            if not _is_used(old.name):
                with contextlib.suppress(OSError):  # another one removes it as well
                    remove_tree(old)
        scratch = root / name
        scratch.mkdir()
        return scratch

    def attach(self, job: Job, handle: Mapping[str, Any]) -> LocalExecution:
        """Find a run that was started before, maybe by another process."""
        return LocalExecution(job, dict(handle))

    def ls(self, volume: str, path: str) -> Sequence[VolumeEntry]:
        """List a folder of a volume, or one file of it."""
        place = self._place(volume, path)
        if not place.exists():
            raise FileNotFoundError(f"volume {volume} has no {path or '/'}")
        entries = []
        for item in sorted(place.iterdir()) if place.is_dir() else [place]:
            stat = item.lstat()
            kind = "dir" if item.is_dir() and not item.is_symlink() else "file" if item.is_file() else "other"
            inside = item.relative_to(volume_folder(volume)).as_posix()
            entries.append(VolumeEntry(inside, kind, 0 if kind == "dir" else stat.st_size, stat.st_mtime))
        return entries

    def pull(self, volume: str, path: str, local: Path) -> None:
        """Copy a file or folder from a volume to ``local``."""
        place = self._place(volume, path)
        if not place.exists():
            raise FileNotFoundError(f"volume {volume} has no {path or '/'}")
        _copy(place, local)

    def push(self, volume: str, local: Path, path: str) -> None:
        """Copy a file or folder from this machine to a volume."""
        _copy(local, self._place(volume, path))

    @staticmethod
    def _place(volume: str, path: str) -> Path:
        folder = volume_folder(volume)
        place = (folder / path.lstrip("/")).resolve()
        if not place.is_relative_to(folder.resolve()):
            raise SpecError("path", path, f"it leads out of the volume {volume}")
        return place

    @staticmethod
    def _scratch_root() -> Path:
        return platformdirs.user_cache_path(_APP) / "scratch"


def _is_used(name: str) -> bool:
    """Whether the run, or the process that tries a sandbox, whose scratch folder has this name is still there."""
    if name.startswith(TRIAL):
        return Path("/proc", name.removeprefix(TRIAL)).exists()
    return is_alive(name.partition(".")[0])


def why_side_by_side(sandbox: Sandbox | None) -> str | None:
    """Why the ranks get no addresses of their own; None where they do."""
    if os.environ.get(NETWORK) == "host":
        return f"${NETWORK} is host"
    return "there are no namespaces" if sandbox is None else cannot()


def _places(job: Job, network: ClusterNetwork | None, fds: Descriptors) -> list[Place]:
    """Where the ranks stand: each at an address of its own, or side by side on this machine's network."""
    addresses = [LOOPBACK] * job.nodes if network is None else network.addresses
    if job.nodes == 1:
        return [Place()]
    listener = socket.create_server((addresses[0], 0), backlog=job.nodes)
    port: int = listener.getsockname()[1]
    return places(addresses, port, fds.add(listener.detach()), is_apart=network is not None)


def _scratch_name(run_id: str, rank: int) -> str:
    return f"{run_id}.{rank}" if rank else run_id


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def _host_run_dir(job: Job, notes: Path) -> Path:
    """Where this machine has the run's folder: on the first writable volume, else beside the notes."""
    if job.run_volume is None:
        return notes / "run"
    volume, inside = job.run_volume
    return volume_folder(volume.name) / inside
