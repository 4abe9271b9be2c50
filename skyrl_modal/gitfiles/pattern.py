"""Patterns of ignore files, compiled to rules that match as git matches.

gitignore-parser compiles the patterns, but compiles some patterns of git's ``wildmatch`` incorrectly. Each pattern is
therefore parsed here, byte by byte as git's ``dir.c`` and ``wildmatch.c`` do it, and rewritten before it is compiled:
character classes are expanded to the bytes that they match, and bytes that are special to the library are replaced by
private code points, which are restored as escaped bytes in the resulting regex.

Bytes are represented as latin-1 text, because git's ``?`` matches one byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import Enum
from itertools import pairwise, product
from math import prod
from typing import NamedTuple

from skyrl_modal.gitfiles.character_class import PatternNeverMatches, parse_bracket
from skyrl_modal.gitfiles.pattern_regex import PatternRegex, shielded

#: Length of a path above which no system call accepts it (PATH_MAX of Linux; the one of macOS is 1024).
MAX_PATH_BYTES = 4096
_SPECIAL = frozenset(b"*?[\\")
# A line of literal names, without a byte that has a meaning in any position. Nearly all lines of long ignore files.
_PLAIN_NAME = rb"[^\0-\x20\\*?\[/!#][^\0-\x20\\*?\[/]*"
_PLAIN_LINE = re.compile(rb"(!?)(/?(?:%b/)*)(%b)(/?)" % (_PLAIN_NAME, _PLAIN_NAME))
_PLAIN_SUFFIX = re.compile(rb"(!?)\*([^\0-\x20\\*?\[/]*)(/?)")
is_plain_name = re.compile(_PLAIN_NAME).fullmatch
# The number of texts to which the sets of a pattern are expanded. `*.py[cod]` has three, `*.[oa]` two.
_MAX_SUFFIXES = 8
# Reports and warnings show this much of a line.
_SHOWN_BYTES = 500


class _TokenKind(Enum):
    BYTE = "byte"
    SET = "set"
    ANY = "?"
    STAR = "*"
    STARSTAR = "**"
    SLASH = "/"


class _Token(NamedTuple):
    """One piece of a pattern."""

    kind: _TokenKind
    byte: int = 0
    members: frozenset[int] = frozenset()


_SLASH, _ONE = _Token(_TokenKind.SLASH), _Token(_TokenKind.ANY)
_BYTES = [_Token(_TokenKind.BYTE, byte) for byte in range(256)]
_LITERAL = (_TokenKind.BYTE, _TokenKind.SLASH)
_STAR, _STARSTAR = _Token(_TokenKind.STAR), _Token(_TokenKind.STARSTAR)


class Rule(NamedTuple):
    """One line of an ignore file, ready to be matched.

    A rule has one of three forms. A *name rule* matches a name alone. A *path rule* has ``folder`` or
    ``folder_pattern``, the folder below the one of the ignore file, with a slash after each part; it matches names in
    the folders that match. A rule with ``whole`` matches the whole path below the folder of the ignore file:
    git compares the literal beginning of ``foo**/bar`` first, so that it matches ``foobar``.

    Attributes:
        text: The line, without its end.
        source: The name of the file that contains it, as reports show it.
        lineno: The line number, counted from 1.
        negated: Whether the line begins with ``!``.
        only_folders: Whether the line ends with ``/``.
        literal: The only name that the rule matches, if it has no wildcard.
        suffixes: The ends of the names that match, if the pattern is ``*`` and a text without further wildcards, except
            for a few small sets, as in ``*.py[cod]``.
        regex: The regex of the name in all other cases.
        prefix: The bytes with which a name or path begins that matches ``regex`` or ``whole``.
        ending: The bytes with which it ends.
        folder: The folder, if it has no wildcard.
        folder_pattern: The canonical pattern of the folder (see ``PatternRegex``) in all other cases.
        folder_prefix: The bytes with which a folder begins that matches ``folder_pattern``.
        whole: The regex of the whole path.
    """

    text: bytes
    source: str
    lineno: int
    negated: bool
    only_folders: bool
    literal: bytes | None = None
    suffixes: tuple[bytes, ...] | None = None
    regex: PatternRegex | None = None
    prefix: bytes = b""
    ending: bytes = b""
    folder: bytes | None = None
    folder_pattern: str | None = None
    folder_prefix: bytes = b""
    whole: PatternRegex | None = None

    def __str__(self) -> str:
        place = f"{self.source}:{self.lineno}" if self.lineno else self.source
        shortened = "..." if len(self.text) > _SHOWN_BYTES else ""
        return f"{place}: {self.text[:_SHOWN_BYTES].decode('utf-8', 'backslashreplace')}{shortened}"


class _Form(NamedTuple):
    """The part of a rule that depends on its form; see ``Rule``."""

    literal: bytes | None = None
    suffixes: tuple[bytes, ...] | None = None
    regex: PatternRegex | None = None
    prefix: bytes = b""
    ending: bytes = b""
    folder: bytes | None = None
    folder_pattern: str | None = None
    folder_prefix: bytes = b""
    whole: PatternRegex | None = None


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
    if len(line) <= MAX_PATH_BYTES and (rule := _compile_plain_line(line, source, lineno, ignore_case)):
        return rule
    negated = line[:1] == b"!"
    pattern = line[1:] if negated else line
    only_folders = pattern[-1:] == b"/"
    if only_folders:
        pattern = pattern[:-1]
    if not pattern:
        raise PatternNeverMatches("nothing is left of it")
    has_slash = b"/" in pattern
    if not has_slash:
        form = _name_form(_bounded_tokens(pattern, has_slash, 0, ignore_case))
    else:
        form = _path_form(pattern.removeprefix(b"/"), ignore_case)
    return Rule(line, source, lineno, negated, only_folders, *form)


def _compile_plain_line(line: bytes, source: str, lineno: int, ignore_case: bool) -> Rule | None:
    """Return the rule of a line with literal names only, or with a star and the end of a name; None for any other."""
    text = line.lower() if ignore_case else line
    if plain := _PLAIN_LINE.fullmatch(text):
        negated, folder, name, slash = plain.groups()
        below = folder.removeprefix(b"/") if folder else None
        return Rule(line, source, lineno, negated != b"", slash != b"", literal=name, folder=below)
    if plain := _PLAIN_SUFFIX.fullmatch(text):
        negated, suffix, slash = plain.groups()
        return Rule(line, source, lineno, negated != b"", slash != b"", suffixes=(suffix,))
    return None


def _path_form(pattern: bytes, ignore_case: bool) -> _Form:
    """Return the form of a pattern that contains a slash."""
    # git compares the literal beginning before wildmatch matches the rest, so a `**` at the start of that rest counts
    # as if a slash preceded it.
    glued = 0
    while glued < len(pattern) and pattern[glued] not in _SPECIAL:
        glued += 1
    tokens = _bounded_tokens(pattern, True, glued, ignore_case)
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
        prefix = _literal(tokens[:glued])
        return _Form(whole=PatternRegex(_canonical(tokens[glued:]), prefix), prefix=prefix, ending=_ending(tokens))
    if tokens[-1] is _STARSTAR:
        folder, name = [*tokens, _SLASH], [_STAR]
    else:
        cut = max((number for number, token in enumerate(tokens) if token is _SLASH), default=-1) + 1
        folder, name = tokens[:cut], tokens[cut:]
    form = _name_form(name)
    if folder == [_STARSTAR, _SLASH]:
        return form
    if all(token.kind in _LITERAL for token in folder):
        return form._replace(folder=_literal(folder))
    return form._replace(folder_pattern=_canonical(folder), folder_prefix=_prefix(folder))


def _name_form(tokens: list[_Token]) -> _Form:
    """Return the form of a single name. The first two are shortcuts that git has as well."""
    if all(token.kind is _TokenKind.BYTE for token in tokens):
        return _Form(literal=_literal(tokens))
    if tokens[0] is _STAR and all(token.kind is _TokenKind.BYTE for token in tokens[1:]):
        return _Form(suffixes=(_literal(tokens[1:]),))
    if tokens[0] is _STAR and (suffixes := _few_texts(tokens[1:])):
        return _Form(suffixes=suffixes)
    return _Form(regex=PatternRegex(_canonical(tokens)), prefix=_prefix(tokens), ending=_ending(tokens))


def _few_texts(tokens: Sequence[_Token]) -> tuple[bytes, ...]:
    """Return the texts that match tokens without a slash; nothing if they are many or the tokens have wildcards."""
    if any(token.kind not in (_TokenKind.BYTE, _TokenKind.SET) for token in tokens):
        return ()
    choices = [token.members if token.kind is _TokenKind.SET else (token.byte,) for token in tokens]
    return tuple(map(bytes, product(*choices))) if prod(map(len, choices)) <= _MAX_SUFFIXES else ()


def _literal(tokens: Sequence[_Token]) -> bytes:
    return bytes(0x2F if token is _SLASH else token.byte for token in tokens)


def _prefix(tokens: Sequence[_Token]) -> bytes:
    """Return the literal bytes with which every text begins that matches the tokens."""
    length = next((number for number, token in enumerate(tokens) if token.kind not in _LITERAL), len(tokens))
    return _literal(tokens[:length])


def _ending(tokens: Sequence[_Token]) -> bytes:
    """Return the literal bytes, without a slash, with which every text ends that matches the tokens."""
    length = next((number for number, token in enumerate(reversed(tokens)) if token.kind is not _TokenKind.BYTE), 0)
    return _literal(tokens[len(tokens) - length :])


def _canonical(tokens: Sequence[_Token]) -> str:
    """Return the tokens as a pattern in which the library misreads nothing."""
    return "".join([_canonical_token(token) for token in tokens])


def _canonical_token(token: _Token) -> str:
    match token.kind:
        case _TokenKind.BYTE:
            return shielded(token.byte)
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
    body = "".join(shielded(low) if low == high else f"{shielded(low)}-{shielded(high)}" for low, high in ranges)
    return f"[{body}]"


def _bounded_tokens(pattern: bytes, has_slash: bool, start: int, ignore_case: bool) -> list[_Token]:
    """Return the tokens of a pattern, without repeated ``**/``.

    Raises:
        PatternNeverMatches: What matches the pattern is longer than any path.
    """
    tokens: list[_Token] = []
    length = 0
    for token in _tokens(pattern, has_slash, start, ignore_case):
        if token is _SLASH and tokens[-3:] == [_STARSTAR, _SLASH, _STARSTAR]:
            del tokens[-1]
            continue
        # The slash of `**/` is not needed where it matches no folder.
        length += token is not _STAR and token is not _STARSTAR and not (token is _SLASH and tokens[-1:] == [_STARSTAR])
        if length > MAX_PATH_BYTES:
            raise PatternNeverMatches("no path is that long")
        tokens.append(token)
    return tokens


def _tokens(pattern: bytes, has_slash: bool, start: int, ignore_case: bool) -> Iterator[_Token]:
    """Yield the tokens of a pattern as wildmatch reads them.

    Args:
        pattern: The pattern, without a leading ``!`` and a trailing slash.
        has_slash: Whether the line contains a slash other than the trailing one.
        start: The position at which git's literal comparison ends and wildmatch begins.
        ignore_case: Whether ``core.ignorecase`` is set.
    """
    position, end = 0, len(pattern)
    terminated = pattern + b"\0"
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
            yield _SLASH if byte == 0x2F else _BYTES[byte]
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
            position, members = parse_bracket(terminated, position, ignore_case)
            if not members:
                raise PatternNeverMatches("its [...] matches no byte")
            yield _Token(_TokenKind.SET, members=members)
        elif byte == 0x2F:
            yield _SLASH
            position += 1
        else:
            yield _BYTES[byte | 0x20 if ignore_case and 0x41 <= byte <= 0x5A else byte]
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
