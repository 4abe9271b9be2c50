"""The control connection between rank 0 and each other rank: lines of JSON over TCP, and its end as the sign of death.

Whoever dies, its sockets are closed by the kernel, so the other side knows at once. Where a whole machine vanishes,
nothing closes them: the kernel asks after some seconds of silence, and gives up (``_DEAD_AFTER``).
"""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

Message = dict[str, Any]
OnEvent = Callable[[str, Any], None]

#: Seconds that a new connection has to say who it is.
_HELLO = 10.0
#: Seconds between two attempts to reach a rank 0 that does not listen yet. There is no event for it.
_INTERVAL = 0.1
#: Seconds of silence, questions between the kernels left unanswered included, that a machine is taken for dead after.
_DEAD_AFTER = 15
#: Bytes of the longest message.
_LONGEST = 1 << 20


class Peer:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._reading = connection.makefile("rb")
        self._sending = threading.Lock()
        _keep_alive(connection)

    def send(self, message: Mapping[str, Any]) -> None:
        """Say something; where the other side is gone, its reader hears of it."""
        data = json.dumps(message).encode() + b"\n"
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(data)

    def receive(self) -> Message | None:
        """What the other side says next; None at its end."""
        try:
            line = self._reading.readline(_LONGEST)
            message: Message | None = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """End the connection, also under a thread that reads from it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Hub:
    """Rank 0's side: takes the others in, and tells what they say.

    Args:
        listener: A socket that listens.
        token: What a rank says to be let in.
        nodes: How many ranks there are, rank 0 counted.
        on_event: Told from threads: ``("rank-joined", (rank, facts))``, ``("rank-said", (rank, message))``,
            ``("rank-gone", (rank, None))``.
    """

    def __init__(self, listener: socket.socket, *, token: str, nodes: int, on_event: OnEvent) -> None:
        self._listener = listener
        self._token = token
        self._nodes = nodes
        self._on_event = on_event
        self._peers: dict[int, Peer] = {}
        self._absent = set(range(1, nodes))
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="ranks", daemon=True).start()

    @property
    def ranks(self) -> set[int]:
        """The ranks that are connected."""
        with self._lock:
            return set(self._peers)

    @property
    def absent(self) -> set[int]:
        """The ranks that have not joined yet; not those that are gone again."""
        with self._lock:
            return set(self._absent)

    def send(self, rank: int, message: Mapping[str, Any]) -> None:
        """Tell one rank something."""
        with self._lock:
            peer = self._peers.get(rank)
        if peer is not None:
            peer.send(message)

    def send_all(self, message: Mapping[str, Any]) -> None:
        """Tell every rank something."""
        for rank in self.ranks:
            self.send(rank, message)

    def close(self) -> None:
        """Let nobody in any more, and let all go."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        with self._lock:
            peers = list(self._peers.values())
        for peer in peers:
            peer.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(connection,), name="rank", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(_HELLO)
        peer = Peer(connection)
        hello = peer.receive()
        rank = self._admit(hello, peer)
        if hello is None or rank is None:
            peer.close()
            return
        connection.settimeout(None)
        self._on_event("rank-joined", (rank, hello))
        while (message := peer.receive()) is not None:
            self._on_event("rank-said", (rank, message))
        with self._lock:
            del self._peers[rank]
        peer.close()
        self._on_event("rank-gone", (rank, None))

    def _admit(self, hello: Message | None, peer: Peer) -> int | None:
        """The rank of a newcomer; None for one that does not know the token, or whose rank is not free."""
        if hello is None or not hmac.compare_digest(str(hello.get("token")).encode(), self._token.encode()):
            return None
        rank = hello.get("rank")
        with self._lock:
            if not isinstance(rank, int) or not 0 < rank < self._nodes or rank in self._peers:
                return None
            self._peers[rank] = peer
            self._absent.discard(rank)
            return rank


def listen(port: int) -> socket.socket:
    """A socket that listens for the other ranks on every address of this node."""
    return socket.create_server(("0.0.0.0", port), backlog=128)


def join(
    address: str, port: int, hello: Mapping[str, Any], *, timeout: float, on_event: OnEvent, give_up: threading.Event
) -> Peer | None:
    """Connect to rank 0; None where that was given up.

    Args:
        address: Rank 0's.
        port: On which it listens.
        hello: Who this is: token, rank, and what rank 0 should know.
        timeout: Seconds until it must be there.
        on_event: Told from a thread: ``("head-said", message)``, ``("head-gone", None)``.
        give_up: Set when nobody wants it any more.

    Raises:
        OSError: It could not be reached in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection = socket.create_connection((address, port), min(5.0, max(0.1, deadline - time.monotonic())))
            break
        except OSError:
            if time.monotonic() >= deadline:
                raise
            if give_up.wait(_INTERVAL):
                return None
    connection.settimeout(None)
    peer = Peer(connection)
    peer.send(hello)

    def read() -> None:
        while (message := peer.receive()) is not None:
            on_event("head-said", message)
        on_event("head-gone", None)

    threading.Thread(target=read, name="head", daemon=True).start()
    return peer


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Where the system has no such settings (macOS has some) all ranks are on one machine, and no machine can vanish.
    for name, value in (
        ("TCP_KEEPIDLE", _DEAD_AFTER // 3),
        ("TCP_KEEPINTVL", _DEAD_AFTER // 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", _DEAD_AFTER * 1000),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
