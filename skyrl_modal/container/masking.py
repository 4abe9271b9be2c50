"""Replace the values of secrets in a stream of bytes, however the stream is divided into chunks."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Replacement for a secret.
MASK = b"********"

#: Shorter values are not masked: masking every "1" would make the output unreadable and hide nothing.
MIN_SECRET_BYTES = 4


class Masker:
    """Replaces values in a stream of bytes that arrives in chunks.

    The end of a chunk is held back while it may be the beginning of a value.

    Args:
        values: The secrets. Each is also masked without the white space at its ends.

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
                if len(encoded) >= MIN_SECRET_BYTES:
                    secrets.add(encoded)
        # Longest first, so that a value is masked completely if it begins with another one.
        ordered = sorted(secrets, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(re.escape(value) for value in ordered)) if ordered else None
        self._values = ordered
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """Add a chunk and return the masked bytes that are complete."""
        if self._pattern is None:
            return chunk
        data, masked, position = self._held + chunk, bytearray(), 0
        while True:
            undecided = self._undecided(data, position)
            match = self._pattern.search(data, position)
            if match is None or match.start() >= undecided:
                break
            masked += data[position : match.start()] + MASK
            position = match.end()
        masked += data[position:undecided]
        self._held = data[undecided:]
        return bytes(masked)

    def flush(self) -> bytes:
        """Return the bytes that were held back, at the end of the stream."""
        held, self._held = self._held, b""
        return self._pattern.sub(MASK, held) if self._pattern is not None else held

    def _undecided(self, data: bytes, position: int) -> int:
        """Return the offset from which the data may be the beginning of a value; its length if there is none."""
        longest = 0
        for value in self._values:
            for size in range(min(len(value) - 1, len(data) - position), longest, -1):
                if data.endswith(value[:size]):
                    longest = size
                    break
        return len(data) - longest
