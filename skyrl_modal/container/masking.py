"""Replace the values of secrets in a stream of bytes, however the stream is divided into chunks."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable

#: Replacement for a secret value.
MASK = b"********"

#: A shorter value is not masked: masking every "1" would make the output unreadable and hide nothing.
MIN_SECRET_BYTES = 4

#: A shorter line of a value with several lines is masked only as a part of the whole value.
MIN_LINE_CHARACTERS = 8

#: For each byte the table for ``bytes.translate`` that maps it to 0xFF, and all other bytes to 0.
_SELECT = [bytes(byte) + b"\xff" + bytes(255 - byte) for byte in range(256)]

_MASKED_RUN = re.compile(rb"\xff+")
#: Up to this length of a value, overlapping occurrences are found by operations on all bytes of a chunk, whose time is
#: proportional to the length, and above it by a loop over the occurrences.
_SHORT_LENGTH = 12
#: Number of pairs of overlapping occurrences that are searched for.
_MAX_PAIRS = 8
#: With fewer masked runs than one in so many bytes, a loop over the runs is faster than operations on all bytes.
_SPARSE_BYTES = 50


def secret_forms(value: str) -> set[bytes]:
    r"""Return the byte strings under which a value can appear in output.

    These are the value, with and without surrounding white space, with line ends of either kind, and for a value with
    several lines each line without its indentation and line end; all of them also as JSON and ``repr`` escape them.

    Example:
        >>> sorted(secret_forms("first line\n  second line"))[:3]
        [b'first line', b'first line\n  second line', b'first line\r\n  second line']
    """
    lines = value.splitlines()
    texts = {value, value.strip(), "\n".join(lines), "\r\n".join(lines)}
    if len(lines) > 1:
        texts |= {line.strip() for line in lines if len(line.strip()) >= MIN_LINE_CHARACTERS}
    forms = set().union(*map(_escaped_forms, texts))
    return {form for form in forms if len(form) >= MIN_SECRET_BYTES}


def _escaped_forms(text: str) -> set[bytes]:
    """Return a text as it is, and as JSON and ``repr`` escape it."""
    encoded = text.encode("utf-8", "surrogateescape")
    # As a part of a longer string with both kinds of quotes, ``repr`` escapes the single ones.
    escaped = {repr(text)[1:-1], repr(f"{text}'\"")[1:-4], repr(encoded)[2:-1], json.dumps(text)[1:-1]}
    escaped |= {text, json.dumps(text, ensure_ascii=False)[1:-1]}
    return {form.encode("utf-8", "surrogateescape") for form in escaped}


class Masker:
    """Replaces values in a stream of bytes that arrives in chunks.

    Every byte that is part of a value is masked, also where values overlap, and a run of masked bytes becomes one
    ``MASK``. The end of a chunk is held back while it may be the beginning of a value.

    The time is linear in the length of the stream for any set of values, and in the number of values. Values are
    searched for with ``bytes.find``, which is linear (CPython has the two-way algorithm since 3.10), and chunks are
    changed as a whole by operations on integers.

    Args:
        values: The secrets. ``secret_forms`` has the forms in which each is found.

    Example:
        >>> masker = Masker(["s3cret"])
        >>> masker.feed(b"key=s3c"), masker.feed(b"ret!"), masker.flush()
        (b'key=', b'********!', b'')
    """

    def __init__(self, values: Iterable[str]) -> None:
        forms: set[bytes] = set().union(*map(secret_forms, values))
        self._forms = [_Form(form) for form in sorted(forms)]
        self._reset()

    def _reset(self) -> None:
        self._held = b""
        # Number of bytes at the beginning of those held back that are part of a value which began before them.
        self._covered = 0
        self._is_last_masked = False
        for form in self._forms:
            form.reset()

    def feed(self, chunk: bytes) -> bytes:
        """Add a chunk and return the masked bytes that are complete."""
        if not self._forms:
            return chunk
        data = self._held + chunk
        undecided = max(form.feed(chunk) for form in self._forms)
        return self._release(data, len(data) - undecided)

    def flush(self) -> bytes:
        """Return the bytes that were held back, at the end of the stream. Another stream may follow."""
        rest = self._release(self._held, len(self._held))
        self._reset()
        return rest

    def _release(self, data: bytes, end: int) -> bytes:
        """Return the masked bytes up to a position, and hold the others back."""
        self._held = data[end:]
        if end == 0:
            return b""
        mask = self._find_values(data)
        if mask is None:
            self._is_last_masked = False
            return data[:end]
        is_continued = self._is_last_masked and mask[0] == 0xFF
        self._is_last_masked = mask[end - 1] == 0xFF
        rest = _MASKED_RUN.match(mask, end) if self._is_last_masked else None
        self._covered = 0 if rest is None else rest.end() - end
        masked = _replace_runs(data[:end], mask[:end])
        return masked.removeprefix(MASK) if is_continued else masked

    def _find_values(self, data: bytes) -> bytes | None:
        """Return one byte for each byte of the data: 0xFF where a value is, else 0. None if there is no value."""
        found = [form for form in self._forms if form.value in data]
        if not found and not self._covered:
            return None
        number, mask = int.from_bytes(data, "little"), 0
        for form in found:
            mask |= form.find_in(data, number)
        return b"\xff" * self._covered + mask.to_bytes(len(data), "little")[self._covered :]


class SecretMask:
    """The values of one run that must not be in anything that is kept or shown. It may be used from any thread.

    Args:
        values: The secrets.

    Example:
        >>> SecretMask(["s3cret"]).mask_text("the key s3cret is refused")
        'the key ******** is refused'
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._values = tuple(values)
        self._masker = Masker(self._values)
        self._lock = threading.Lock()

    def new_masker(self) -> Masker:
        """Return a masker for one stream."""
        return Masker(self._values)

    def mask_text(self, text: str) -> str:
        """Return a text without the values."""
        if not self._values:
            return text
        encoded = text.encode("utf-8", "surrogateescape")
        with self._lock:
            masked = self._masker.feed(encoded) + self._masker.flush()
        return masked.decode("utf-8", "surrogateescape")


class _Form:
    """One byte string to be masked.

    Attributes:
        value: The byte string.
    """

    def __init__(self, value: bytes) -> None:
        self.value = value
        # It differs from the value in every bit of every byte.
        self._complement = bytes(byte ^ 0xFF for byte in value)
        self._borders = _find_borders(value)
        # After an occurrence, one that begins ``period`` bytes later is complete after the last ``period`` bytes of the
        # value.
        self._pairs = _overlapping_pairs(value, self._borders)
        self._periods = re.compile(b"(?:" + re.escape(value[self._borders[-1] :]) + b")*+")
        self.reset()

    def reset(self) -> None:
        """Begin another stream."""
        # Length of the longest beginning of the value with which the stream ends.
        self._length = 0

    def find_in(self, data: bytes, number: int) -> int:
        """Return the bytes of the data that are part of the value, as a little-endian number: 0xFF for each, else 0.

        Args:
            data: The data.
            number: The data as a little-endian number.
        """
        if not any(pair in data for pair in self._pairs):  # no occurrences overlap
            return number ^ int.from_bytes(data.replace(self.value, self._complement), "little")
        return self._find_short(data) if len(self.value) <= _SHORT_LENGTH else self._find_long(data)

    def _find_short(self, data: bytes) -> int:
        equal = {byte: int.from_bytes(data.translate(_SELECT[byte]), "little") for byte in set(self.value)}
        starts = equal[self.value[0]]
        for offset, byte in enumerate(self.value):
            starts &= equal[byte] >> (8 * offset)
        mask, width = starts, 1
        while width < len(self.value):
            step = min(width, len(self.value) - width)
            mask |= mask << (8 * step)
            width += step
        return mask

    def _find_long(self, data: bytes) -> int:
        mask, size = bytearray(len(data)), len(self.value)
        start = data.find(self.value)
        while start >= 0:
            repeated = self._periods.match(data, start + size)
            end = start + size if repeated is None else repeated.end()
            mask[start:end] = b"\xff" * (end - start)
            # An occurrence that overlaps the last one with another distance than the period begins at least half a
            # value later, so the time is linear.
            start = data.find(self.value, end - size + 1)
        return int.from_bytes(mask, "little")

    def feed(self, chunk: bytes) -> int:
        """Add a chunk of the stream.

        Returns:
            The length of the longest beginning of the value with which the stream ends; less than that of the value.
        """
        value, borders, length = self.value, self._borders, self._length
        if len(chunk) >= len(value):
            # Earlier bytes have no effect any more.
            chunk, length = chunk[len(chunk) - len(value) + 1 :], 0
        if length == 0:
            # Skip what cannot be the beginning. This changes no result, and is much faster than the loop.
            start = chunk.find(value[:MIN_SECRET_BYTES])
            chunk = chunk[start if start >= 0 else max(0, len(chunk) - MIN_SECRET_BYTES + 1) :]
        for byte in chunk:
            while length and value[length] != byte:
                length = borders[length - 1]
            length += value[length] == byte
            if length == len(value):
                length = borders[-1]
        self._length = length
        return length


def _find_borders(value: bytes) -> list[int]:
    """Return for each beginning of a value the length of the longest shorter beginning with which it ends.

    This is the table of the algorithm of Knuth, Morris and Pratt.
    """
    borders, length = [0], 0
    for byte in value[1:]:
        while length and value[length] != byte:
            length = borders[length - 1]
        length += value[length] == byte
        borders.append(length)
    return borders


def _overlapping_pairs(value: bytes, borders: list[int]) -> list[bytes]:
    """Return byte strings of which the data contains at least one if occurrences of the value overlap."""
    border = borders[-1]
    period = len(value) - border
    pairs = [value + value[border:]] if border else []
    while border:
        border = borders[border - 1]
        # Other occurrences that are a multiple of the period away have the first pair between them.
        if 0 < border < period:
            pairs.append(value + value[border:])
    # A value with many pairs is rare, and the search for its pairs is not needed, but faster.
    return pairs if len(pairs) <= _MAX_PAIRS else [value]


def _replace_runs(data: bytes, mask: bytes) -> bytes:
    """Replace each run of masked bytes by MASK."""
    number = int.from_bytes(mask, "little")
    first = number & ~(number << 8)
    if first.bit_count() * _SPARSE_BYTES < len(data) * 8:
        parts, end = [], 0
        while (start := mask.find(0xFF, end)) >= 0:
            parts += [data[end:start], MASK]
            end = mask.find(0, start)
            if end < 0:
                return b"".join(parts)
        return b"".join([*parts, data[end:]])
    # A loop over the runs would take most of the time. Two bytes for each byte leave room for two marks: U+01XX is the
    # first byte of a run, and U+02XX another one.
    marked = bytearray(2 * len(data))
    marked[::2] = (int.from_bytes(data, "little") & ~number).to_bytes(len(data), "little")
    ones = int.from_bytes(b"\x01" * len(data), "little")
    marked[1::2] = ((first & ones) | ((number ^ first) & (ones << 1))).to_bytes(len(data), "little")
    text = marked.decode("utf-16-le").replace("\u0200", "").replace("\u0100", MASK.decode())
    return text.encode("latin-1")
