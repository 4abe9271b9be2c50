"""Ignore files, read as git reads them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache

from attrs import field, frozen

from skyrl_modal.gitfiles.character_class import PatternNeverMatches
from skyrl_modal.gitfiles.pattern import Rule, compile_rule
from skyrl_modal.gitfiles.regex_index import IndexedRegex, RegexIndex
from skyrl_modal.gitfiles.rule_group import RuleGroup


#: Size of an ignore file. git reads files of any size until version 2.44; since 2.45 it ignores one of more than 100 MiB
#: with a warning (dir.c, PATTERN_MAX_FILE_SIZE). A file above the limit here also causes a warning.
MAX_IGNORE_FILE_BYTES = 16 << 20
#: The number of lines of an ignore file; every line needs memory.
MAX_IGNORE_LINES = 1_000_000
# Rules need about a hundred times the memory of short lines, so only small files are kept after a selection.
_MAX_CACHED_BYTES = 16 << 10


class TooManyLinesError(Exception):
    """An ignore file has more than ``MAX_IGNORE_LINES`` lines."""


@frozen(eq=False)
class IgnoreFile:
    """The rules of one ignore file, and its lines that match nothing.

    Attributes:
        rules: The rules in their order; the last one that matches decides.
        unmatchable: ``(line number, line, reason)`` of each pattern that matches no path.
        groups: The rules for names, then the rules for each pattern of folders. A folder is given by its position.
    """

    rules: tuple[Rule, ...] = ()
    unmatchable: tuple[tuple[int, bytes, str], ...] = ()
    _folder_ids: dict[bytes, int] = field(init=False, repr=False)
    _folder_regexes: RegexIndex = field(init=False, repr=False)
    groups: tuple[RuleGroup, ...] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        names: list[tuple[int, Rule]] = []
        by_folder: dict[tuple[bytes, bool], list[tuple[int, Rule]]] = defaultdict(list)
        prefixes: dict[bytes, bytes] = {}
        for place, rule in enumerate(self.rules):
            if rule.folder is None:
                names.append((place, rule))
                continue
            by_folder[rule.folder, rule.folder_is_literal].append((place, rule))
            if not rule.folder_is_literal:
                prefixes[rule.folder] = rule.folder_prefix
        numbers = {key: number for number, key in enumerate(by_folder, 1)}
        regexes = [
            IndexedRegex(folder.decode("latin-1"), prefixes[folder], b"", number)
            for (folder, is_literal), number in numbers.items()
            if not is_literal
        ]
        literals = {folder: number for (folder, is_literal), number in numbers.items() if is_literal}
        object.__setattr__(self, "_folder_ids", literals)
        object.__setattr__(self, "_folder_regexes", RegexIndex(regexes))
        object.__setattr__(self, "groups", tuple(map(RuleGroup, (names, *by_folder.values()))))

    def find_groups(self, folder: bytes) -> tuple[int, ...]:
        """Return the positions in ``groups`` of the rules that apply to names in a folder, without the first.

        Args:
            folder: The folder below the one of the ignore file, ending in a slash, or empty.
        """
        number = self._folder_ids.get(folder)
        found = () if number is None else (number,)
        return (*found, *self._folder_regexes.find_all(folder)) if self._folder_regexes else found


def parse_ignore_file(content: bytes, source: str, ignore_case: bool = False) -> IgnoreFile:
    r"""Parse the content of an ignore file.

    Args:
        content: The bytes of the file.
        source: The name of the file, as reports show it.
        ignore_case: Whether ``core.ignorecase`` is set; names must then be lowered before they are matched.

    Raises:
        TooManyLinesError: There are more than ``MAX_IGNORE_LINES`` lines.

    Example:
        >>> file = parse_ignore_file(b"# built\n*.o\n!/keep.o\n[z\n", ".gitignore")
        >>> [str(rule) for rule in file.rules]
        ['.gitignore:2: *.o', '.gitignore:3: !/keep.o']
        >>> file.unmatchable
        ((4, b'[z', 'a [ without its ]'),)
    """
    if len(content) <= _MAX_CACHED_BYTES:
        return _parse_cached(content, source, ignore_case)
    return _parse(content, source, ignore_case)


def _parse(content: bytes, source: str, ignore_case: bool) -> IgnoreFile:
    if content.count(b"\n") > MAX_IGNORE_LINES:
        raise TooManyLinesError(f"more than {MAX_IGNORE_LINES:,} lines")
    rules: list[Rule] = []
    unmatchable: list[tuple[int, bytes, str]] = []
    for lineno, line in _lines(content):
        try:
            rules.append(compile_rule(line, source, lineno, ignore_case))
        except PatternNeverMatches as reason:
            unmatchable.append((lineno, line, str(reason)))
    return IgnoreFile(tuple(rules), tuple(unmatchable))


_parse_cached = lru_cache(maxsize=256)(_parse)


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
