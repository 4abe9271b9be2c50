"""Lines of ignore files to rules that decide as git does.

gitignore-parser compiles the patterns. What it is handed is not the line but a canonical spelling of it, since a part
of what git's ``wildmatch`` accepts is compiled wrongly from the raw line: the line is read byte by byte as git's
``dir.c`` and ``wildmatch.c`` read it, classes are expanded to the bytes that they match, and every byte that could mean
something to the library stands as a private code point, which is put back as an escaped byte in the regex that comes
out.

Bytes are carried as latin-1 text on the way, because git's ``?`` is one byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

from attrs import field, frozen
from gitignore_parser import rule_from_pattern

from skyrl_modal.gitfiles.character_class import NeverMatches, bracket

_SPECIAL = frozenset(b"*?[\\")
# Above every byte; the library treats these as letters, inside and outside of a class.
_SHIELD = 0xE000
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_UNSHIELD = {_SHIELD + byte: re.escape(chr(byte)) for byte in range(256)}
# Stands for a folder that every pattern is put below, and for the last part where only the folders are compiled.
_ANCHOR = chr(_SHIELD + 256)


@frozen
class _Token:
    """One piece of a pattern: a byte, a set of bytes, ``?``, ``*``, ``**`` or a slash."""

    kind: str  # "byte", "set", "any", "star", "starstar", "slash"
    byte: int = 0
    members: frozenset[int] = frozenset()


_SLASH, _ONE, _STAR, _STARSTAR = _Token("slash"), _Token("any"), _Token("star"), _Token("starstar")


@frozen(eq=False)
class Rule:
    """One line of an ignore file, ready to be matched.

    A rule is of one of three forms. A *name rule* (``folder`` and ``whole`` are None) looks at a name alone. A *path
    rule* has ``folder``, a regex for the folder below the ignore file's own, written with a slash after each part, and
    looks at the name only in folders that match. A rule with ``whole`` needs the whole path below the ignore file's
    folder: git compares the literal beginning of ``foo**/bar`` first, so it matches ``foobar``.

    Attributes:
        text: The line, without its end.
        source: The file that it stands in, as it is shown to a person.
        lineno: Counted from 1.
        negated: It begins with ``!``.
        only_folders: It ends with ``/``.
        literal: The one name that it matches, where it has no wildcard.
        suffix: What a name ends with, where it is ``*`` and a literal.
        regex: The regex of the name, latin-1, where it is neither.
        folder: The regex of the folder, or the folder itself where ``folder_is_literal``.
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


@frozen(eq=False)
class Ruleset:
    """The rules of one ignore file in their order, and the lines that can match nothing.

    Attributes:
        rules: The last one that matches decides.
        never: ``(line number, line, why)`` of each line that is a pattern but matches nothing.
    """

    rules: tuple[Rule, ...] = ()
    never: tuple[tuple[int, bytes, str], ...] = ()
    folders: dict[bytes, tuple[int, ...]] = field(init=False, repr=False)
    folder_regexes: tuple[tuple[re.Pattern[bytes], int], ...] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        folders: dict[bytes, tuple[int, ...]] = {}
        regexes: list[tuple[re.Pattern[bytes], int]] = []
        for number, rule in enumerate(self.rules):
            if rule.folder is None:
                continue
            if rule.folder_is_literal:
                folders[rule.folder] = (*folders.get(rule.folder, ()), number)
            else:
                regexes.append((re.compile(rule.folder, re.DOTALL), number))
        object.__setattr__(self, "folders", folders)
        object.__setattr__(self, "folder_regexes", tuple(regexes))

    def active(self, folder: bytes) -> tuple[int, ...]:
        """The numbers of the path rules that look at names in ``folder`` (ending in a slash, or empty)."""
        found = self.folders.get(folder, ())
        if self.folder_regexes:
            found += tuple(number for regex, number in self.folder_regexes if regex.fullmatch(folder))
        return found


@lru_cache(maxsize=512)
def parse(content: bytes, source: str, ignore_case: bool = False) -> Ruleset:
    r"""Reads an ignore file as git reads it.

    Args:
        content: The bytes of the file.
        source: The file's name as reports shall show it.
        ignore_case: git's ``core.ignorecase``; names are then to be lowered before they are matched.

    Example:
        >>> rules = parse(b"# built\n*.o\n!/keep.o\n[z\n", ".gitignore")
        >>> [str(rule) for rule in rules.rules]
        ['.gitignore:2: *.o', '.gitignore:3: !/keep.o']
        >>> rules.never
        ((4, b'[z', 'a [ without its ]'),)
    """
    rules: list[Rule] = []
    never: list[tuple[int, bytes, str]] = []
    for lineno, line in _lines(content):
        try:
            rules.append(_rule(line, source, lineno, ignore_case))
        except NeverMatches as reason:
            never.append((lineno, line, str(reason)))
    return Ruleset(tuple(rules), tuple(never))


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that hold a pattern, trimmed as git trims them; only a newline ends a line."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    for lineno, line in enumerate(content.split(b"\n"), 1):
        if not line or line[:1] == b"#":
            continue
        # git works on C strings, so a NUL ends the pattern.
        pattern = _trimmed(line.removesuffix(b"\r").split(b"\0")[0])
        if pattern:
            yield lineno, pattern


def _trimmed(line: bytes) -> bytes:
    """Without the blanks (not tabs) at its end, but for one that a backslash protects."""
    if line[-1:] != b" ":
        return line
    start = None
    position = 0
    while position < len(line):
        byte = line[position]
        if byte == 0x20:
            start = position if start is None else start
        else:
            start = None
            if byte == 0x5C:
                position += 1
                if position == len(line):
                    return line
        position += 1
    return line if start is None else line[:start]


def _rule(line: bytes, source: str, lineno: int, ignore_case: bool) -> Rule:
    negated = line[:1] == b"!"
    pattern = line[1:] if negated else line
    only_folders = pattern[-1:] == b"/"
    if only_folders:
        pattern = pattern[:-1]
    if not pattern:
        raise NeverMatches("nothing is left of it")
    has_slash = b"/" in pattern
    if has_slash and pattern[:1] == b"/":
        pattern = pattern[1:]
    glued = 0
    if has_slash:
        # git compares the literal beginning before wildmatch sees the rest, so `**` at the start of that rest counts as
        # if a slash stood before it.
        while glued < len(pattern) and pattern[glued] not in _SPECIAL:
            glued += 1
    tokens = list(_tokens(pattern, has_slash, glued, ignore_case))

    def made(**form: object) -> Rule:
        return Rule(line, source, lineno, negated, only_folders, **form)  # type: ignore[arg-type]  # a form of either kind

    if not has_slash:
        return made(**_name_form(tokens))
    while tokens[glued : glued + 4] == [_STARSTAR, _SLASH] * 2:
        del tokens[glued : glued + 2]
    doubled = [one is _SLASH and two is _SLASH for one, two in pairwise(tokens)]
    deep_at = glued < len(tokens) and tokens[glued] is _STARSTAR and glued > 0 and tokens[glued - 1] is not _SLASH
    if deep_at and (any(doubled[glued + 1 : glued + 2]) or tokens[glued + 1 :] == [_SLASH]):
        # `foo**//bar` and `foo**//`: with the `**/` taken as nothing, what is left of the pattern is what is left of
        # the path, a slash and more or nothing at all.
        del tokens[glued : glued + 2], doubled[glued : glued + 2]
        deep_at = False
    if any(doubled):
        raise NeverMatches("no path has two slashes in a row")
    if not tokens or tokens[0] is _SLASH or tokens[-1] is _SLASH:
        raise NeverMatches("no path begins or ends with a slash")
    if deep_at:
        return made(whole=_glued_form(tokens, glued))
    if tokens[-1] is _STARSTAR:
        folder, name = [*tokens, _SLASH], [_STAR]
    else:
        cut = max((number for number, token in enumerate(tokens) if token is _SLASH), default=-1) + 1
        folder, name = tokens[:cut], tokens[cut:]
    if folder == [_STARSTAR, _SLASH]:
        return made(**_name_form(name))
    if all(token.kind in ("byte", "slash") for token in folder):
        return made(folder=_literal(folder), **_name_form(name))
    compiled = _compiled(folder)
    return made(folder=compiled.encode("latin-1"), folder_is_literal=False, **_name_form(name))


def _name_form(tokens: list[_Token]) -> dict[str, object]:
    """How a single name is matched; the first two forms are shortcuts that git takes too."""
    if all(token.kind == "byte" for token in tokens):
        return {"literal": _literal(tokens)}
    if tokens[0] is _STAR and all(token.kind == "byte" for token in tokens[1:]):
        return {"suffix": _literal(tokens[1:])}
    return {"regex": _compiled(tokens)}


def _glued_form(tokens: list[_Token], prefix: int) -> str:
    literal = "".join(_UNSHIELD[_SHIELD + byte] for byte in _literal(tokens[:prefix]))
    return literal + _compiled(tokens[prefix:])


def _literal(tokens: list[_Token]) -> bytes:
    return bytes(0x2F if token is _SLASH else token.byte for token in tokens)


def _compiled(tokens: list[_Token]) -> str:
    """The regex that gitignore-parser makes of the tokens, to be matched in full against latin-1 text.

    The pattern is put below a folder of its own, because the library treats what stands first (and a leading ``**``)
    apart; a pattern that ends in a slash gets a last part for the same reason.
    """
    canonical = "".join(map(_canonical, tokens))
    folders_only = canonical.endswith("/")
    rule = rule_from_pattern(f"/{_ANCHOR}/{canonical}{_ANCHOR if folders_only else ''}")
    regex: str = rule.regex
    head, tail = f"^{_ANCHOR}[/]", f"{_ANCHOR}$" if folders_only else "$"
    return regex.removeprefix(head).removesuffix(tail).replace("(.*[/])?", "(?:.*[/])?").translate(_UNSHIELD)


def _canonical(token: _Token) -> str:
    match token.kind:
        case "byte":
            return _shielded(token.byte)
        case "any":
            return "?"
        case "star":
            return "*"
        case "starstar":
            return "**"
        case "slash":
            return "/"
    members = sorted(token.members)
    ranges: list[tuple[int, int]] = []
    for byte in members:
        if ranges and ranges[-1][1] == byte - 1:
            ranges[-1] = (ranges[-1][0], byte)
        else:
            ranges.append((byte, byte))
    body = "".join(_shielded(low) if low == high else f"{_shielded(low)}-{_shielded(high)}" for low, high in ranges)
    return f"[{body}]"


def _shielded(byte: int) -> str:
    return chr(byte) if byte in _PLAIN else chr(_SHIELD + byte)


def _tokens(pattern: bytes, has_slash: bool, start: int, ignore_case: bool) -> Iterator[_Token]:
    """Cuts a pattern as wildmatch does; ``start`` is where git's literal comparison ends and wildmatch begins."""
    position, end = 0, len(pattern)
    while position < end:
        byte = pattern[position]
        if byte == 0x5C:  # backslash
            position += 1
            if position == end:
                raise NeverMatches("a backslash at its end protects nothing")
            byte = pattern[position]
            if ignore_case and 0x41 <= byte <= 0x5A:
                # wildmatch lowers the path and the pattern, but not a letter that a backslash protects.
                raise NeverMatches("with core.ignorecase an escaped capital matches nothing")
            yield _SLASH if byte == 0x2F else _Token("byte", byte)
            position += 1
        elif byte == 0x2A:  # star
            first = position
            while position < end and pattern[position] == 0x2A:
                position += 1
            following = pattern[position : position + 2]
            deep = (
                has_slash
                and position - first > 1
                and (first == start or pattern[first - 1] == 0x2F)
                and (not following or following[0] == 0x2F or following == b"\\/")
            )
            if not deep:
                yield _STAR
            elif following == b"\\/":
                # Before an escaped slash wildmatch does not try zero folders. What stands literally before a `**` that
                # begins the rest goes on to the first slash, so there it may.
                yield from (_STAR, _SLASH, _STARSTAR)
            else:
                yield _STARSTAR
        elif byte == 0x3F:  # question mark
            yield _ONE
            position += 1
        elif byte == 0x5B:  # bracket
            position, members = bracket(pattern, position, ignore_case)
            if not members:
                raise NeverMatches("its [...] matches no byte")
            yield _Token("set", members=members)
        elif byte == 0x2F:
            yield _SLASH
            position += 1
        else:
            yield _Token("byte", byte | 0x20 if ignore_case and 0x41 <= byte <= 0x5A else byte)
            position += 1
