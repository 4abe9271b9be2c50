"""Secrets' values are replaced in the stream of output, wherever a chunk of it happens to be cut."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: What stands in the place of a secret's value.
MASK = b"********"

#: A shorter value is left alone: masking every "1" would ruin the output and hide nothing.
SHORTEST = 4


class Masker:
    """Replaces values in a stream of bytes that arrives in chunks.

    The end of a chunk that could be the beginning of a value is held back until the next chunk decides.

    Example:
        >>> masker = Masker(["s3cret"])
        >>> masker.feed(b"key=s3c"), masker.feed(b"ret!"), masker.flush()
        (b'key=', b'********!', b'')
    """

    def __init__(self, values: Iterable[str]) -> None:
        secrets: set[bytes] = set()
        for value in values:
            for form in (value, value.strip()):
                encoded = form.encode("utf-8", "surrogateescape")
                if len(encoded) >= SHORTEST:
                    secrets.add(encoded)
        # Longest first: where one value begins with another, the whole of it goes.
        ordered = sorted(secrets, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(re.escape(value) for value in ordered)) if ordered else None
        self._values = ordered
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """Take a chunk and return what can be shown of all that came so far."""
        if self._pattern is None:
            return chunk
        data, shown, position = self._held + chunk, bytearray(), 0
        while True:
            undecided = self._undecided(data, position)
            match = self._pattern.search(data, position)
            if match is None or match.start() >= undecided:
                break
            shown += data[position : match.start()] + MASK
            position = match.end()
        shown += data[position:undecided]
        self._held = data[undecided:]
        return bytes(shown)

    def flush(self) -> bytes:
        """Return what was held back; the stream has ended."""
        held, self._held = self._held, b""
        return self._pattern.sub(MASK, held) if self._pattern is not None else held

    def _undecided(self, data: bytes, position: int) -> int:
        """Where the data's end may be the beginning of a value; the end itself where it cannot."""
        longest = 0
        for value in self._values:
            for size in range(min(len(value) - 1, len(data) - position), longest, -1):
                if data.endswith(value[:size]):
                    longest = size
                    break
        return len(data) - longest
