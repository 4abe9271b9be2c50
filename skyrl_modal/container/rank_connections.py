"""JSON lines over TCP between rank 0 and the other ranks. A closed connection means that the rank has exited.

The kernel closes the sockets of a process that exits, so the other side is notified immediately. If a whole machine
disappears, nothing closes them: TCP keepalive detects it after ``_SILENCE_TIMEOUT`` seconds.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from skyrl_modal.container.commit_turns import CommitTurns
from skyrl_modal.container.events import (
    HeadDisconnected,
    HeadEvent,
    HeadMessageReceived,
    RankDisconnected,
    RankEvent,
    RankJoined,
    RankMessageReceived,
)
from skyrl_modal.dataclass import replace
from skyrl_modal.protocol.codec import ProtocolError, decode_tagged, encode_tagged
from skyrl_modal.protocol.messages import CommitRequest, HeadMessage, Hello, RankMessage

#: Seconds in which a new connection has to send Hello.
_HELLO_TIMEOUT = 10.0
#: Seconds between two attempts to reach a rank 0 that does not listen yet. There is no event for it.
_CONNECT_INTERVAL = 0.1
#: Seconds of one attempt to connect.
_CONNECT_TIMEOUT = 5.0
#: Seconds without an answer to TCP keepalive after which a machine counts as lost.
_SILENCE_TIMEOUT = 15
#: Length limit of a message.
_MAX_MESSAGE_BYTES = 1 << 20


class Connection:
    """One end of a connection.

    Args:
        connected: The connected socket. It is closed by ``close``.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._reader = connected.makefile("rb")
        self._sending = threading.Lock()
        _enable_keepalive(connected)

    def send(self, message: HeadMessage | RankMessage) -> None:
        """Send a message. If the connection is lost, the message is dropped, and ``receive`` returns None."""
        data = json.dumps(encode_tagged(message)).encode() + b"\n"
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(data)

    def receive(self, union: Any) -> Any:
        """Return the next message of a union of message types; None if the connection ended or is not understood.

        Types that this version does not know are skipped.
        """
        while True:
            try:
                line = self._reader.readline(_MAX_MESSAGE_BYTES)
                if not line.endswith(b"\n"):
                    return None
                message = decode_tagged(union, json.loads(line))
            except (OSError, ValueError, RecursionError, ProtocolError):
                # RecursionError: the message is nested too deeply.
                return None
            if message is not None:
                return message

    def close(self) -> None:
        """Close the connection. A thread that waits in ``receive`` gets None."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class RankServer:
    """Accepts the connections of the other ranks at rank 0.

    Args:
        listener: A listening socket. It is closed by ``close``.
        token: The token that a rank has to send.
        nodes: Number of ranks, including rank 0.
        put: Receives the events, from threads.
    """

    def __init__(self, listener: socket.socket, *, token: str, nodes: int, put: Callable[[RankEvent], None]) -> None:
        self._listener = listener
        self._token = token
        self._nodes = nodes
        self._put = put
        self._connections: dict[int, Connection] = {}
        self._hellos: dict[int, Hello] = {}
        self._never_joined = set(range(1, nodes))
        self._lock = threading.Lock()
        self._turns = CommitTurns(self.send)
        threading.Thread(target=self._accept, name="ranks", daemon=True).start()

    @property
    def connected_ranks(self) -> set[int]:
        """The ranks that are connected now."""
        with self._lock:
            return set(self._connections)

    @property
    def hellos(self) -> list[Hello]:
        """The first messages of the ranks that have connected."""
        with self._lock:
            return list(self._hellos.values())

    @property
    def never_joined_ranks(self) -> set[int]:
        """The ranks that have not connected yet. Ranks that have disconnected are not included."""
        with self._lock:
            return set(self._never_joined)

    def send(self, rank: int, message: HeadMessage) -> None:
        """Send a message to one rank. Nothing happens if it is not connected."""
        with self._lock:
            connection = self._connections.get(rank)
        if connection is not None:
            connection.send(message)

    def send_all(self, message: HeadMessage) -> None:
        """Send a message to every connected rank."""
        for rank in self.connected_ranks:
            self.send(rank, message)

    def watch(self, descriptors: Sequence[int]) -> None:
        """Put RankDisconnected also for a rank that exits before it has connected.

        Args:
            descriptors: One for each other rank, in their order. It is closed at its other end when the rank exits.
        """
        if descriptors:
            threading.Thread(target=self._watch, args=(list(descriptors),), name="rank-exits", daemon=True).start()

    def _watch(self, descriptors: Sequence[int]) -> None:
        ranks = {descriptor: rank for rank, descriptor in enumerate(descriptors, start=1)}
        poller = select.poll()
        for descriptor in ranks:
            poller.register(descriptor, select.POLLHUP)
        while ranks:
            for descriptor, _ in poller.poll():
                poller.unregister(descriptor)
                rank = ranks.pop(descriptor)
                with self._lock:
                    is_first_sign = rank in self._never_joined
                    self._never_joined.discard(rank)
                if is_first_sign:
                    self._put(RankDisconnected(rank))

    def close(self) -> None:
        """Stop listening and close all connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        with self._lock:
            connections = list(self._connections.values())
        for connection in connections:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(connected,), name="rank", daemon=True).start()

    def _serve(self, connected: socket.socket) -> None:
        connected.settimeout(_HELLO_TIMEOUT)
        connection = Connection(connected)
        hello = connection.receive(RankMessage)
        if not isinstance(hello, Hello) or not self._admit(hello, connection):
            connection.close()
            return
        connected.settimeout(None)
        rank = hello.rank
        self._put(RankJoined(rank, hello))
        while (message := connection.receive(RankMessage)) is not None:
            if isinstance(message, CommitRequest):
                self._turns.request(rank)
            else:
                self._put(RankMessageReceived(rank, message))
        with self._lock:
            del self._connections[rank]
        connection.close()
        self._turns.release(rank)
        self._put(RankDisconnected(rank))

    def _admit(self, hello: Hello, connection: Connection) -> bool:
        """Register a connection; return False if its token is wrong or its rank is taken."""
        import hmac  # loads OpenSSL, which a run on one node does not need

        # JSON can contain half of a surrogate pair, which has no UTF-8.
        if not hmac.compare_digest(hello.token.encode("utf-8", "replace"), self._token.encode()):
            return False
        with self._lock:
            if not 0 < hello.rank < self._nodes or hello.rank in self._connections:
                return False
            self._connections[hello.rank] = connection
            self._hellos[hello.rank] = hello
            self._never_joined.discard(hello.rank)
        return True


def listen(port: int) -> socket.socket:
    """Return a socket that listens for the other ranks, on every address of this node."""
    return socket.create_server(("0.0.0.0", port), backlog=128)


def connect_to_rank_zero(
    address: tuple[str, int],
    hello: Hello,
    *,
    timeout: float,
    put: Callable[[HeadEvent], None],
    is_cancelled: Callable[[], bool],
) -> Connection | None:
    """Connect to rank 0, which may not listen yet.

    Args:
        address: Host and port of rank 0.
        hello: The first message.
        timeout: Seconds.
        put: Receives the events of the connection, from a thread.
        is_cancelled: Returns whether to end the attempts. A signal handler may change it: the lock of an event could be
            held by the thread that the handler interrupts.

    Returns:
        The connection; None if the attempts were cancelled.

    Raises:
        OSError: Rank 0 could not be reached in time.
    """
    begin = time.monotonic()
    deadline = begin + timeout
    while True:
        try:
            remaining = max(0.1, deadline - time.monotonic())
            connected = socket.create_connection(address, min(_CONNECT_TIMEOUT, remaining))
            break
        except OSError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_CONNECT_INTERVAL)
            if is_cancelled():
                return None
    connected.settimeout(None)
    connection = Connection(connected)
    if hello.age is not None:
        hello = replace(hello, age=hello.age + time.monotonic() - begin)
    connection.send(hello)

    def read() -> None:
        while (message := connection.receive(HeadMessage)) is not None:
            put(HeadMessageReceived(message))
        put(HeadDisconnected())

    threading.Thread(target=read, name="head", daemon=True).start()
    return connection


def _enable_keepalive(connected: socket.socket) -> None:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Systems without these options (macOS has some of them) run all ranks on one machine, which cannot disappear.
    for name, value in (
        ("TCP_KEEPIDLE", _SILENCE_TIMEOUT // 3),
        ("TCP_KEEPINTVL", _SILENCE_TIMEOUT // 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", _SILENCE_TIMEOUT * 1000),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)
