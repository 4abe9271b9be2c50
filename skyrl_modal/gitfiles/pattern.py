"""Patterns of ignore files, compiled to rules that match as git matches.

gitignore-parser compiles the patterns, but compiles some patterns of git's ``wildmatch`` incorrectly. Each pattern is
therefore parsed here, byte by byte as git's ``dir.c`` and ``wildmatch.c`` do it, and rewritten before it is compiled:
character classes are expanded to the bytes that they match, and bytes that are special to the library are replaced by
private code points, which are restored as escaped bytes in the resulting regex.

Bytes are represented as latin-1 text, because git's ``?`` matches one byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

from attrs import frozen
from gitignore_parser import rule_from_pattern

from skyrl_modal.gitfiles.character_class import PatternNeverMatches, parse_bracket

_SPECIAL = frozenset(b"*?[\\")
# Code points above every byte. The library treats them as letters, inside and outside of a class.
_SHIELD = 0xE000
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_UNSHIELD = {_SHIELD + byte: re.escape(chr(byte)) for byte in range(256)}
# The name of a folder that is put before every pattern, and of the last part where only folders are compiled.
_ANCHOR = chr(_SHIELD + 256)


class _TokenKind(Enum):
    BYTE = "byte"
    SET = "set"
    ANY = "?"
    STAR = "*"
    STARSTAR = "**"
    SLASH = "/"


@frozen
class _Token:
    """One piece of a pattern."""

    kind: _TokenKind
    byte: int = 0
    members: frozenset[int] = frozenset()


_SLASH, _ONE = _Token(_TokenKind.SLASH), _Token(_TokenKind.ANY)
_STAR, _STARSTAR = _Token(_TokenKind.STAR), _Token(_TokenKind.STARSTAR)


@frozen(eq=False)
class Rule:
    """One line of an ignore file, ready to be matched.

    A rule has one of three forms. A *name rule* (``folder`` and ``whole`` are None) matches a name alone. A *path rule*
    has ``folder``, a regex for the folder below the one of the ignore file, with a slash after each part; it matches
    names in the folders that match. A rule with ``whole`` matches the whole path below the folder of the ignore file:
    git compares the literal beginning of ``foo**/bar`` first, so that it matches ``foobar``.

    Attributes:
        text: The line, without its end.
        source: The name of the file that contains it, as reports show it.
        lineno: The line number, counted from 1.
        negated: Whether the line begins with ``!``.
        only_folders: Whether the line ends with ``/``.
        literal: The only name that the rule matches, if it has no wildcard.
        suffix: The end of the names that match, if the pattern is ``*`` and a literal.
        regex: The regex of the name, latin-1, in all other cases.
        folder: The regex of the folder, or the folder itself if ``folder_is_literal``.
        folder_is_literal: Whether ``folder`` is compared and not matched.
        whole: The regex of the whole path.
    """

    text: bytes
    source: str
    lineno: int
    negated: bool
    only_folders: bool
    literal: bytes | None = None
    suffix: bytes | None = None
    regex: str | None = None
    folder: bytes | None = None
    folder_is_literal: bool = True
    whole: str | None = None

    def __str__(self) -> str:
        place = f"{self.source}:{self.lineno}" if self.lineno else self.source
        return f"{place}: {self.text.decode('utf-8', 'backslashreplace')}"


class _Form(NamedTuple):
    """The part of a rule that depends on its form; see ``Rule``."""

    literal: bytes | None = None
    suffix: bytes | None = None
    regex: str | None = None
    folder: bytes | None = None
    folder_is_literal: bool = True
    whole: str | None = None


def compile_rule(line: bytes, source: str, lineno: int, ignore_case: bool) -> Rule:
    r"""Compile one line of an ignore file.

    Args:
        line: The line, trimmed, neither empty nor a comment.
        source: The name of its file, as reports show it.
        lineno: Its line number.
        ignore_case: Whether ``core.ignorecase`` is set; names must then be lowered before they are matched.

    Raises:
        PatternNeverMatches: git accepts the line, but it matches no path.

    Example:
        >>> compile_rule(b"!docs/*.md", ".gitignore", 3, ignore_case=False).folder
        b'docs/'
    """
    negated = line[:1] == b"!"
    pattern = line[1:] if negated else line
    only_folders = pattern[-1:] == b"/"
    if only_folders:
        pattern = pattern[:-1]
    if not pattern:
        raise PatternNeverMatches("nothing is left of it")
    has_slash = b"/" in pattern
    if not has_slash:
        form = _name_form(list(_tokens(pattern, has_slash, 0, ignore_case)))
    else:
        form = _path_form(pattern.removeprefix(b"/"), ignore_case)
    return Rule(line, source, lineno, negated, only_folders, *form)


def _path_form(pattern: bytes, ignore_case: bool) -> _Form:
    """Return the form of a pattern that contains a slash."""
    # git compares the literal beginning before wildmatch matches the rest, so a `**` at the start of that rest counts
    # as if a slash preceded it.
    glued = 0
    while glued < len(pattern) and pattern[glued] not in _SPECIAL:
        glued += 1
    tokens = list(_tokens(pattern, True, glued, ignore_case))
    while tokens[glued : glued + 4] == [_STARSTAR, _SLASH] * 2:
        del tokens[glued : glued + 2]
    doubled = [one is _SLASH and two is _SLASH for one, two in pairwise(tokens)]
    deep_at = glued < len(tokens) and tokens[glued] is _STARSTAR and glued > 0 and tokens[glued - 1] is not _SLASH
    if deep_at and (any(doubled[glued + 1 : glued + 2]) or tokens[glued + 1 :] == [_SLASH]):
        # `foo**//bar` and `foo**//`: where `**/` matches nothing, the rest of the pattern has to match the rest of the
        # path, which is a slash and more, or nothing.
        del tokens[glued : glued + 2], doubled[glued : glued + 2]
        deep_at = False
    if any(doubled):
        raise PatternNeverMatches("no path has two slashes in a row")
    if not tokens or tokens[0] is _SLASH or tokens[-1] is _SLASH:
        raise PatternNeverMatches("no path begins or ends with a slash")
    if deep_at:
        return _Form(whole=_glued_form(tokens, glued))
    if tokens[-1] is _STARSTAR:
        folder, name = [*tokens, _SLASH], [_STAR]
    else:
        cut = max((number for number, token in enumerate(tokens) if token is _SLASH), default=-1) + 1
        folder, name = tokens[:cut], tokens[cut:]
    form = _name_form(name)
    if folder == [_STARSTAR, _SLASH]:
        return form
    if all(token.kind in (_TokenKind.BYTE, _TokenKind.SLASH) for token in folder):
        return form._replace(folder=_literal(folder))
    return form._replace(folder=_compile(folder).encode("latin-1"), folder_is_literal=False)


def _name_form(tokens: list[_Token]) -> _Form:
    """Return the form of a single name. The first two are shortcuts that git has as well."""
    if all(token.kind is _TokenKind.BYTE for token in tokens):
        return _Form(literal=_literal(tokens))
    if tokens[0] is _STAR and all(token.kind is _TokenKind.BYTE for token in tokens[1:]):
        return _Form(suffix=_literal(tokens[1:]))
    return _Form(regex=_compile(tokens))


def _glued_form(tokens: list[_Token], prefix: int) -> str:
    literal = "".join(_UNSHIELD[_SHIELD + byte] for byte in _literal(tokens[:prefix]))
    return literal + _compile(tokens[prefix:])


def _literal(tokens: list[_Token]) -> bytes:
    return bytes(0x2F if token is _SLASH else token.byte for token in tokens)


def _compile(tokens: list[_Token]) -> str:
    """Return gitignore-parser's regex of the tokens, to be matched in full against latin-1 text.

    The pattern is put below a folder, because the library treats the first part (and a leading ``**``) differently; a
    pattern that ends in a slash gets a last part for the same reason.
    """
    canonical = "".join(map(_canonical, tokens))
    folders_only = canonical.endswith("/")
    rule = rule_from_pattern(f"/{_ANCHOR}/{canonical}{_ANCHOR if folders_only else ''}")
    regex: str = rule.regex
    head, tail = f"^{_ANCHOR}[/]", f"{_ANCHOR}$" if folders_only else "$"
    return regex.removeprefix(head).removesuffix(tail).replace("(.*[/])?", "(?:.*[/])?").translate(_UNSHIELD)


def _canonical(token: _Token) -> str:
    match token.kind:
        case _TokenKind.BYTE:
            return _shielded(token.byte)
        case _TokenKind.ANY:
            return "?"
        case _TokenKind.STAR:
            return "*"
        case _TokenKind.STARSTAR:
            return "**"
        case _TokenKind.SLASH:
            return "/"
    ranges: list[tuple[int, int]] = []
    for byte in sorted(token.members):
        if ranges and ranges[-1][1] == byte - 1:
            ranges[-1] = (ranges[-1][0], byte)
        else:
            ranges.append((byte, byte))
    body = "".join(_shielded(low) if low == high else f"{_shielded(low)}-{_shielded(high)}" for low, high in ranges)
    return f"[{body}]"


def _shielded(byte: int) -> str:
    return chr(byte) if byte in _PLAIN else chr(_SHIELD + byte)


def _tokens(pattern: bytes, has_slash: bool, start: int, ignore_case: bool) -> Iterator[_Token]:
    """Yield the tokens of a pattern as wildmatch reads them.

    Args:
        pattern: The pattern, without a leading ``!`` and a trailing slash.
        has_slash: Whether the line contains a slash other than the trailing one.
        start: The position at which git's literal comparison ends and wildmatch begins.
        ignore_case: Whether ``core.ignorecase`` is set.
    """
    position, end = 0, len(pattern)
    while position < end:
        byte = pattern[position]
        if byte == 0x5C:  # backslash
            position += 1
            if position == end:
                raise PatternNeverMatches("a backslash at its end protects nothing")
            byte = pattern[position]
            if ignore_case and 0x41 <= byte <= 0x5A:
                # wildmatch lowers the path and the pattern, but not a letter after a backslash.
                raise PatternNeverMatches("with core.ignorecase an escaped capital matches nothing")
            yield _SLASH if byte == 0x2F else _Token(_TokenKind.BYTE, byte)
            position += 1
        elif byte == 0x2A:  # star
            first = position
            while position < end and pattern[position] == 0x2A:
                position += 1
            yield from _star_tokens(pattern, first, position, has_slash, start)
        elif byte == 0x3F:  # question mark
            yield _ONE
            position += 1
        elif byte == 0x5B:  # bracket
            position, members = parse_bracket(pattern, position, ignore_case)
            if not members:
                raise PatternNeverMatches("its [...] matches no byte")
            yield _Token(_TokenKind.SET, members=members)
        elif byte == 0x2F:
            yield _SLASH
            position += 1
        else:
            yield _Token(_TokenKind.BYTE, byte | 0x20 if ignore_case and 0x41 <= byte <= 0x5A else byte)
            position += 1


def _star_tokens(pattern: bytes, first: int, end: int, has_slash: bool, start: int) -> tuple[_Token, ...]:
    """Return the tokens of the stars from ``first`` to ``end``."""
    following = pattern[end : end + 2]
    deep = (
        has_slash
        and end - first > 1
        and (first == start or pattern[first - 1] == 0x2F)
        and (not following or following[0] == 0x2F or following == b"\\/")
    )
    if not deep:
        return (_STAR,)
    if following == b"\\/":
        # Before an escaped slash wildmatch does not try to match zero folders. The literal text before a `**` that
        # begins the rest continues to the first slash, so there it may.
        return (_STAR, _SLASH, _STARSTAR)
    return (_STARSTAR,)
