"""Measure how fast secrets are masked, compared with the earlier algorithm on the same data, in alternating runs.

``python benchmarks/masking.py`` prints one table. The earlier algorithm was a regular expression with all values, and a
loop over all lengths of what may be the beginning of a value. It is measured on a smaller part of the data where it is
slow.
"""

from __future__ import annotations

import argparse
import base64
import random
import re
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from skyrl_modal.container.masking import MASK, Masker

CHUNK_SIZE = 1 << 20
#: Bytes that the earlier algorithm masks in a reasonable time in the worst cases.
SMALL_SIZE = 4000


class StreamMasker(Protocol):
    """Replaces values in a stream."""

    def feed(self, chunk: bytes) -> bytes:
        """Add a chunk."""

    def flush(self) -> bytes:
        """Return the rest."""


class EarlierMasker:
    """The algorithm of version 0.1."""

    def __init__(self, values: Iterable[str]) -> None:
        self._values = sorted({value.encode() for value in values}, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._values)))
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """Add a chunk."""
        data, masked, position = self._held + chunk, bytearray(), 0
        while True:
            undecided = self._undecided(data, position)
            match = self._pattern.search(data, position)
            if match is None or match.start() >= undecided:
                break
            masked += data[position : match.start()] + MASK
            position = match.end()
        self._held = data[undecided:]
        return bytes(masked + data[position:undecided])

    def flush(self) -> bytes:
        """Return the rest."""
        return self._pattern.sub(MASK, self._held)

    def _undecided(self, data: bytes, position: int) -> int:
        longest = 0
        for value in self._values:
            for size in range(min(len(value) - 1, len(data) - position), longest, -1):
                if data.endswith(value[:size]):
                    longest = size
                    break
        return len(data) - longest


def cases(size: int) -> dict[str, tuple[Sequence[str], bytes, bool]]:
    """Return values and data of each case, and whether the earlier algorithm can mask all of the data."""
    generator = random.Random(1)

    def key(length: int) -> str:
        return base64.b64encode(generator.randbytes(length * 3 // 4)).decode()

    def repeat(data: bytes) -> bytes:
        return data * (size // len(data) + 1)

    lines = [
        f"2026-01-01 12:00:{i % 60:02d} INFO step={i} loss={generator.random():.6f} reward={generator.random():.4f} "
        f"tokens/s={generator.randint(1, 9999)} trainer.worker: weights are synchronized\n".encode()
        for i in range(5000)
    ]
    keys = [key(40) for _ in range(20)]
    private_key = "\n".join(["-----BEGIN KEY-----", *(key(64) for _ in range(50)), "-----END KEY-----"])
    log = repeat(b"".join(lines))
    return {
        "log, 20 values": (keys, log, True),
        "log, 20 values, one in each 10th line": (keys, log.replace(b"0 INFO", keys[3].encode()), False),
        "log, 19 values and a key of 52 lines": ([private_key, *keys[:19]], log, True),
        "log, 3.3 kB and 4 bytes": ([key(3300), "abcd"], log, True),
        "one letter, 3.3 kB and 4 bytes": (["a" * 3299 + "b", "aaab"], repeat(b"a"), False),
        "one letter, both values found": (["a" * 3300, "aaaa"], repeat(b"a"), False),
        "long values that overlap": (["a" * 1600 + "b" + "a" * 1600], repeat(b"a" * 1800 + b"b"), False),
        "4 bytes in every 5": (["abcd"], repeat(b"abcdx"), False),
        "4 bytes in every 5, all byte values": (["abcd"], repeat(b"abcdx" * 200 + bytes(range(256))), False),
        "4 bytes that overlap": (["abca"], repeat(b"abcabcax"), False),
        "13 bytes in every 14, may overlap": (["abcdefghijkla"], repeat(b"abcdefghijklax"), False),
        "rotations of 4 bytes": (["abcd", "bcda", "cdab", "dabc"], repeat(b"abcd"), False),
    }


def measure(masker: StreamMasker, data: bytes) -> float:
    """Return the speed in MB per second of processor time, which other processes change less than the elapsed time."""
    begin = time.process_time()
    for start in range(0, len(data), CHUNK_SIZE):
        masker.feed(data[start : start + CHUNK_SIZE])
    masker.flush()
    return len(data) / 1e6 / max(1e-6, time.process_time() - begin)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=8, help="size of the data of each case")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"| {'case':40} | {'MB/s':>8} | {'earlier':>8} | {'ratio':>8} |")
    print(f"|{'-' * 42}|{'-' * 9}:|{'-' * 9}:|{'-' * 9}:|")
    for name, (values, data, is_fast) in cases(options.megabytes << 20).items():
        speeds, earlier = [], []
        for _ in range(options.rounds):
            speeds.append(measure(Masker(values), data))
            earlier.append(measure(EarlierMasker(values), data if is_fast else data[:SMALL_SIZE]))
        new, old = statistics.median(speeds), statistics.median(earlier)
        print(f"| {name:40} | {new:8.1f} | {old:8.2f} | {new / old:8.1f} |", flush=True)


if __name__ == "__main__":
    main()
