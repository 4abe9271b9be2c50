"""Parser for one configuration file of git, without includes."""

from __future__ import annotations

import re
from collections.abc import Iterator

_SECTION = re.compile(rb'\[\s*([A-Za-z0-9.-]+)(?:\s+"((?:[^"\\\n]|\\.)*)")?\s*\]')
_KEY = re.compile(rb"([A-Za-z][A-Za-z0-9-]*)[ \t]*(=?)[ \t]*")
# The bytes of a value that have no meaning of their own.
_PLAIN = re.compile(rb"[^\s\"\\#;]+")
_ESCAPES = {b"n": b"\n", b"t": b"\t", b"b": b"\b"}


def parse_config(content: bytes) -> Iterator[tuple[str, bytes | None]]:
    r"""Yield the keys and values of a configuration file in their order.

    A key is spelled as by ``git config --list``: in small letters, except its middle part. A key without a value has
    the value None.

    Raises:
        ValueError: The content is not a configuration file. The message contains the line number.

    Example:
        >>> list(parse_config(b'[core]\n  excludesFile = "~/a b" ; mine\n[x "Y"]\n  flag\n'))
        [('core.excludesfile', b'~/a b'), ('x.Y.flag', None)]
    """
    content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    section = ""
    position = 0
    while position < len(content):
        byte = content[position : position + 1]
        if byte.isspace():
            position += 1
        elif byte in (b"#", b";"):
            newline = content.find(b"\n", position)
            position = len(content) if newline < 0 else newline
        elif byte == b"[":
            if not (match := _SECTION.match(content, position)):
                raise ValueError(f"line {_line_number(content, position)}: a section that does not end")
            section = match[1].decode("latin-1").lower()
            if match[2] is not None:
                section += "." + re.sub(rb"\\(.)", rb"\1", match[2]).decode("utf-8", "surrogateescape")
            position = match.end()
        else:
            match = _KEY.match(content, position)
            if not match or not section:
                raise ValueError(f"line {_line_number(content, position)}: neither a section nor a key")
            key = f"{section}.{match[1].decode('latin-1').lower()}"
            position = match.end()
            if match[2]:
                value, position = _value(content, position)
                yield key, value
            else:
                yield key, None


def _line_number(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1


def _value(content: bytes, position: int) -> tuple[bytes, int]:
    """Return a value and the position after it. Blanks at the end of a value are dropped, unless they are quoted."""
    value = bytearray()
    kept = 0
    quoted = False
    while True:
        if plain := _PLAIN.match(content, position):
            value += plain[0]
            position = plain.end()
            kept = len(value)
        byte = content[position : position + 1]
        position += 1
        if byte in (b"", b"\n"):
            if quoted:
                raise ValueError(f"line {_line_number(content, position - 1)}: a quote that does not end")
            return bytes(value[:kept]), position
        if not quoted and byte in (b"#", b";"):
            newline = content.find(b"\n", position)
            return bytes(value[:kept]), len(content) if newline < 0 else newline
        if byte == b'"':
            quoted = not quoted
            kept = len(value)
        elif byte == b"\\":
            escaped = content[position : position + 1]
            position += 1
            if escaped != b"\n":
                value += _ESCAPES.get(escaped, escaped)
                kept = len(value)
        else:
            value += byte
            if quoted or not byte.isspace():
                kept = len(value)
