"""Masking of secrets, compared with a regular expression.

The regular expression has all values, and a loop over all lengths finds what may be the beginning of a value. It is
measured on a smaller part of the data where it is slow.
"""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol

from benchmarks.measure import SUBJECT, Measure, Row, Sample, call_sample
from benchmarks.session import Session
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
    """Replaces values by a regular expression, as version 0.1 did."""

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


def rows(session: Session) -> Iterator[Row]:
    """Yield the rows on masking. The earlier algorithm masks a smaller part of the data where it is slow."""
    for number, (title, (values, data, is_fast)) in enumerate(cases(session.sizes.masked).items()):
        size = f"{len(data) / 1e6:.0f} MB" if len(data) >= 1e6 else f"{len(data):,} bytes"
        name = "regular expression"
        alternatives: dict[str, Measure] = {SUBJECT: partial(_mask, Masker, values, data)}
        if is_fast:
            alternatives[name] = partial(_mask, EarlierMasker, values, data)
        else:
            name += f", from {SMALL_SIZE:,} bytes"
            alternatives[name] = partial(_mask_part, values, data)
        yield Row(f"masking.{number}", f"masking of {size}: {title}", alternatives, name, share=0.5)


def _mask(kind: Callable[[Iterable[str]], StreamMasker], values: Sequence[str], data: bytes) -> Sample:
    """Mask data in chunks. Where the algorithms differ in what they mask, both are correct: no outcome is compared."""
    masker = kind(values)

    def mask() -> None:
        for start in range(0, len(data), CHUNK_SIZE):
            masker.feed(data[start : start + CHUNK_SIZE])
        masker.flush()

    return call_sample(mask)


def _mask_part(values: Sequence[str], data: bytes) -> Sample:
    """Measure the regular expression with the beginning of the data, and return the time that all of it would take."""
    part = data[:SMALL_SIZE]
    sample, factor = _mask(EarlierMasker, values, part), len(data) / len(part)
    return Sample(sample.wall * factor, sample.cpu * factor)
