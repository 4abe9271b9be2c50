"""`LoopbackModal`: the control plane as a test sees it."""

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

from .faults import Faults
from .functions import Functions
from .images import Image
from .logs import Entry
from .plane import Plane
from .records import App, Call, Container, Function, FunctionCall
from .rpc import POLLS

T = TypeVar("T")
DEADLINE = 60.0


class LoopbackModal:
    """A Modal of one's own on 127.0.0.1, for the real client, with real containers.

    Args:
        folder: Where it keeps files, volumes and containers; removed by `close` unless `keep`. None: a temporary one.
        python: The containers' interpreter, which needs the modal package. Its version may differ from the client's.
        container_path: Folders that stand first on the containers' PATH.
        container_env: Variables of every container, above those of images and secrets.
        visible: Paths of this machine that containers see, read-only, beside the system's programs and Python.
        client_timeout: Seconds without a heartbeat after which an attached app's client counts as gone.
        heartbeat: Seconds between the clients' heartbeats.
        scaledown: Seconds after which an idle container goes.
        stop_grace: Seconds between SIGINT and SIGKILL when an app stops.
        preempt_grace: The same for a preemption.
        cancel_grace: Seconds that a cancelled input may take to end.
        timeout_grace: The same after a time-out; 0: the container is killed at once.
        startup_floor: Seconds that a start may take at least: a test's time-outs are short, its machine may be busy.
        crashes_allowed: How often an input's container may die before the input fails.
        background_commits: Seconds between commits of all volumes; None: only the commits that are asked for.
        private_networks: Each container has ports of its own, and reaches nothing outside; False: the machine's.
        keep: Leave `folder` there.
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
        keep: bool = False,
    ) -> None:
        self._sockets = Path(tempfile.mkdtemp(prefix="lm-"))
        self.folder = Path(folder).absolute() / "loopback" if folder is not None else self._sockets / "data"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._keep, self._heartbeat, self._closed = keep, heartbeat, False
        self.plane = Plane(self.folder, self._sockets, python)
        self.plane.container_path = [str(path) for path in container_path]
        self.plane.container_env = dict(container_env or {})
        self.plane.visible = [str(Path(path).absolute()) for path in visible]
        self.plane.client_timeout, self.plane.scaledown = client_timeout, scaledown
        self.plane.stop_grace, self.plane.preempt_grace = stop_grace, preempt_grace
        self.plane.cancel_grace, self.plane.timeout_grace = cancel_grace, timeout_grace
        self.plane.crashes_allowed, self.plane.startup_floor = crashes_allowed, startup_floor
        self.plane.background_commits, self.plane.private_networks = background_commits, private_networks
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loopback-modal", daemon=True)
        self._thread.start()
        self._do(self.plane.start())

    def __enter__(self) -> LoopbackModal:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every container, then the server; leave nothing behind."""
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

    # -- for the client under test -----------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.plane.port}"

    def env(self) -> dict[str, str]:
        """The variables by which a modal client finds this server."""
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
    def here(self) -> Iterator[LoopbackModal]:
        """Let the modal client of this process use this server."""
        import modal.client
        from modal._environments import ENVIRONMENT_CACHE

        before = {name: os.environ.get(name) for name in [*self.env(), "MODAL_ENVIRONMENT", "MODAL_PROFILE"]}
        for name in before:
            os.environ.pop(name, None)
        os.environ.update(self.env())
        old = modal.client._Client._client_from_env
        modal.client._Client._client_from_env = None
        # The interval is read when modal is imported, which may have been long ago.
        import modal.runner

        interval, modal.runner.HEARTBEAT_INTERVAL = modal.runner.HEARTBEAT_INTERVAL, self._heartbeat
        ENVIRONMENT_CACHE.clear()
        try:
            yield self
        finally:
            if modal.client._Client._client_from_env is not None:
                modal.Client.from_env().close()
            modal.client._Client._client_from_env = old
            modal.runner.HEARTBEAT_INTERVAL = interval
            ENVIRONMENT_CACHE.clear()
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    # -- what happened -----------------------------------------------------------------------------------------------

    def calls(self, name: str | None = None, *, container: bool | None = None) -> list[Call]:
        """The RPCs until now, in their order: of one name, of the containers only (True) or the clients' (False)."""
        with self.plane.called:
            made = list(self.plane.calls_made)
        return [
            call
            for call in made
            if (name is None or call.name == name) and (container is None or container == (call.container is not None))
        ]

    def names(self, *, container: bool | None = None, polls: bool = False) -> list[str]:
        """The names of the RPCs, in their order, without heartbeats and the like unless asked for."""
        return [call.name for call in self.calls(container=container) if polls or call.name not in POLLS]

    def requests(self, name: str) -> list[Any]:
        """The request messages of one RPC."""
        return [call.request for call in self.calls(name)]

    def wait_for_call(self, name: str, count: int = 1, timeout: float = DEADLINE) -> Call:
        """Wait until an RPC has come so often."""
        with self.plane.called:
            found = self.plane.called.wait_for(
                lambda: [call for call in self.plane.calls_made if call.name == name][count - 1 : count], timeout
            )
        if not found:
            raise TimeoutError(f"{name} did not come {count} times in {timeout} s")
        return found[0]

    def wait_until(self, condition: Callable[[], T], timeout: float = DEADLINE, what: str = "") -> T:
        """Wait until something of the server's state holds. The condition runs in the server's thread."""
        deadline = time.monotonic() + timeout
        while True:
            value = self._call(condition)
            if value:
                return value
            if time.monotonic() > deadline:
                raise TimeoutError(what or f"{condition} did not come true in {timeout} s")
            with self.plane.called:
                self.plane.called.wait(0.02)

    @property
    def unimplemented(self) -> list[str]:
        """The RPCs that came and that there is no method for."""
        return list(self.plane.unimplemented)

    @property
    def errors(self) -> list[BaseException | None]:
        """What went wrong in the server itself: a test should find none."""
        return list(self.plane.errors)

    @property
    def apps(self) -> list[App]:
        return self._call(lambda: list(self.plane.apps.apps.values()))

    @property
    def functions(self) -> list[Function]:
        return self._call(lambda: list(self.plane.functions.functions.values()))

    @property
    def function_calls(self) -> list[FunctionCall]:
        return self._call(lambda: list(self.plane.calls.calls.values()))

    @property
    def images(self) -> list[Image]:
        return self._call(lambda: list(self.plane.images.images.values()))

    def log(self, call_id: str | None = None, *, app: App | None = None) -> list[Entry]:
        """Every log entry, of one call or app where given."""
        return self._call(
            lambda: [
                entry
                for app_id, log in self.plane.logs.logs.items()
                for entry in log.entries
                if entry.data and (app is None or app.id == app_id) and (call_id is None or entry.call_id == call_id)
            ]
        )

    def log_text(self, call_id: str | None = None) -> str:
        """What was printed, stdout and stderr, as the server has it."""
        return "".join(entry.data for entry in self.log(call_id) if entry.descriptor in (1, 2))

    def wait_for_text(self, text: str, call_id: str | None = None, timeout: float = DEADLINE) -> None:
        """Wait until containers have printed this."""
        deadline = time.monotonic() + timeout
        while text not in self.log_text(call_id):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{text!r} was not printed in {timeout} s, but: {self.log_text(call_id)[-2000:]!r}")
            with self.plane.called:
                self.plane.called.wait(0.02)

    # -- containers --------------------------------------------------------------------------------------------------

    def containers(self, *, running: bool = True) -> list[Container]:
        """The containers that are there, or (running=False) all that ever were."""
        every = self._call(lambda: list(self.plane.scheduler.containers.values()))
        return [container for container in every if not running or container.state != "done"]

    def wait_for_container(self, state: str = "busy", timeout: float = DEADLINE) -> Container:
        """Wait until a container is in this state: starting, idle, busy."""
        every = self.plane.scheduler.containers
        return self.wait_until(
            lambda: next((c for c in every.values() if c.state == state), None), timeout, f"no container is {state}"
        )  # type: ignore[return-value]  # found, or TimeoutError

    def wait_for_no_container(self, timeout: float = DEADLINE) -> None:
        """Wait until all containers have ended."""
        every = self.plane.scheduler.containers
        self.wait_until(lambda: all(c.state == "done" for c in every.values()), timeout, "containers are left")

    def kill(self, container: Container | None = None, number: int = signal.SIGKILL) -> None:
        """Send a signal to a container's entrypoint (the first busy one's), SIGKILL unless told otherwise."""
        target = container or self.wait_for_container("busy")
        pid = target.pid
        if pid is None:
            raise RuntimeError(f"{target.id} does not run")
        os.kill(pid, number)

    def preempt(self, container: Container | None = None, grace: float | None = None) -> None:
        """Preempt a container (the first busy one): SIGINT, the grace, SIGKILL, a new start on the same input."""
        target = container or self.wait_for_container("busy")
        self._call(lambda: self.plane.scheduler.preempt(target, grace))

    # -- what is there before a client comes ---------------------------------------------------------------------------

    def secret(self, name: str, env: Mapping[str, str], environment: str = "main") -> None:
        """Declare a named secret."""
        self._call(lambda: self.plane.secrets.declare(name, dict(env), environment))

    def environment(self, name: str) -> None:
        """Declare an environment beside "main"."""
        self.plane.environments.add(name)

    def volume(self, name: str, environment: str = "main", *, create: bool = False) -> Path:
        """The folder with a volume's committed files; `create` makes the volume."""

        def find() -> Path:
            volumes = self.plane.volumes
            if create and (environment, name) not in volumes.names:
                volumes.create(name, environment)
            return volumes.find(name, environment).data

        return self._call(find)

    def fail_commits(self, name: str, times: int = 1, environment: str = "main") -> None:
        """Let the next commits of a volume fail."""
        self._call(lambda: setattr(self.plane.volumes.find(name, environment), "fail_commits", times))

    @property
    def gpus(self) -> set[str]:
        """The GPU names that are accepted; to be changed in place."""
        gpus: Functions = self.plane.functions
        return gpus.gpus

    @property
    def faults(self) -> Faults:
        """Misbehaviour on request."""
        return self.plane.faults

    @contextlib.contextmanager
    def offline(self) -> Iterator[None]:
        """Cut the clients off, as a laptop that sleeps is: connections break, and none can be made."""
        self.faults.offline = True
        self._do(self.plane.unlisten())
        try:
            yield
        finally:
            self._do(self.plane.listen())
            self.faults.offline = False

    def cut_logs(self, size: int | None, *, inside_characters: bool = False) -> None:
        """Cut log entries to so many bytes, inside characters too (then replaced); None: as they were read."""
        self.plane.logs.chunk, self.plane.logs.whole_characters = size, not inside_characters
