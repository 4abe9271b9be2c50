"""The moments that the trainer of the quickstart announces, at which a test can kill a process."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

#: Variable of the trainer with the path of the socket.
VARIABLE = "QUICKSTART_MOMENTS"

#: Called with a moment and the process id of the trainer, which continues if the result is True, and waits otherwise.
OnMoment = Callable[[str, int], bool]


class MomentServer:
    """Receives the moments of all trainers that are started with the path of its socket.

    Args:
        path: The path of the socket, of at most 107 bytes.
        on_moment: Called for each moment, by a thread of its own for each trainer.

    Attributes:
        environment: The variable for trainers.
    """

    def __init__(self, path: Path, on_moment: OnMoment) -> None:
        self.environment = {VARIABLE: str(path)}
        self._on_moment = on_moment
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        path.chmod(0o777)  # a container may have another user
        self._listener.listen()
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="moments")]

    def __enter__(self) -> MomentServer:
        """Receive moments until the context ends."""
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close all connections. Trainers that wait for an answer continue."""
        for connection in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for connection in (self._listener, *self._connections):
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), name="moments of a trainer")
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        size = struct.calcsize("3i")
        pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
        # A trainer that was killed closes the connection.
        with contextlib.suppress(OSError), connection.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                if self._on_moment(line.rstrip("\n"), pid):
                    connection.sendall(b".")
