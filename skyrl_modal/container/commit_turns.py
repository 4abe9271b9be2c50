"""Turns of the ranks of a cluster to commit their volumes: only some ranks commit at the same time.

At most about five commits of a volume of version 1 at the same time are advised (docs/modal-assumptions.md).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from skyrl_modal.protocol.messages import CommitTurn

#: Ranks other than 0 that commit at the same time. Rank 0 commits the run's state meanwhile.
MAX_COMMITTING_RANKS = 4


class CommitTurns:
    """Grants turns to the ranks, in the order of their requests. A rank returns its turn by disconnecting.

    Args:
        send: Sends a message to a rank.
    """

    def __init__(self, send: Callable[[int, CommitTurn], None]) -> None:
        self._send = send
        self._waiting: deque[int] = deque()
        self._committing: set[int] = set()
        self._lock = threading.Lock()

    def request(self, rank: int) -> None:
        """Grant a rank its turn, now or when another rank has returned one."""
        with self._lock:
            self._waiting.append(rank)
        self._grant()

    def release(self, rank: int) -> None:
        """Return the turn of a rank that has disconnected, or withdraw its request."""
        with self._lock:
            self._committing.discard(rank)
            if rank in self._waiting:
                self._waiting.remove(rank)
        self._grant()

    def _grant(self) -> None:
        granted = []
        with self._lock:
            while self._waiting and len(self._committing) < MAX_COMMITTING_RANKS:
                rank = self._waiting.popleft()
                self._committing.add(rank)
                granted.append(rank)
        for rank in granted:  # not under the lock, since sending may block
            self._send(rank, CommitTurn())
