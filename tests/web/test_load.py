"""Clients that are many, or that stop reading."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack

import psutil
import pytest

from skyrl_modal.protocol.run_folder import RunFolder
from tests.web.conftest import Server


@pytest.mark.slow  # some seconds pass until the buffers are full
def test_client_that_stops_reading_is_dropped(server: Server, add_run: Callable[..., RunFolder]) -> None:
    """The connection of a client that reads nothing is closed; another one that follows the run receives each line."""
    folder = add_run("20250201-000000-aaaaaa")
    with socket.socket() as silent, server.events("20250201-000000-aaaaaa") as events:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.connect(("127.0.0.1", server.port))
        request = (
            "GET /api/events?run=20250201-000000-aaaaaa HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {server.token}\r\n\r\n"
        )
        silent.sendall(request.encode())
        assert silent.recv(12) == b"HTTP/1.1 200"

        count = 0
        received: list[int] = []
        while is_connected(server, silent):
            assert count < 10_000  # 40 MB
            with open(folder.output, "ab") as output:
                output.write(b"".join(b"%d %s\n" % (number, b"x" * 3900) for number in range(count, count + 190)))
            count += 190
            while not received or received[-1] < count:
                name, data = next(events)
                if name == "log":
                    received += [line["n"] for line in data["lines"]]

    assert sorted(set(received)) == list(range(1, count + 1))
    assert server.get("/api/info").status == 200


def is_connected(server: Server, client: socket.socket) -> bool:
    """Return whether the server has a connection to a client."""
    port = client.getsockname()[1]
    connections = psutil.Process(server.process.pid).net_connections()
    return any(each.raddr and each.raddr.port == port for each in connections)


def test_fifty_clients(server: Server, add_run: Callable[..., RunFolder]) -> None:
    """50 clients receive the same line."""
    folder = add_run("20250202-000000-bbbbbb")
    with ExitStack() as stack:
        clients = [stack.enter_context(server.events("20250202-000000-bbbbbb")) for _ in range(50)]
        with open(folder.output, "ab") as output:
            output.write(b"hello\n")
        for events in clients:
            assert next(data["lines"][0]["text"] for name, data in events if name == "log") == "hello"
