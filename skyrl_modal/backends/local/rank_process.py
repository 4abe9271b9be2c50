"""The ranks of a run on this machine: what each gets of it, and the chain of processes that each is."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from attrs import evolve, field, frozen

from skyrl_modal.backends.local.descriptors import Descriptors
from skyrl_modal.backends.local.sandbox import Layer, Sandbox, remove_tree
from skyrl_modal.container.environment import local_gpus
from skyrl_modal.errors import BackendUnavailable
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.rank_config import Place
from skyrl_modal.snapshots.snapshot import Snapshot

#: What the shell around a rank does: wait for it, then remove the scratch folder, whatever its permissions have become.
_KEEPER = '"$@"; code=$?; chmod -R u+rwX "$0" 2>/dev/null; rm -rf "$0"; exit $code'
#: The part of the free memory that Ray takes for its object store by default (ray start --help), for all nodes here.
_STORE_SHARE = 0.3
#: The least that Ray takes.
_LEAST_STORE = 75 * 1024 * 1024


def places(addresses: Sequence[str], port: int, listener: int | None, *, is_apart: bool) -> list[Place]:
    """What each rank gets of this machine.

    Args:
        addresses: The address of each rank.
        port: Where rank 0 listens.
        listener: Its descriptor for that.
        is_apart: Whether the others have networks of their own, with no way to the internet.
    """
    nodes = len(addresses)
    cpus = max(1, len(os.sched_getaffinity(0)) // nodes) if hasattr(os, "sched_getaffinity") else None
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") if sys.platform == "linux" else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(number) for number in range(local_gpus())]
    gpus, token = len(devices) // nodes, secrets.token_hex(16)
    return [
        Place(
            rank=rank,
            addresses=tuple(addresses),
            port=port,
            token=token,
            listener=listener if rank == 0 else None,
            cpus=cpus,
            gpus=gpus,
            object_store_memory=max(_LEAST_STORE, int(free * _STORE_SHARE / nodes)) if free else None,
            is_offline=is_apart and rank > 0,
            env={"CUDA_VISIBLE_DEVICES": ",".join(devices[rank * gpus : (rank + 1) * gpus])} if devices else {},
        )
        for rank in range(nodes)
    ]


@frozen
class Streams:
    """The descriptors of a rank that others hold the other ends of.

    Attributes:
        output: Takes the command's output.
        events: Takes the events.
        caller: Gets readable when who it belongs to ends: the caller, or rank 0 for the others.
    """

    output: int
    events: int | None = None
    caller: int | None = None


@frozen
class RankProcess:
    """One rank that was started.

    Attributes:
        process: The shell around it.
        scratch: Its files, which the shell removes.
        errors: The file that has its last words.
    """

    process: subprocess.Popen[bytes]
    scratch: Path
    errors: Path
    _ready: int
    _info: int | None

    def wait_ready(self) -> int:
        """Wait until the rank takes signals: one that came before would be lost, or end it without a result.

        Returns:
            The supervisor's pid.

        Raises:
            BackendUnavailable: It did not start; the text has its last words.
        """
        with open(os.dup(self._ready), "rb") as ready:
            own = ready.readline()
        if not own:
            self.process.wait()
            words = self.errors.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise BackendUnavailable("local", f"the run did not start: {words.strip() or self.process.returncode}")
        # Its own pid; in a namespace it has another one here, which bubblewrap tells.
        return int(own) if self._info is None else int(json.loads(os.pread(self._info, 4096, 0))["child-pid"])

    def kill(self) -> None:
        """End it at once, with all that it is made of, and remove its files."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        remove_tree(self.scratch)


@frozen(kw_only=True)
class RankStarter:
    """What the ranks of a run have in common.

    Attributes:
        job: The run.
        snapshots: What goes.
        env: The caller's environment, and the values of the secrets.
        sandbox: The bubblewrap to use; None for none.
        notes: This machine's own notes about the run.
        volumes: Where this machine has each of the job's volumes.
        alive: The descriptor that holds the run's lock.
    """

    job: Job
    snapshots: Sequence[Snapshot]
    env: Mapping[str, str] = field(repr=False)
    sandbox: Sandbox | None
    notes: Path
    volumes: Sequence[Path]
    alive: int

    def start(
        self,
        place: Place,
        scratch: Path,
        fds: Descriptors,
        streams: Streams,
        *,
        private_network: bool,
        keep: Sequence[int],
    ) -> RankProcess:
        """Start one rank.

        Args:
            place: Which.
            scratch: A folder for its files.
            fds: Closes, at its end, what is left of the descriptors made here.
            streams: What it writes to.
            private_network: Whether it gets a network of its own, with nothing in it yet.
            keep: Descriptors that are to be open as long as it lives.
        """
        tmp = scratch / "tmp"
        tmp.mkdir(mode=0o1777)
        sandbox, layers = self.sandbox, self._layers(scratch)
        inner = self.job if sandbox is not None else _at_host_paths(self.job, layers)
        env = {**self.env, "TMPDIR": str(tmp) if sandbox is None else "/tmp"}
        # The command's `python` and `ray` are the caller's, also where its environment was not activated.
        env["PATH"] = os.path.dirname(sys.executable) + os.pathsep + env.get("PATH", os.defpath)
        supervisor = Path(__file__).resolve().parents[2] / "container" / "__main__.py"
        # No pipe: bubblewrap would be ended by it where the caller is gone, and leave a process that waits for it.
        info = fds.file(b"")
        ready_r, ready_w = fds.pipe()
        errors = self.notes / ("supervisor.err" if place.rank == 0 else f"supervisor-{place.rank}.err")
        record = fds.file(json.dumps({"job": json.loads(inner.to_json()), "place": asdict(place)}).encode())

        argv = [sys.executable, "-I", "-S", str(supervisor), "--ready", str(ready_w)]
        passed = [self.alive, ready_w, *keep]
        for option, descriptor in (("--events", streams.events), ("--caller", streams.caller)):
            if descriptor is not None:
                argv += [option, str(descriptor)]
                passed.append(descriptor)
        if place.listener is not None:
            passed.append(place.listener)
        if sandbox is not None:
            extra = ["--info-fd", str(info), *(["--unshare-net"] if private_network else [])]
            argv = sandbox.argv(layers, tmp=tmp, env=env, extra=extra) + argv
            passed.append(info)
        held = [fds.add(snapshot.hold()) for snapshot in self.snapshots]
        process = subprocess.Popen(
            ["/bin/sh", "-c", _KEEPER, str(scratch), *argv],
            stdin=record,
            stdout=streams.output,
            stderr=fds.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            env=env,
            cwd="/",
            pass_fds=[*passed, *held],
            start_new_session=True,
        )
        os.close(fds.take(ready_w))
        return RankProcess(process, scratch, errors, ready_r, None if sandbox is None else info)

    def _layers(self, scratch: Path) -> list[Layer]:
        layers, job, sandbox = [], self.job, self.sandbox
        for number, (mount, snapshot) in enumerate(zip(job.mounts, self.snapshots, strict=True)):
            if sandbox is not None and sandbox.overlays:
                own = scratch / f"mount-{number}"
                (own / "upper").mkdir(parents=True)
                (own / "work").mkdir()
                layers.append(Layer(snapshot.path, mount.remote_path, "overlay", own))
            else:
                # As it lies in the container: $SKYRL_REPO_ROOT/../NAME is right also where there are no namespaces.
                copy = scratch / "mounts" / mount.remote_path.lstrip("/")
                shutil.copytree(snapshot.path, copy, symlinks=True, dirs_exist_ok=True)
                layers.append(Layer(copy, mount.remote_path, "rw"))
        for volume, folder in zip(job.volumes, self.volumes, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            layers.append(Layer(folder, volume.mount_path, "ro" if volume.read_only else "rw"))
        if job.run_volume is None:
            (self.notes / "run").mkdir(exist_ok=True)
            layers.append(Layer(self.notes / "run", job.run_dir, "rw"))
        return layers


def _at_host_paths(job: Job, layers: Sequence[Layer]) -> Job:
    """The job with this machine's own paths, where there are no namespaces to have the container's."""

    def moved(path: str | None) -> str | None:
        for layer in sorted(layers, key=lambda layer: -len(layer.target)):
            if path is not None and (path == layer.target or path.startswith(f"{layer.target}/")):
                return str(layer.source) + path.removeprefix(layer.target)
        return path

    return evolve(
        job,
        workdir=moved(job.workdir) or "/",
        repo_root=moved(job.repo_root),
        data=moved(job.data),
        run_dir=moved(job.run_dir) or "/",
    )
