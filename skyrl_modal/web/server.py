"""The server of the page: uvicorn on 127.0.0.1."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from skyrl_modal.errors import SpecError
from skyrl_modal.web.app import make_app

#: The only address of the server: no other machine can reach it.
HOST = "127.0.0.1"
#: Connections at the same time.
_MAX_CONNECTIONS = 200
#: Bytes that the system keeps for a client that does not read. Without a limit it is several MB.
_SEND_BUFFER = 256 << 10
#: Seconds that the end of the server waits for its connections.
_SHUTDOWN_SECONDS = 1


class WebServer:
    """The server. It has its port when it was created, and answers while ``serve`` executes.

    Args:
        port: The port; 0 for a free one.
        allow_actions: Whether runs can be cancelled.

    Raises:
        SpecError: The port is in use, or not permitted.

    Attributes:
        url: The address of the page, with the token.
    """

    def __init__(self, port: int = 0, *, allow_actions: bool = False) -> None:
        self._socket = _listen(port)
        self._token = secrets.token_urlsafe(32)
        own_port = self._socket.getsockname()[1]
        self.url = f"http://{HOST}:{own_port}/?token={self._token}"
        app, end_events = make_app(token=self._token, port=own_port, allow_actions=allow_actions, drop=self._drop)
        config = uvicorn.Config(
            app,
            access_log=False,
            log_level="warning",
            http="h11",
            ws="none",
            lifespan="on",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
        self._server = _Server(config)
        self._server.end_events = end_events

    def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Answer requests until Ctrl-C.

        Args:
            ready: Called when requests are answered.
        """
        self._server.ready = ready
        with self._socket:
            self._server.run([self._socket])

    def _drop(self, client: Any) -> None:
        """Close the connection of a client immediately, without what it has not read."""
        for connection in list(self._server.server_state.connections):
            if getattr(connection, "client", None) == client:
                transport = getattr(connection, "transport", None)
                if transport is not None:
                    transport.abort()


class _Server(uvicorn.Server):
    """A server that calls a function when it has started, and one before it ends."""

    ready: Callable[[], None]
    end_events: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the connections with events, and wait for the other answers."""
        self.end_events()
        await super().shutdown(sockets)


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)  # its connections have the same
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise SpecError("port", port, f"{error.strerror}; pass another port, or 0 for a free one") from None
    return listener
