"""How fast this process sends, as the kernel counts it: Modal's client does not report the bytes of its uploads."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections import deque

from skyrl_modal.dataclass import dataclass

#: ``tcpi_bytes_acked`` of ``struct tcp_info`` (linux/tcp.h, since Linux 4.1): its offset, and bytes to request.
_BYTES_ACKED = 120
_TCP_INFO_SIZE = _BYTES_ACKED + 8
#: Seconds over which the rate is measured.
_RATE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent.

    Attributes:
        bytes: Number of bytes.
        rate: Bytes per second in the last seconds.
    """

    bytes: int
    rate: float


class SentBytes:
    """Counts bytes that have reached servers since the first reading, over all TCP connections of this process."""

    def __init__(self) -> None:
        self._acked: dict[str, int] = {}
        self._begin: int | None = None
        self._samples: deque[tuple[float, int]] = deque()

    def read(self) -> Sent | None:
        """Return what was sent until now; None if the system does not count it."""
        found = _acked_bytes()
        if found is None:
            return None
        self._acked.update(found)  # connections that were closed since then still count
        total, now = sum(self._acked.values()), time.monotonic()
        if self._begin is None:
            self._begin = total
        sent = total - self._begin
        self._samples.append((now, sent))
        while len(self._samples) > 2 and now - self._samples[1][0] >= _RATE_SECONDS:
            self._samples.popleft()
        then, before = self._samples[0]
        return Sent(sent, (sent - before) / max(now - then, 0.001))


def _acked_bytes() -> dict[str, int] | None:
    """Return for each TCP connection of this process how many bytes were acknowledged; None if that is not known."""
    if not hasattr(socket, "TCP_INFO") or socket.getdefaulttimeout() is not None:
        # With a default timeout, Python would change the mode of the sockets that are opened here.
        return None
    found = {}
    try:
        descriptors = os.listdir("/proc/self/fd")
    except OSError:
        return None
    for name in descriptors:
        with contextlib.suppress(OSError):  # it was closed meanwhile, or is no TCP socket
            target = os.readlink(f"/proc/self/fd/{name}")
            if not target.startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.type != socket.SOCK_STREAM or connection.family == socket.AF_UNIX:
                    continue
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
            if len(info) < _TCP_INFO_SIZE:
                return None
            found[target] = struct.unpack_from("=Q", info, _BYTES_ACKED)[0]
    return found
