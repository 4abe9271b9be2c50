"""Character classes (``[...]``) of patterns, as git's ``wildmatch.c`` reads them."""

from __future__ import annotations

_ANY = frozenset(range(1, 256)) - {0x2F}


class PatternNeverMatches(Exception):
    """git accepts the pattern, but it matches no path. The message states why."""


def parse_bracket(text: bytes, position: int, ignore_case: bool) -> tuple[int, frozenset[int]]:
    """Return the end of a ``[...]`` and the bytes that it matches.

    The branches are in the order of wildmatch.c, because the treatment of malformed classes follows from that order.

    Args:
        text: The whole pattern and a NUL.
        position: The position of the ``[``.
        ignore_case: Whether ``core.ignorecase`` is set.

    Raises:
        PatternNeverMatches: The class is not closed, or names an unknown class.
    """
    position += 1
    negated = text[position] in b"!^"
    position += negated
    members: set[int] = set()
    previous = close = 0
    byte = text[position]
    while True:
        if not byte:
            raise PatternNeverMatches("a [ without its ]")
        if byte == 0x5C:
            position += 1
            byte = text[position]
            if not byte:
                raise PatternNeverMatches("a [ without its ]")
            members.add(byte)
        elif byte == 0x2D and previous and text[position + 1] and text[position + 1] != 0x5D:
            position += 1
            byte = text[position]
            if byte == 0x5C:
                position += 1
                byte = text[position]
                if not byte:
                    raise PatternNeverMatches("a [ without its ]")
            span = set(range(previous, byte + 1))
            members |= span
            if ignore_case:
                members |= {capital | 0x20 for capital in span if 0x41 <= capital <= 0x5A}
            byte = 0
        elif byte == 0x5B and text[position + 1] == 0x3A:
            # One search for all `[:` before the same `]`, so that a long class needs linear time.
            close = close if close >= position + 2 else text.find(b"]", position + 2)
            if close < 0:
                raise PatternNeverMatches("a [ without its ]")
            if close < position + 3 or text[close - 1] != 0x3A:
                members.add(byte)
            else:
                members |= _named_class(text[position + 2 : close - 1], ignore_case)
                position, byte = close, 0
        else:
            members.add(byte)
        previous = byte
        position += 1
        byte = text[position]
        if byte == 0x5D:
            break
    if ignore_case:
        # Paths are lowered before they are compared, so a single capital letter in a class matches nothing.
        members = {member for member in members if not 0x41 <= member <= 0x5A}
    return position + 1, frozenset(_ANY - members if negated else _ANY & members)


_GRAPHIC = frozenset(range(0x21, 0x7F))
_DIGITS = frozenset(b"0123456789")
_LOWER = frozenset(range(0x61, 0x7B))
_UPPER = frozenset(range(0x41, 0x5B))
# git has its own table of characters (ctype.c), which depends on no locale and has no vertical tab.
_CLASSES = {
    b"alnum": _DIGITS | _LOWER | _UPPER,
    b"alpha": _LOWER | _UPPER,
    b"blank": frozenset(b" \t"),
    b"cntrl": frozenset(range(1, 0x20)) | {0x7F},
    b"digit": _DIGITS,
    b"graph": _GRAPHIC,
    b"lower": _LOWER,
    b"print": _GRAPHIC | {0x20},
    b"punct": _GRAPHIC - _DIGITS - _LOWER - _UPPER,
    b"space": frozenset(b" \t\n\r"),
    b"upper": _UPPER,
    b"xdigit": frozenset(b"0123456789abcdefABCDEF"),
}


def _named_class(name: bytes, ignore_case: bool) -> frozenset[int]:
    members = _CLASSES.get(name)
    if members is None:
        raise PatternNeverMatches(f"[:{name[:20].decode('utf-8', 'backslashreplace')}:] is not a class")
    return members | _LOWER if ignore_case and name == b"upper" else members
