"""The control plane: all services, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from pathlib import Path
from typing import Any

import grpclib.config
from grpclib.protocol import H2Protocol
from grpclib.server import Server
from modal_proto import api_pb2

from .apps import Apps
from .billing import Billing
from .blobs import Blobs
from .calls import Calls
from .cluster import Clusters
from .container import Python
from .dicts import Dicts
from .faults import Faults
from .functions import Functions
from .images import Images
from .logs import Logs
from .modes import Mode
from .mounts import Mounts
from .records import Call, Container
from .rpc import Router
from .scheduler import Scheduler
from .secret_store import Secrets
from .tunnels import Tunnels
from .volume_rpcs import Volumes
from .worker import Worker

FLOW_CONTROL_WINDOW = 16 << 20


class AbortableServer(Server):
    """A gRPC server that can also abort its connections."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._protocols: weakref.WeakSet[H2Protocol] = weakref.WeakSet()

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        self._protocols.add(protocol)
        return protocol

    async def abort(self) -> None:
        """Stop listening and abort all connections."""
        self.close()
        for protocol in list(self._protocols):
            if hasattr(protocol, "connection"):
                protocol.connection._transport.abort()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wait_closed(), 2)


class ControlPlane:
    """State and settings of the control plane, through which its services reach each other."""

    def __init__(self, folder: Path, sockets: Path, python: str) -> None:
        self.folder, self.sockets = folder, sockets
        self.python = Python.of(python)
        self.token = ("ak-loopback", "as-loopback")
        self.environments = {"main"}
        self.container_path: list[str] = []
        self.container_env: dict[str, str] = {}
        self.visible: list[str] = []
        self.client_timeout = 10.0
        self.scaledown = 60.0
        self.stop_grace = self.preempt_grace = self.cancel_grace = 30.0
        self.timeout_grace = 5.0
        self.crashes_allowed = 2
        self.startup_floor = 60
        self.private_networks = True
        self.mode = Mode()
        self.background_commits: float | None = None
        self.faults = Faults()
        self.unimplemented: list[str] = []
        self.errors: list[BaseException | None] = []
        self.calls_made: list[Call] = []
        self.called = threading.Condition()
        self.apps, self.blobs, self.calls, self.images = Apps(self), Blobs(self), Calls(self), Images(self)
        self.functions, self.logs, self.mounts, self.secrets = Functions(self), Logs(self), Mounts(self), Secrets(self)
        self.volumes, self.scheduler, self.worker, self.clusters = (
            Volumes(self),
            Scheduler(self),
            Worker(self),
            Clusters(self),
        )
        self.tunnels, self.dicts, self.billing = Tunnels(self), Dicts(self), Billing(self)
        services = [self.apps, self.blobs, self.calls, self.images, self.functions, self.logs, self.mounts]
        services += [self.secrets, self.dicts, self.volumes, self.worker, self.clusters, self.tunnels, self.billing]
        self.router = Router(self, services)
        self.config = grpclib.config.Configuration(
            http2_connection_window_size=FLOW_CONTROL_WINDOW, http2_stream_window_size=FLOW_CONTROL_WINDOW
        )
        self._server: AbortableServer | None = None
        self._container_servers: dict[str, AbortableServer] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self.port = 0

    def bucket_folder(self, mount: api_pb2.CloudBucketMount) -> Path:
        """Return the folder that a container sees in place of a bucket."""
        return self.folder / "buckets" / mount.bucket_name / mount.key_prefix

    def record(self, call: Call) -> None:
        """Record an RPC, and wake up threads that wait for one."""
        with self.called:
            self.calls_made.append(call)
            self.called.notify_all()

    async def start(self) -> None:
        self.faults.bind(asyncio.get_running_loop())
        await self.blobs.start()
        await self.listen()
        self._watchers.append(asyncio.create_task(self.apps.watch()))
        self._watchers.append(asyncio.create_task(self._commit()))

    async def listen(self) -> None:
        """Accept connections of clients, on the same port as before `unlisten`."""
        self._server = AbortableServer([self.router.handler(None)], config=self.config)
        await self._server.start("127.0.0.1", self.port)
        assert self._server._server is not None
        self.port = self._server._server.sockets[0].getsockname()[1]

    async def unlisten(self) -> None:
        """Abort the connections of clients and accept no new ones."""
        assert self._server is not None
        await self._server.abort()

    async def _commit(self) -> None:
        """Commit all volumes periodically, as Modal does, if `background_commits` is set."""
        while True:
            await asyncio.sleep(self.background_commits or 0.2)
            if self.background_commits is None:
                continue
            for container in list(self.scheduler.containers.values()):
                for copy in list(container.process.volumes.values()) if container.process else []:
                    with contextlib.suppress(Exception):
                        await asyncio.to_thread(copy.publish)

    async def serve_container(self, container: Container, socket: Path) -> None:
        server = AbortableServer([self.router.handler(container)], config=self.config)
        await server.start(path=str(socket))
        self._container_servers[container.id] = server

    async def end_container(self, container: Container) -> None:
        server = self._container_servers.pop(container.id, None)
        if server is not None:
            await server.abort()

    async def stop(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await self.scheduler.close()
        await self.clusters.close()
        self.faults.drop_connections(side="all")
        await self.unlisten()
        await self.tunnels.close()
        await self.blobs.stop()
