"""Runs on the machine at hand, by the same supervisor and at the same paths as in a container.

A run here is a small chain of processes in a session of its own: a shell that removes the run's scratch folder at the
end, whoever ends first; bubblewrap; and the supervisor as process 1 of its own process namespace, with whose end
everything that the run started is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs
from attrs import evolve

from skyrl_modal.backends import VolumeEntry
from skyrl_modal.backends.descriptors import Descriptors
from skyrl_modal.backends.local_execution import CHUNK, LiveStreams, LocalExecution, is_alive, run_folder
from skyrl_modal.backends.sandbox import TRIAL, Layer, Sandbox, find_sandbox, remove_tree
from skyrl_modal.errors import BackendUnavailable, SpecError
from skyrl_modal.job import Job
from skyrl_modal.mount import Snapshot

_APP = "skyrl_modal"
#: What the shell around a run does: wait for it, then remove the scratch folder, whatever its permissions have become.
_KEEPER = '"$@"; code=$?; chmod -R u+rwX "$0" 2>/dev/null; rm -rf "$0"; exit $code'


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
            SpecError: The job names a Modal secret, asks for several nodes, or for a volume that may not be made.
        """
        if os.name != "posix":
            raise BackendUnavailable(self.name, 'it needs Linux or macOS (on Windows: WSL), or backend="modal"')
        if job.nodes > 1:
            raise SpecError("nodes", job.nodes, "the local backend runs one node")
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
        return [("where", where), *volumes]

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
        with Descriptors() as fds:
            # Locked before there is a scratch folder: one without such a lock is nobody's.
            alive = fds.lock(notes / "alive")
            scratch = self._make_scratch(job.id, sandbox)
            try:
                return self._launch(job, snapshots, secrets, owned=owned, sandbox=sandbox, scratch=scratch, alive=alive)
            except BaseException:
                remove_tree(scratch)
                raise
            finally:
                for snapshot in snapshots:
                    snapshot.release()  # the run holds them by descriptors of its own

    def _make_scratch(self, run_id: str, sandbox: Sandbox | None) -> Path:
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
        scratch = root / run_id
        scratch.mkdir()
        return scratch

    def _launch(
        self,
        job: Job,
        snapshots: Sequence[Snapshot],
        secrets: Mapping[str, str],
        *,
        owned: bool,
        sandbox: Sandbox | None,
        scratch: Path,
        alive: int,
    ) -> LocalExecution:
        notes = run_folder(job.id)
        tmp = scratch / "tmp"
        tmp.mkdir(mode=0o1777)
        layers = self._layers(job, snapshots, sandbox, scratch, notes)
        inner = job if sandbox is not None else _at_host_paths(job, layers)
        env = {**os.environ, **secrets, "TMPDIR": str(tmp) if sandbox is None else "/tmp"}
        # The command's `python` and `ray` are the caller's, also where its environment was not activated.
        env["PATH"] = os.path.dirname(sys.executable) + os.pathsep + env.get("PATH", os.defpath)

        supervisor = Path(__file__).resolve().parents[1] / "container" / "__main__.py"
        with Descriptors() as fds:
            output_r, output_w = fds.pipe(CHUNK) if owned else (None, fds.open(os.devnull, os.O_WRONLY))
            events_r, events_w = fds.pipe() if owned else (None, None)
            # No pipe: bubblewrap would be ended by it where the caller is gone, and leave a process that waits for it.
            info = fds.file(b"")
            ready_r, ready_w = fds.pipe()
            errors = fds.open(notes / "supervisor.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            record = fds.file(inner.to_json().encode())
            caller_r, caller_w = fds.caller() if owned else (None, None)

            argv = [sys.executable, "-I", "-S", str(supervisor), "--ready", str(ready_w)]
            passed = [alive, ready_w]
            for option, descriptor in (("--events", events_w), ("--caller", caller_r)):
                if descriptor is not None:
                    argv += [option, str(descriptor)]
                    passed.append(descriptor)
            if sandbox is not None:
                argv = sandbox.argv(layers, tmp=tmp, env=env, extra=["--info-fd", str(info)]) + argv
                passed.append(info)
            held = [snapshot.hold() for snapshot in snapshots]
            for descriptor in held:
                fds.add(descriptor)
            process = subprocess.Popen(
                ["/bin/sh", "-c", _KEEPER, str(scratch), *argv],
                stdin=record,
                stdout=output_w,
                stderr=errors,
                env=env,
                cwd="/",
                pass_fds=[*passed, *held],
                start_new_session=True,
            )
            os.close(fds.take(ready_w))
            try:
                # A signal that came before would be lost, or end the supervisor without a result.
                with open(fds.take(ready_r), "rb") as ready:
                    own = ready.readline()
            except BaseException:  # Ctrl-C in `submit`: nobody would know of the run
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
            if not own:
                process.wait()
                words = (notes / "supervisor.err").read_text(encoding="utf-8", errors="replace")[-2000:]
                raise BackendUnavailable(self.name, f"the run did not start: {words.strip() or process.returncode}")
            # Its own pid; in a namespace it has another one here, which bubblewrap tells.
            pid = int(own) if sandbox is None else json.loads(os.pread(info, 4096, 0))["child-pid"]
            handle = {"pid": pid, "run_dir": str(_host_run_dir(job, notes))}
            live = None
            if output_r is not None and events_r is not None:
                live = LiveStreams(
                    fds.take(output_r), fds.take(events_r), None if caller_w is None else fds.take(caller_w)
                )
        return LocalExecution(job, handle, process=process, live=live)

    def _layers(
        self, job: Job, snapshots: Sequence[Snapshot], sandbox: Sandbox | None, scratch: Path, notes: Path
    ) -> list[Layer]:
        layers = []
        for number, (mount, snapshot) in enumerate(zip(job.mounts, snapshots, strict=True)):
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
        for volume in job.volumes:
            folder = volume_folder(volume.name)
            folder.mkdir(parents=True, exist_ok=True)
            layers.append(Layer(folder, volume.mount_path, "ro" if volume.read_only else "rw"))
        if not any(job.run_dir.startswith(f"{v.mount_path}/") for v in job.volumes if not v.read_only):
            (notes / "run").mkdir(exist_ok=True)
            layers.append(Layer(notes / "run", job.run_dir, "rw"))
        return layers

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
    return Path("/proc", name.removeprefix(TRIAL)).exists() if name.startswith(TRIAL) else is_alive(name)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def _host_run_dir(job: Job, notes: Path) -> Path:
    """Where this machine has the run's folder: on the first writable volume, else beside the notes."""
    for volume in job.volumes:
        if not volume.read_only and job.run_dir.startswith(f"{volume.mount_path}/"):
            return volume_folder(volume.name) / job.run_dir.removeprefix(f"{volume.mount_path}/")
    return notes / "run"


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
