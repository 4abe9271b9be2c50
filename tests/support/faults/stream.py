"""The command of every run of the campaign: a numbered output that is known beforehand, byte for byte.

It runs by itself (``python3 stream.py SEED LINES ...``), on the standard library alone, and is imported by who checks.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator

#: What a command that saves prints last, and ends with.
SAVED, SAVED_CODE = b"saved\n", 3
#: How the command takes INT and TERM.
MANNERS = ("saves", "dies", "ignores")


def _line(rng: random.Random, number: int, longest: int) -> bytes:
    kind = rng.randrange(10)
    if kind < 4:
        body = b"step loss=%.4f" % rng.random()
    elif kind < 6:
        body = "Schritt fünf, größer: é € 😀 語".encode()
    elif kind < 7:
        body = bytes(rng.choices(range(0x80, 0x100), k=rng.randrange(1, 20)))  # no UTF-8
    elif kind < 9:
        body = b"".join(b"\r%06d |%-10s| %d%%" % (number, b"#" * done, 10 * done) for done in range(11))
    else:
        body = bytes(rng.choices(b"abcdefghij ", k=rng.randrange(1, longest)))
    return b"%06d " % number + body + b"\n"


def pieces(seed: int, lines: int, longest: int = 4000) -> Iterator[tuple[bytes, float]]:
    """What is written at once, cut anywhere, and the seconds of silence after it."""
    rng = random.Random(seed)
    number = 0
    while number < lines:
        count = min(rng.choice([1, 1, 1, 2, 5, 25]), lines - number)
        burst = b"".join(_line(rng, number + offset, longest) for offset in range(count))
        number += count
        pause = rng.choice([0.0, 0.0, 0.01, 0.03, 0.1])
        if rng.random() < 0.3:
            cut = rng.randrange(len(burst))
            yield burst[:cut], 0.02
            burst = burst[cut:]
        yield burst, pause


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def _grandchild() -> None:
    """A process in a session of its own, below nobody, that holds the output open and ignores what can be ignored."""
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(600)


def _listen(path: str) -> socket.socket:
    """Listen on a port that is written to a file, for whoever looks whether it is closed again."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    with open(path, "w", encoding="ascii") as file:
        file.write(str(listener.getsockname()[1]))
    return listener


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("seed", type=int)
    parser.add_argument("lines", type=int)
    parser.add_argument("--longest", type=int, default=4000)
    parser.add_argument("--manner", choices=MANNERS, default="dies")
    parser.add_argument("--code", type=int, default=0)
    parser.add_argument("--stay", action="store_true", help="do not end after the last line")
    parser.add_argument("--grandchildren", type=int, default=0)
    parser.add_argument("--port-file", default="")
    options = parser.parse_args()
    waking, wake = os.pipe()
    os.set_blocking(wake, False)
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        if options.manner == "saves":
            signal.signal(number, lambda number, _: asked.append(number))
        else:
            signal.signal(number, signal.SIG_DFL if options.manner == "dies" else signal.SIG_IGN)
    signal.set_wakeup_fd(wake)
    for _ in range(options.grandchildren):
        _grandchild()
    listener = _listen(options.port_file) if options.port_file else None
    for piece, pause in pieces(options.seed, options.lines, options.longest):
        _write(piece)
        if pause:
            select.select([waking], [], [], pause)
        if asked:
            break
    while options.stay and not asked:
        select.select([waking], [], [])
    if asked:
        _write(SAVED)
        return SAVED_CODE
    if listener is not None:
        listener.close()
    return int(options.code)


if __name__ == "__main__":
    sys.exit(main())
