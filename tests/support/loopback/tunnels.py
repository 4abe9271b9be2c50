"""Tunnels (`modal.forward`): a port of this machine's 127.0.0.1 that is forwarded to a port of a container.

Assumptions about Modal: a tunnel ends with its `with` block or its container. Unlike Modal's, the HTTPS address is
served without TLS; `Tunnel.tcp_socket` of an unencrypted tunnel works without change.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from . import network
from .records import Container
from .rpc import Context, Service


async def _copy_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


class Tunnels(Service):
    """RPCs about tunnels, and the tasks that relay their data."""

    def __init__(self, plane: Any) -> None:
        super().__init__(plane)
        self.open: dict[tuple[str, int], asyncio.Server] = {}
        self._relays: set[asyncio.Task[None]] = set()

    async def TunnelStart(self, request: api_pb2.TunnelStartRequest, context: Context) -> api_pb2.TunnelStartResponse:
        container = context.calling_container
        if (container.id, request.port) in self.open:
            raise GRPCError(Status.ALREADY_EXISTS, f"Port {request.port} is already forwarded.")

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._relays.add(task)
            try:
                await self._relay(container, request.port, reader, writer)
            finally:
                self._relays.discard(task)
                writer.close()

        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        self.open[container.id, request.port] = server
        port = server.sockets[0].getsockname()[1]
        plain = request.unencrypted
        return api_pb2.TunnelStartResponse(
            host="127.0.0.1",
            port=port,
            unencrypted_host="127.0.0.1" if plain else None,
            unencrypted_port=port if plain else None,
        )

    @staticmethod
    async def _relay(
        container: Container, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        process = container.process
        if process is None:
            return
        try:
            if process.private_network:
                inside = await asyncio.to_thread(network.socket_in, process.init_pid, "connect", port)
                inside.setblocking(False)
                there, back = await asyncio.open_connection(sock=inside)
            else:
                there, back = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return
        try:
            await asyncio.gather(_copy_stream(reader, back), _copy_stream(there, writer))
        finally:
            back.close()

    async def TunnelStop(self, request: api_pb2.TunnelStopRequest, context: Context) -> api_pb2.TunnelStopResponse:
        server = self.open.pop((context.calling_container.id, request.port), None)
        if server is not None:
            server.close()
        return api_pb2.TunnelStopResponse(exists=server is not None)

    async def end(self, container: Container) -> None:
        """Close the tunnels of a container that has exited."""
        for key in [key for key in self.open if key[0] == container.id]:
            self.open.pop(key).close()

    async def close(self) -> None:
        for server in self.open.values():
            server.close()
        for task in list(self._relays):
            task.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)
