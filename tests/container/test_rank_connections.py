"""Connections between rank 0 and the other ranks, over real sockets."""

from __future__ import annotations

import json
import os
import queue
import socket
import time
from collections.abc import Iterator

import pytest

from skyrl_modal.container.commit_turns import MAX_COMMITTING_RANKS, CommitTurns
from skyrl_modal.container.events import (
    HeadDisconnected,
    HeadEvent,
    HeadMessageReceived,
    RankDisconnected,
    RankEvent,
    RankJoined,
    RankMessageReceived,
)
from skyrl_modal.container.rank_connections import Connection, RankServer, connect_to_rank_zero
from skyrl_modal.event_queue import EventQueue
from skyrl_modal.protocol.messages import CommitRequest, CommitTurn, Hello, LogLine, Shutdown, StartRay

TOKEN = "token-of-the-ranks"
TIMEOUT = 10.0


class Server:
    """Rank 0 of a cluster with three ranks."""

    def __init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = listener.getsockname()
        self.events: EventQueue[RankEvent] = EventQueue()
        self.ranks = RankServer(listener, token=TOKEN, nodes=3, put=self.events.put)

    def next_event(self) -> RankEvent:
        """Return the next event of the ranks."""
        return self.events.get(time.monotonic() + TIMEOUT)

    def connect(self, rank: int, token: str = TOKEN) -> tuple[Connection, EventQueue[HeadEvent]]:
        """Connect as a rank; return the connection and the events that rank 0 causes."""
        events: EventQueue[HeadEvent] = EventQueue()
        connection = connect_to_rank_zero(
            self.address, Hello(token, rank, 2), timeout=TIMEOUT, put=events.put, is_cancelled=lambda: False
        )
        assert connection is not None
        return connection, events


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.ranks.close()


def next_head_event(events: EventQueue[HeadEvent]) -> HeadEvent:
    return events.get(time.monotonic() + TIMEOUT)


def test_messages_in_both_directions(server: Server) -> None:
    """Messages arrive as the dataclasses that were sent, and a closed connection is an event of rank 0."""
    connection, events = server.connect(1)
    assert server.next_event() == RankJoined(1, Hello(TOKEN, 1, 2))
    assert server.ranks.connected_ranks == {1}
    assert server.ranks.never_joined_ranks == {2}

    connection.send(LogLine("text"))
    assert server.next_event() == RankMessageReceived(1, LogLine("text"))

    server.ranks.send_all(StartRay("127.0.0.1:6379", {"MASTER_PORT": "29500"}))
    assert next_head_event(events) == HeadMessageReceived(StartRay("127.0.0.1:6379", {"MASTER_PORT": "29500"}))

    connection.close()
    assert server.next_event() == RankDisconnected(1)
    assert server.ranks.connected_ranks == set()
    assert server.ranks.never_joined_ranks == {2}


def test_closed_server_disconnects_the_ranks(server: Server) -> None:
    """The ranks notice that rank 0 has closed its connections."""
    _, events = server.connect(1)
    server.next_event()

    server.ranks.close()

    assert next_head_event(events) == HeadDisconnected()


@pytest.mark.parametrize(("rank", "token"), [(2, "another token"), (2, ""), (0, TOKEN), (3, TOKEN), (1, TOKEN)])
def test_connection_is_refused(server: Server, rank: int, token: str) -> None:
    """A connection with a wrong token, an impossible rank or a rank that is taken is closed, without an event."""
    server.connect(1)
    server.next_event()

    _, events = server.connect(rank, token)

    assert next_head_event(events) == HeadDisconnected()
    assert server.events.qsize() == 0


@pytest.mark.parametrize("line", [b"no JSON\n", b"[]\n", b'{"type": "Hello"}\n', b'{"type": "LogLine", "text": "x"}\n'])
def test_other_first_message_is_refused(server: Server, line: bytes) -> None:
    """A connection whose first message is not Hello is closed."""
    with socket.create_connection(server.address, TIMEOUT) as connected:
        connected.sendall(line)
        assert connected.recv(1) == b""


def test_unknown_messages_are_skipped(server: Server) -> None:
    """A message type of a later version is ignored."""
    hello = {"type": "Hello", "token": TOKEN, "rank": 1}
    with socket.create_connection(server.address, TIMEOUT) as connected:
        for message in (hello, {"type": "OfALaterVersion"}, {"type": "LogLine", "text": "text"}):
            connected.sendall(json.dumps(message).encode() + b"\n")
        assert isinstance(server.next_event(), RankJoined)
        assert server.next_event() == RankMessageReceived(1, LogLine("text"))


def test_message_to_an_absent_rank_is_dropped(server: Server) -> None:
    """Nothing happens if a rank is not connected."""
    server.ranks.send(2, Shutdown())


def test_exit_before_connection_is_an_event(server: Server) -> None:
    """A rank that exits before it has connected is an event; one that has connected is reported by its connection."""
    pipes = [os.pipe(), os.pipe()]
    server.ranks.watch([read_end for read_end, _ in pipes])
    connection, _ = server.connect(1)
    assert server.next_event() == RankJoined(1, Hello(TOKEN, 1, 2))

    for _, write_end in pipes:
        os.close(write_end)

    assert server.next_event() == RankDisconnected(2)
    assert server.ranks.never_joined_ranks == set()
    connection.close()
    assert server.next_event() == RankDisconnected(1)
    for read_end, _ in pipes:
        os.close(read_end)


def test_connecting_can_be_cancelled() -> None:
    """The attempts end when they are cancelled."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()

    connection = connect_to_rank_zero(
        address, Hello(TOKEN, 1), timeout=TIMEOUT, put=lambda event: None, is_cancelled=lambda: True
    )

    assert connection is None


def test_rank_zero_cannot_be_reached() -> None:
    """OSError is raised after the timeout."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()

    with pytest.raises(ConnectionRefusedError):
        connect_to_rank_zero(address, Hello(TOKEN, 1), timeout=0.05, put=lambda event: None, is_cancelled=lambda: False)


def test_ranks_commit_in_turns() -> None:
    """Of 31 ranks, at most four commit at the same time. Each has its turn when another one has disconnected."""
    events: EventQueue[RankEvent] = EventQueue()
    granted: EventQueue[int] = EventQueue()
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    ranks = RankServer(listener, token=TOKEN, nodes=32, put=events.put)
    connections: dict[int, Connection] = {}

    def connect(rank: int) -> Connection:
        def put(event: HeadEvent) -> None:
            if event == HeadMessageReceived(CommitTurn()):
                granted.put(rank)

        address, hello = listener.getsockname(), Hello(TOKEN, rank)
        connection = connect_to_rank_zero(address, hello, timeout=TIMEOUT, put=put, is_cancelled=lambda: False)
        assert connection is not None
        return connection

    for rank in range(1, 32):
        connections[rank] = connect(rank)
        assert isinstance(events.get(time.monotonic() + TIMEOUT), RankJoined)
    for connection in connections.values():
        connection.send(CommitRequest())
    committing: list[int] = []
    while connections:
        for _ in range(min(MAX_COMMITTING_RANKS, len(connections)) - len(committing)):
            committing.append(granted.get(time.monotonic() + TIMEOUT))
        assert len(set(committing)) <= MAX_COMMITTING_RANKS
        with pytest.raises(queue.Empty):
            granted.get(time.monotonic())
        rank = committing.pop(0)
        connections.pop(rank).close()
        assert events.get(time.monotonic() + TIMEOUT) == RankDisconnected(rank)
    ranks.close()


def test_rank_that_exits_withdraws_its_request() -> None:
    """A rank that exits while it waits for its turn does not keep a turn."""
    sent: list[int] = []
    turns = CommitTurns(lambda rank, _: sent.append(rank))
    for rank in range(1, MAX_COMMITTING_RANKS + 3):
        turns.request(rank)
    assert sent == list(range(1, MAX_COMMITTING_RANKS + 1))

    turns.release(MAX_COMMITTING_RANKS + 1)
    assert len(sent) == MAX_COMMITTING_RANKS

    turns.release(1)
    assert sent[-1] == MAX_COMMITTING_RANKS + 2
