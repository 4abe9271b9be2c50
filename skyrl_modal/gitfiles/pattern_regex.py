"""Regexes of patterns: gitignore-parser compiles them, and they are then changed so that matching takes little time."""

from __future__ import annotations

import re
from functools import cached_property, lru_cache

from gitignore_parser import rule_from_pattern

# Code points above every byte. The library treats them as letters, inside and outside of a class.
_SHIELD = 0xE000
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_UNSHIELD = {_SHIELD + byte: re.escape(chr(byte)) for byte in range(256)}
# The name of a folder that is put before every pattern, and of the last part where only folders are compiled.
_ANCHOR = chr(_SHIELD + 256)


def shielded(byte: int) -> str:
    """Return a byte of a pattern as text that the library compiles to this byte."""
    return chr(byte) if byte in _PLAIN else chr(_SHIELD + byte)


class PatternRegex:
    """The regex of a pattern, latin-1, to be matched in full. It is compiled when it is needed for the first time.

    Args:
        canonical: The pattern, rewritten so that gitignore-parser compiles it correctly.
        prefix: Literal bytes before it.
    """

    def __init__(self, canonical: str, prefix: bytes = b"") -> None:
        self._canonical, self._prefix = canonical, prefix

    @cached_property
    def text(self) -> str:
        """The regex. It has no capturing group."""
        return "".join(_UNSHIELD[_SHIELD + byte] for byte in self._prefix) + _compile(self._canonical)


@lru_cache(maxsize=1024)
def _compile(canonical: str) -> str:
    """Return gitignore-parser's regex of a canonical pattern, to be matched in full against latin-1 text.

    The pattern is put below a folder, because the library treats the first part (and a leading ``**``) differently; a
    pattern that ends in a slash gets a last part for the same reason.
    """
    folders_only = canonical.endswith("/")
    rule = rule_from_pattern(f"/{_ANCHOR}/{canonical}{_ANCHOR if folders_only else ''}")
    regex: str = rule.regex
    head, tail = f"^{_ANCHOR}[/]", f"{_ANCHOR}$" if folders_only else "$"
    return _without_backtracking(regex.removeprefix(head).removesuffix(tail)).translate(_UNSHIELD)


# What gitignore-parser writes for `**/`, for `/` and for `*`. Nothing else results in these texts, because all special
# bytes are replaced before.
_ANY_FOLDERS, _ONE_SLASH, _ANY_BYTES = "(.*[/])?", "[/]", "[^/]*"


def _without_backtracking(regex: str) -> str:
    """Return a regex for the same texts that is matched in a time proportional to pattern length times text length.

    As the library writes it, ``*a*a*a`` tries every combination of positions. The first position of each part but the
    last is enough: what is between two stars has a fixed length, and what is between two ``**/`` matches a fixed number
    of folders, so that a later position leaves less for the rest. An atomic group, ``(?>...)``, discards the others.
    """
    first, *others = regex.split(_ANY_FOLDERS)
    result = _without_backtracking_of_stars(first)
    for number, part in enumerate(map(_without_backtracking_of_stars, others), 1):
        if number == len(others):
            result += f"(?:.*[/])?{part}"
        else:
            # No folder, or the first folders after which the part matches.
            result += f"(?>{part}|.*?(?<=[/]){part})"
    return result


def _without_backtracking_of_stars(regex: str) -> str:
    parts = []
    for part in regex.split(_ONE_SLASH):
        first, *others = part.split(_ANY_BYTES)
        middle = "".join(f"(?>{_ANY_BYTES}?{between})" for between in others[:-1])
        parts.append(first + middle + (_ANY_BYTES + others[-1] if others else ""))
    return _ONE_SLASH.join(parts)
