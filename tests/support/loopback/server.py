"""`LoopbackModal`: the interface of the control plane for tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import attrs

from .faults import Faults
from .functions import Functions
from .images import Image
from .logs import STDERR, STDOUT, Entry
from .modes import Mode
from .plane import ControlPlane
from .records import App, Call, Container, Function, FunctionCall
from .rpc import POLLS

T = TypeVar("T")
DEFAULT_TIMEOUT = 60.0


def _printed_text(entries: Iterable[Entry]) -> str:
    return "".join(entry.data for entry in entries if entry.descriptor in (STDOUT, STDERR))


class LoopbackModal:
    """A local stand-in for Modal on 127.0.0.1, for the real client, with real containers.

    Args:
        folder: Folder for files, volumes and containers, removed by `close` unless `keep` is set. None: a temporary
            folder.
        python: Interpreter of the containers, with the modal package. Its version may differ from the client's.
        container_path: Folders to put first on the containers' PATH.
        container_env: Variables of every container. They override those of images and secrets.
        visible: Paths of this machine that containers see, read-only, in addition to the system's programs and Python.
        client_timeout: Seconds without a heartbeat after which the client of an attached app counts as disconnected.
        heartbeat: Seconds between heartbeats of clients.
        scaledown: Seconds after which an idle container is stopped.
        stop_grace: Seconds between SIGINT and SIGKILL when an app stops.
        preempt_grace: Seconds between SIGINT and SIGKILL at a preemption.
        cancel_grace: Seconds after which the container of a cancelled input is killed.
        timeout_grace: Seconds after which the container of an input with a timeout is killed; 0: immediately.
        startup_floor: Minimum of the startup timeout in seconds. Tests set short timeouts, and the machine may be busy.
        crashes_allowed: Number of containers that may die while they run an input, before the input fails.
        background_commits: Seconds between commits of all volumes; None: no background commits.
        private_networks: Whether each container has its own ports and no access to other networks. If False, it uses
            the machine's network.
        mode: How Modal's servers behave where records differ: a `Mode`, or the name of one in `MODES`. None: the mode
            that the environment names, by default what several users of Modal have recorded.
        keep: Whether `close` keeps `folder`.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        python: str = sys.executable,
        container_path: Iterable[Path | str] = (),
        container_env: Mapping[str, str] | None = None,
        visible: Iterable[Path | str] = (),
        client_timeout: float = 10.0,
        heartbeat: float = 1.0,
        scaledown: float = 60.0,
        stop_grace: float = 30.0,
        preempt_grace: float = 30.0,
        cancel_grace: float = 30.0,
        timeout_grace: float = 5.0,
        startup_floor: int = 60,
        crashes_allowed: int = 2,
        background_commits: float | None = None,
        private_networks: bool = True,
        mode: Mode | str | None = None,
        keep: bool = False,
    ) -> None:
        self._sockets = Path(tempfile.mkdtemp(prefix="lm-"))
        self.folder = Path(folder).absolute() / "loopback" if folder is not None else self._sockets / "data"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._keep, self._heartbeat, self._closed = keep, heartbeat, False
        self.plane = ControlPlane(self.folder, self._sockets, python)
        self.plane.container_path = [str(path) for path in container_path]
        self.plane.container_env = dict(container_env or {})
        self.plane.visible = [str(Path(path).absolute()) for path in visible]
        self.plane.client_timeout, self.plane.scaledown = client_timeout, scaledown
        self.plane.stop_grace, self.plane.preempt_grace = stop_grace, preempt_grace
        self.plane.cancel_grace, self.plane.timeout_grace = cancel_grace, timeout_grace
        self.plane.crashes_allowed, self.plane.startup_floor = crashes_allowed, startup_floor
        self.plane.background_commits, self.plane.private_networks = background_commits, private_networks
        self.mode = mode
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loopback-modal", daemon=True)
        self._thread.start()
        self._do(self.plane.start())

    def __enter__(self) -> LoopbackModal:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop all containers and the server, and remove their files."""
        if self._closed:
            return
        self._closed = True
        self._do(self.plane.stop())
        self._do(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        shutil.rmtree(self._sockets, ignore_errors=True)
        if not self._keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _call(self, function: Callable[[], T]) -> T:
        async def work() -> T:
            return function()

        return self._do(work())

    @property
    def mode(self) -> Mode:
        """How the server behaves. Set it before the containers that it concerns start."""
        return self.plane.mode

    @mode.setter
    def mode(self, mode: Mode | str | None) -> None:
        chosen = Mode.from_environment() if mode is None else Mode.named(mode) if isinstance(mode, str) else mode
        self.plane.mode = chosen
        if chosen.platform_grace is not None:
            self.plane.stop_grace = self.plane.preempt_grace = chosen.platform_grace

    # -- for the client under test -----------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """URL of the control plane."""
        return f"http://127.0.0.1:{self.plane.port}"

    def env(self) -> dict[str, str]:
        """Return the environment variables that make a modal client use this server."""
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": self.plane.token[0],
            "MODAL_TOKEN_SECRET": self.plane.token[1],
            "MODAL_CONFIG_PATH": str(self.folder / "no-config.toml"),
            "MODAL_HEARTBEAT_INTERVAL": str(self._heartbeat),
            "MODAL_DISABLE_API_PROXY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    @contextlib.contextmanager
    def activate(self) -> Iterator[LoopbackModal]:
        """Make the modal client of this process use this server."""
        import modal.client
        from modal._environments import ENVIRONMENT_CACHE

        before = {name: os.environ.get(name) for name in [*self.env(), "MODAL_ENVIRONMENT", "MODAL_PROFILE"]}
        for name in before:
            os.environ.pop(name, None)
        os.environ.update(self.env())
        old = modal.client._Client._client_from_env
        modal.client._Client._client_from_env = None
        # modal.runner reads the interval from the environment when it is imported, which may have happened before.
        import modal.runner

        interval, modal.runner.HEARTBEAT_INTERVAL = modal.runner.HEARTBEAT_INTERVAL, self._heartbeat
        ENVIRONMENT_CACHE.clear()
        try:
            yield self
        finally:
            if modal.client._Client._client_from_env is not None:
                client = modal.Client.from_env()
                (client.close if hasattr(client, "close") else client._close)()  # client 1.6.0 has no `close`
            modal.client._Client._client_from_env = old
            modal.runner.HEARTBEAT_INTERVAL = interval
            ENVIRONMENT_CACHE.clear()
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    # -- recorded RPCs, state and logs -------------------------------------------------------------------------------

    def calls(self, name: str | None = None, *, container: bool | None = None) -> list[Call]:
        """Return the RPCs received so far: those of one name, of containers (True), or of clients (False)."""
        with self.plane.called:
            made = list(self.plane.calls_made)
        return [
            call
            for call in made
            if (name is None or call.name == name) and (container is None or container == (call.container is not None))
        ]

    def names(self, *, container: bool | None = None, polls: bool = False) -> list[str]:
        """Return the names of the RPCs received so far; heartbeats and other polls are included if `polls` is set."""
        return [call.name for call in self.calls(container=container) if polls or call.name not in POLLS]

    def requests(self, name: str) -> list[Any]:
        """Return the request messages of one RPC."""
        return [call.request for call in self.calls(name)]

    def wait_for_call(self, name: str, count: int = 1, timeout: float = DEFAULT_TIMEOUT) -> Call:
        """Wait until an RPC was received `count` times, and return its last call."""
        with self.plane.called:
            found = self.plane.called.wait_for(
                lambda: [call for call in self.plane.calls_made if call.name == name][count - 1 : count], timeout
            )
        if not found:
            raise TimeoutError(f"{name} was not received {count} times within {timeout} s")
        return found[0]

    def wait_until(self, condition: Callable[[], T], timeout: float = DEFAULT_TIMEOUT, what: str = "") -> T:
        """Wait until a condition is true, and return its value. The condition runs in the server's thread."""
        deadline = time.monotonic() + timeout
        while True:
            value = self._call(condition)
            if value:
                return value
            if time.monotonic() > deadline:
                raise TimeoutError(what or f"{condition} was not true within {timeout} s")
            with self.plane.called:
                self.plane.called.wait(0.02)

    @property
    def unimplemented(self) -> list[str]:
        """Names of received RPCs that the loopback does not implement."""
        return list(self.plane.unimplemented)

    @property
    def errors(self) -> list[BaseException | None]:
        """Exceptions in the server itself. A test should assert that there are none."""
        return list(self.plane.errors)

    @property
    def apps(self) -> list[App]:
        """All apps."""
        return self._call(lambda: list(self.plane.apps.apps.values()))

    @property
    def functions(self) -> list[Function]:
        """All functions."""
        return self._call(lambda: list(self.plane.functions.functions.values()))

    @property
    def function_calls(self) -> list[FunctionCall]:
        """All function calls."""
        return self._call(lambda: list(self.plane.calls.calls.values()))

    @property
    def images(self) -> list[Image]:
        """All images."""
        return self._call(lambda: list(self.plane.images.images.values()))

    def log(self, call_id: str | None = None, *, app: App | None = None) -> list[Entry]:
        """Return all log entries, or those of one call or app."""
        return self._call(lambda: self._log_entries(call_id, app))

    def _log_entries(self, call_id: str | None, app: App | None = None) -> list[Entry]:
        return [
            entry
            for app_id, log in self.plane.logs.logs.items()
            for entry in log.entries
            if entry.data and (app is None or app.id == app_id) and (call_id is None or entry.call_id == call_id)
        ]

    def log_text(self, call_id: str | None = None) -> str:
        """Return the logged text of stdout and stderr."""
        return _printed_text(self.log(call_id))

    def wait_for_text(self, text: str, call_id: str | None = None, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Wait until the log contains a text."""
        try:
            self.wait_until(lambda: text in _printed_text(self._log_entries(call_id)), timeout)
        except TimeoutError:
            printed = self.log_text(call_id)[-2000:]
            raise TimeoutError(f"{text!r} was not printed within {timeout} s: {printed!r}") from None

    # -- containers --------------------------------------------------------------------------------------------------

    def containers(self, *, running: bool = True) -> list[Container]:
        """Return the running containers, or with `running=False` also those that have exited."""
        every = self._call(lambda: list(self.plane.scheduler.containers.values()))
        return [container for container in every if not running or container.state != "done"]

    def wait_for_container(self, state: str = "busy", timeout: float = DEFAULT_TIMEOUT) -> Container:
        """Wait until a container is in a state ("starting", "idle" or "busy"), and return it."""
        every = self.plane.scheduler.containers
        return self.wait_until(
            lambda: next((c for c in every.values() if c.state == state), None), timeout, f"no container is {state}"
        )  # type: ignore[return-value]  # wait_until never returns None

    def container_seconds(self) -> float:
        """Return the seconds of all containers together, also of those that have exited: what Modal would charge."""
        return self._call(lambda: sum(one.seconds for one in self.plane.scheduler.containers.values()))

    def wait_for_no_container(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Wait until all containers have exited."""
        every = self.plane.scheduler.containers
        self.wait_until(lambda: all(c.state == "done" for c in every.values()), timeout, "containers are still running")

    def kill(self, container: Container | None = None, number: int = signal.SIGKILL) -> None:
        """Send a signal to the entrypoint of a container; by default SIGKILL to the first busy container."""
        target = container or self.wait_for_container("busy")
        pid = target.pid
        if pid is None:
            raise RuntimeError(f"{target.id} is not running")
        os.kill(pid, number)

    def preempt(self, container: Container | None = None, grace: float | None = None, *, alone: bool = False) -> None:
        """Preempt a container, by default the first busy one: SIGINT, SIGKILL after the grace, and a restart.

        Args:
            container: The container.
            grace: Seconds until it is killed; None: as the server's options or its mode define.
            alone: Whether the signal is sent to this container of a cluster only. The others are stopped when it has
                exited.
        """
        target = container or self.wait_for_container("busy")
        self._call(lambda: self.plane.scheduler.preempt(target, grace, alone=alone))

    def cancel(self, call_id: str) -> None:
        """Cancel a call without its caller: from the dashboard, or for no visible cause."""
        call = self._call(lambda: self.plane.calls.get(call_id))
        self._call(lambda: [self.plane.scheduler.cancel(entry) for entry in call.inputs])

    def exceed_spend_limit(self) -> None:
        """Stop all apps and refuse new work, as when the workspace reaches its spend limit during a run."""
        self.mode = attrs.evolve(self.mode, spend_limit="exceeded")
        self._call(self.plane.apps.stop_all)

    # -- objects that exist before a client connects -----------------------------------------------------------------

    def secret(self, name: str, env: Mapping[str, str], environment: str = "main") -> None:
        """Declare a named secret."""
        self._call(lambda: self.plane.secrets.declare(name, dict(env), environment))

    def environment(self, name: str) -> None:
        """Declare an environment in addition to "main"."""
        self.plane.environments.add(name)

    def volume(self, name: str, environment: str = "main", *, create: bool = False) -> Path:
        """Return the folder of a volume's committed files, after creating the volume if `create` is set."""

        def find() -> Path:
            volumes = self.plane.volumes
            if create and (environment, name) not in volumes.names:
                volumes.create(name, environment)
            return volumes.find(name, environment).data

        return self._call(find)

    def fail_commits(self, name: str, times: int = 1, environment: str = "main") -> None:
        """Make the next commits of a volume fail."""
        self._call(lambda: setattr(self.plane.volumes.find(name, environment), "fail_commits", times))

    @property
    def gpus(self) -> set[str]:
        """Accepted GPU names. The set can be modified."""
        gpus: Functions = self.plane.functions
        return gpus.gpus

    @property
    def faults(self) -> Faults:
        """Faults to inject."""
        return self.plane.faults

    @contextlib.contextmanager
    def offline(self) -> Iterator[None]:
        """Drop all connections of clients and refuse new ones, as when a laptop is suspended."""
        self.faults.offline = True
        self._do(self.plane.unlisten())
        try:
            yield
        finally:
            self._do(self.plane.listen())
            self.faults.offline = False

    def cut_logs(self, size: int | None, *, inside_characters: bool = False) -> None:
        """Limit log entries to a number of bytes; None removes the limit.

        Args:
            size: Maximum number of bytes.
            inside_characters: Whether entries may be cut within a character, which is then replaced.
        """
        self.plane.logs.chunk, self.plane.logs.whole_characters = size, not inside_characters
