"""The ranks of a run on this machine, each of which is a chain of processes.

The first process of a rank is a shell in a session of its own, which removes the rank's scratch folder at the end. It
starts bubblewrap, which starts the supervisor as process 1 of a new process namespace: when the supervisor exits, the
kernel ends everything that the rank has started. If the shell or bubblewrap is killed, the kernel kills the supervisor.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skyrl_modal.backends.local.cleanup import wrapper_argv
from skyrl_modal.backends.local.descriptors import DescriptorSet
from skyrl_modal.backends.local.environment import search_path
from skyrl_modal.backends.local.run_folder import private_run_folder
from skyrl_modal.backends.local.run_lock import supervisor_stderr
from skyrl_modal.backends.local.sandbox import Layer, LayerMode, Sandbox
from skyrl_modal.backends.local.scratch import ScratchFolder
from skyrl_modal.backends.local.volume_folder import bucket_folder, volume_folder
from skyrl_modal.dataclass import dataclass, field, replace
from skyrl_modal.errors import BackendUnavailable, StorageError
from skyrl_modal.protocol.codec import encode
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.rank_config import RankConfig
from skyrl_modal.protocol.resume import ResumeRecord
from skyrl_modal.user_folders import create_user_folder

if TYPE_CHECKING:
    from skyrl_modal.snapshots.snapshot import Snapshot

#: Characters of the supervisor's stderr that are part of the error if it does not start.
_STDERR_TAIL = 2000


@dataclass(frozen=True, slots=True)
class RankStreams:
    """The descriptors that connect a rank to its caller.

    Attributes:
        output: Receives the command's output.
        events: Receives the supervisor's events; None if no process reads them.
        caller: Becomes readable when the process exits with which the rank is to end: the caller, or rank 0 for the
            other ranks. None if the rank does not depend on another process.
        keep_open: Descriptors that are to be open as long as the rank exists.
    """

    output: int
    events: int | None = None
    caller: int | None = None
    keep_open: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class RankProcess:
    """A rank that was started.

    Attributes:
        process: The shell around it.
        scratch: Its scratch folder, which the shell removes.
        stderr: The file that receives its stderr.
        ready_fd: The supervisor writes its pid to the other end of this pipe when it handles signals.
        alive_fd: The end of a pipe whose other end the processes of the rank have, except for the command's and Ray's.
        info_fd: The file to which bubblewrap writes the pid that the supervisor has outside of its namespace; None
            without a sandbox.
        record_fd: The file from which the supervisor reads the job and the rank.
        config: The rank.
    """

    process: subprocess.Popen[bytes]
    scratch: ScratchFolder
    stderr: Path
    ready_fd: int
    alive_fd: int
    info_fd: int | None
    record_fd: int
    config: RankConfig

    def wait_ready(self) -> int:
        """Wait until the supervisor has installed its signal handlers.

        A signal that arrives earlier would be lost, or end the supervisor without a result.

        Returns:
            The supervisor's pid.

        Raises:
            BackendUnavailable: It did not start.
        """
        with open(os.dup(self.ready_fd), "rb") as ready:
            line = ready.readline()
        if not line:
            code = self.process.wait()
            text = self.stderr.read_text(encoding="utf-8", errors="replace").strip()
            raise BackendUnavailable("local", f"the run did not start: {text[-_STDERR_TAIL:] or f'exit code {code}'}")
        if self.info_fd is None:
            return int(line)
        return int(json.loads(os.pread(self.info_fd, 4096, 0))["child-pid"])

    def kill(self) -> None:
        """Kill all processes of the rank, and remove its scratch folder."""
        # The process group exists as long as one of its processes, also if the shell was killed.
        if self.process.poll() is None or not self._has_exited:
            with contextlib.suppress(ProcessLookupError):  # the last one has exited meanwhile
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.read(self.alive_fd, 1)  # nothing is written to it: this waits until the supervisor has exited
        self.scratch.remove()

    @property
    def _has_exited(self) -> bool:
        poller = select.poll()
        poller.register(self.alive_fd, select.POLLHUP)
        return bool(poller.poll(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStarter:
    """Starts the ranks of a run.

    Attributes:
        job: The run.
        snapshots: The files of the job's mounts, in their order.
        env: The caller's environment, and the values of the secrets.
        sandbox: The sandbox; None to run without isolation.
        lock_fd: The descriptor that holds the run's lock. Each rank has a duplicate of it.
        wait_fd: A pipe from which the supervisor reads before it reads the job, which is not complete yet; None for a
            job that is complete.
    """

    job: Job
    snapshots: Sequence[Snapshot]
    env: Mapping[str, str] = field(repr=False)
    sandbox: Sandbox | None
    lock_fd: int
    wait_fd: int | None = None

    def start(
        self,
        config: RankConfig,
        scratch: ScratchFolder,
        fds: DescriptorSet,
        streams: RankStreams,
        *,
        alive: tuple[int, int],
        private_network: bool,
    ) -> RankProcess:
        """Start one rank.

        Args:
            config: The rank.
            scratch: Its scratch folder, which is new.
            fds: Receives the descriptors that are opened here.
            streams: Its streams.
            alive: Both ends of a pipe. The rank keeps the one to write to, which is closed here.
            private_network: Whether it has a network namespace of its own, which is empty at first.
        """
        tmp = scratch.tmp
        tmp.mkdir()
        # As in the container, whatever the umask. Without a sandbox no path of the container leads to it.
        tmp.chmod(0o1777)
        layers = self._layers(scratch.path)
        env = {**self.env, "PATH": search_path(self.env), "TMPDIR": str(tmp) if self.sandbox is None else "/tmp"}
        ready_read, ready_write = fds.pipe()
        alive_read, alive_write = alive
        record = fds.file(self._supervisor_input(config, layers) if self.wait_fd is None else b"")
        argv = self._supervisor_argv(record, ready_write, streams)
        info = arguments = None
        if self.sandbox is not None:
            # A file, not a pipe: if the caller exits, a pipe would end bubblewrap, but not the process it waits for.
            info = fds.file(b"")
            extra = ["--die-with-parent", "--info-fd", str(info), *(["--unshare-net"] if private_network else [])]
            bubblewrap, *options = self.sandbox.argv(layers, tmp=tmp, env=env, extra=extra)
            # Every user can read the arguments of a process, and the paths may be values of secret variables.
            arguments = fds.file(b"".join(os.fsencode(option) + b"\0" for option in options))
            argv = [bubblewrap, "--args", str(arguments), *argv]
        stderr = supervisor_stderr(self.job.run_id, config.rank)
        process = subprocess.Popen(
            wrapper_argv(argv, alive=alive_read, scratch=scratch.path, further=scratch.ray_parent),
            stdin=alive_write,
            stdout=streams.output,
            stderr=fds.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            env=env,
            cwd="/",
            pass_fds=self._passed_descriptors(
                config, fds, streams, [record, ready_write, alive_read, info, arguments, *scratch.locks]
            ),
            start_new_session=True,
        )
        fds.close(ready_write)
        fds.close(alive_write)
        return RankProcess(process, scratch, stderr, ready_read, alive_read, info, record, config)

    def _supervisor_argv(self, record: int, ready: int, streams: RankStreams) -> list[str]:
        # Started by its path: the package does not have to be importable in the sandbox.
        supervisor = Path(__file__).resolve().parents[2] / "container" / "__main__.py"
        argv = [sys.executable, "-I", "-S", str(supervisor), "--input", str(record), "--ready", str(ready)]
        options = (("--events", streams.events), ("--caller", streams.caller), ("--wait", self.wait_fd))
        for option, descriptor in options:
            if descriptor is not None:
                argv += [option, str(descriptor)]
        return argv

    def _supervisor_input(self, config: RankConfig, layers: Sequence[Layer]) -> bytes:
        """Return what the supervisor reads: the job and the rank, with the run's tokens."""
        job = self.job if self.sandbox is not None else with_host_paths(self.job, layers)
        return json.dumps({"job": encode(job), "rank": encode(config)}).encode()

    def _passed_descriptors(
        self, config: RankConfig, fds: DescriptorSet, streams: RankStreams, more: Sequence[int | None]
    ) -> list[int]:
        optional = [
            streams.events,
            streams.caller,
            self.wait_fd,
            config.listener_fd,
            config.start_slots_fd,
            *config.rank_fds,
            *more,
        ]
        locks = [fds.add(snapshot.duplicate_lock()) for snapshot in self.snapshots]
        return [self.lock_fd, *streams.keep_open, *locks, *(number for number in optional if number is not None)]

    def _layers(self, scratch: Path) -> list[Layer]:
        """Return the folders that the run finds at paths of the container. Those that do not exist are created."""
        job, sandbox = self.job, self.sandbox
        layers = []
        for number, (mount, snapshot) in enumerate(zip(job.mounts, self.snapshots, strict=True)):
            if sandbox is not None and sandbox.overlays:
                folder = scratch / f"mount-{number}"
                (folder / "upper").mkdir(parents=True)
                (folder / "upper").chmod(0o755)  # the mode of the mounted folder, whatever the umask
                (folder / "work").mkdir()
                layers.append(Layer(snapshot.path, mount.remote_path, LayerMode.OVERLAY, folder))
            else:
                # The folders are arranged as in the container, so that $SKYRL_REPO_ROOT/../NAME leads to another mount
                # also without namespaces.
                copy = scratch / "mounts" / mount.remote_path.lstrip("/")
                _copy_tree(snapshot.path, copy)
                layers.append(Layer(copy, mount.remote_path, LayerMode.READ_WRITE))
        for volume in job.volumes:
            folder = create_user_folder(volume_folder(volume.name))
            mode = LayerMode.READ_ONLY if volume.read_only else LayerMode.READ_WRITE
            layers.append(Layer(folder, volume.mount_path, mode))
        for bucket in job.buckets:
            folder = create_user_folder(bucket_folder(bucket))
            mode = LayerMode.READ_ONLY if bucket.read_only else LayerMode.READ_WRITE
            layers.append(Layer(folder, bucket.mount_path, mode))
        if job.run_folder_volume is None:
            folder = create_user_folder(private_run_folder(job.run_id))
            layers.append(Layer(folder, job.run_folder, LayerMode.READ_WRITE))
        return layers


def _copy_tree(source: Path, target: Path) -> None:
    try:
        import shutil  # imported here, since it takes time

        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    except shutil.Error as error:  # its argument is a list of source, target and reason of each failed copy
        raise StorageError(str(target), f"the files of the run could not be copied: {error.args[0][0][2]}") from error


def with_host_paths(job: Job, layers: Sequence[Layer]) -> Job:
    """Return a job with this machine's own paths, for a run without namespaces."""

    def host_path(path: str) -> str:
        for layer in sorted(layers, key=lambda layer: -len(layer.target)):
            if path == layer.target or path.startswith(f"{layer.target}/"):
                return str(layer.source) + path.removeprefix(layer.target)
        return path

    return replace(
        job,
        workdir=host_path(job.workdir),
        repo_root=None if job.repo_root is None else host_path(job.repo_root),
        data_root=None if job.data_root is None else host_path(job.data_root),
        run_folder=host_path(job.run_folder),
        checkpoint_folders=tuple(map(host_path, job.checkpoint_folders)),
        export_folders=tuple(map(host_path, job.export_folders)),
        resume=None if job.resume is None else _with_host_folders(job.resume, host_path),
    )


def _with_host_folders(resume: ResumeRecord, host_path: Callable[[str], str]) -> ResumeRecord:
    targets = tuple(replace(target, folder=host_path(target.folder)) for target in resume.targets)
    return replace(resume, targets=targets)
