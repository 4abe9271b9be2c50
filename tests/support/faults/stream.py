"""The command of every run of the campaign: a numbered output that is known in advance, byte for byte.

It runs as a script on the standard library alone (``python3 stream.py SEED LINES ...``), and is imported by the checks.
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

#: Last line and exit code of a command that saves its state when it is stopped.
SAVED_LINE, SAVED_CODE = b"saved\n", 3
#: Responses of the command to INT and TERM: save and exit, exit by the signal, ignore the signal.
SIGNAL_RESPONSES = ("save", "exit", "ignore")


def _line(rng: random.Random, number: int, longest: int) -> bytes:
    kind = rng.randrange(10)
    if kind < 4:
        body = b"step loss=%.4f" % rng.random()
    elif kind < 6:
        body = "Schritt fünf, größer: é € 😀 語".encode()
    elif kind < 7:
        body = bytes(rng.choices(range(0x80, 0x100), k=rng.randrange(1, 20)))  # invalid UTF-8
    elif kind < 9:
        body = b"".join(b"\r%06d |%-10s| %d%%" % (number, b"#" * done, 10 * done) for done in range(11))
    else:
        body = bytes(rng.choices(b"abcdefghij ", k=rng.randrange(1, longest)))
    return b"%06d " % number + body + b"\n"


def pieces(seed: int, lines: int, longest: int = 4000) -> Iterator[tuple[bytes, float]]:
    """Return the data of each write, cut anywhere in a line, with the pause in seconds that follows it."""
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


def _start_grandchild() -> None:
    """Start an orphan in its own session that holds the output open and ignores signals."""
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
    """Listen on a port and write its number to a file, so that the campaign can check that it was closed."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    with open(path, "w", encoding="ascii") as file:
        file.write(str(listener.getsockname()[1]))
    return listener


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seed", type=int)
    parser.add_argument("lines", type=int)
    parser.add_argument("--longest-line", type=int, default=4000)
    parser.add_argument("--on-signal", choices=SIGNAL_RESPONSES, default="exit")
    parser.add_argument("--exit-code", type=int, default=0)
    parser.add_argument("--stay", action="store_true", help="do not exit after the last line")
    parser.add_argument("--grandchildren", type=int, default=0)
    parser.add_argument("--port-file", default="")
    options = parser.parse_args()
    wakeup_read, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        if options.on_signal == "save":
            signal.signal(number, lambda number, _: received.append(number))
        else:
            signal.signal(number, signal.SIG_DFL if options.on_signal == "exit" else signal.SIG_IGN)
    signal.set_wakeup_fd(wakeup_write)
    for _ in range(options.grandchildren):
        _start_grandchild()
    listener = _listen(options.port_file) if options.port_file else None
    for piece, pause in pieces(options.seed, options.lines, options.longest_line):
        _write(piece)
        if pause:
            select.select([wakeup_read], [], [], pause)
        if received:
            break
    while options.stay and not received:
        select.select([wakeup_read], [], [])
    if received:
        _write(SAVED_LINE)
        return SAVED_CODE
    if listener is not None:
        listener.close()
    return int(options.exit_code)


if __name__ == "__main__":
    sys.exit(main())
