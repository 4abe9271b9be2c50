"""Ignore files, read as git reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from attrs import field, frozen

from skyrl_modal.gitfiles.character_class import PatternNeverMatches
from skyrl_modal.gitfiles.pattern import Rule, compile_rule


@frozen(eq=False)
class IgnoreFile:
    """The rules of one ignore file, and its lines that match nothing.

    Attributes:
        rules: The rules in their order; the last one that matches decides.
        unmatchable: ``(line number, line, reason)`` of each pattern that matches no path.
    """

    rules: tuple[Rule, ...] = ()
    unmatchable: tuple[tuple[int, bytes, str], ...] = ()
    _by_folder: dict[bytes, tuple[int, ...]] = field(init=False, repr=False)
    _by_regex: tuple[tuple[re.Pattern[bytes], int], ...] = field(init=False, repr=False)

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
        object.__setattr__(self, "_by_folder", folders)
        object.__setattr__(self, "_by_regex", tuple(regexes))

    def active_path_rules(self, folder: bytes) -> tuple[int, ...]:
        """Return the positions of the path rules that match names in a folder.

        Args:
            folder: The folder below the one of the ignore file, ending in a slash, or empty.
        """
        active = self._by_folder.get(folder, ())
        if self._by_regex:
            active += tuple(number for regex, number in self._by_regex if regex.fullmatch(folder))
        return active


@lru_cache(maxsize=512)
def parse_ignore_file(content: bytes, source: str, ignore_case: bool = False) -> IgnoreFile:
    r"""Parse the content of an ignore file.

    Args:
        content: The bytes of the file.
        source: The name of the file, as reports show it.
        ignore_case: Whether ``core.ignorecase`` is set; names must then be lowered before they are matched.

    Example:
        >>> file = parse_ignore_file(b"# built\n*.o\n!/keep.o\n[z\n", ".gitignore")
        >>> [str(rule) for rule in file.rules]
        ['.gitignore:2: *.o', '.gitignore:3: !/keep.o']
        >>> file.unmatchable
        ((4, b'[z', 'a [ without its ]'),)
    """
    rules: list[Rule] = []
    unmatchable: list[tuple[int, bytes, str]] = []
    for lineno, line in _lines(content):
        try:
            rules.append(compile_rule(line, source, lineno, ignore_case))
        except PatternNeverMatches as reason:
            unmatchable.append((lineno, line, str(reason)))
    return IgnoreFile(tuple(rules), tuple(unmatchable))


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that contain a pattern, trimmed as git trims them. Only a newline ends a line."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    for lineno, line in enumerate(content.split(b"\n"), 1):
        if not line or line[:1] == b"#":
            continue
        # git works on C strings, so a NUL ends the pattern.
        pattern = _trimmed(line.removesuffix(b"\r").split(b"\0")[0])
        if pattern:
            yield lineno, pattern


def _trimmed(line: bytes) -> bytes:
    """Return the line without the blanks (not tabs) at its end, except one that a backslash protects."""
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
