"""Ignore files, read as git reads them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from types import MappingProxyType

from skyrl_modal.gitfiles.character_class import PatternNeverMatches
from skyrl_modal.gitfiles.pattern import Rule, compile_rule, is_plain_name
from skyrl_modal.gitfiles.pattern_regex import PatternRegex
from skyrl_modal.gitfiles.regex_index import IndexedRegex, RegexIndex
from skyrl_modal.gitfiles.rule_group import RuleGroup

#: Size of an ignore file. git reads files of any size until version 2.44; since 2.45 it ignores one of more than
#: 100 MiB with a warning (dir.c, PATTERN_MAX_FILE_SIZE). A file above the limit here also causes a warning.
MAX_IGNORE_FILE_BYTES = 16 << 20
#: The number of lines of an ignore file; every line needs memory.
MAX_IGNORE_LINES = 1_000_000
# Rules need about a hundred times the memory of short lines, so only small files are kept after a selection.
_MAX_CACHED_BYTES = 16 << 10


class TooManyLinesError(Exception):
    """An ignore file has more than ``MAX_IGNORE_LINES`` lines."""


class IgnoreFile:
    """The rules of one ignore file, and its lines that match nothing. The last rule that matches decides.

    Args:
        source: The name of the file, as reports show it.
        names: The lines that are a literal name, each with its last line number. Long files consist of such lines, so
            a rule is created only for one that matches.
        rules: The rules of all other lines.
        unmatchable: ``(line number, line, reason)`` of each pattern that matches no path.

    Attributes:
        unmatchable: As given.
        groups: The rules for names, then the rules for each pattern of folders.
    """

    def __init__(
        self,
        source: str = "",
        names: Mapping[bytes, int] = MappingProxyType({}),
        rules: Sequence[Rule] = (),
        unmatchable: Sequence[tuple[int, bytes, str]] = (),
    ) -> None:
        self._source, self._names = source, names
        self._rules = {rule.lineno: rule for rule in rules}
        self.unmatchable = tuple(unmatchable)
        for_names: list[Rule] = []
        by_folder: dict[bytes | str, list[Rule]] = defaultdict(list)
        for rule in rules:
            folder = rule.folder_pattern if rule.folder is None else rule.folder
            (for_names if folder is None else by_folder[folder]).append(rule)
        self.groups = (RuleGroup(for_names, names), *map(RuleGroup, by_folder.values()))
        self._folder_numbers: dict[bytes, int] = {}
        regexes = []
        for number, (folder, group) in enumerate(by_folder.items(), 1):
            if isinstance(folder, bytes):
                self._folder_numbers[folder] = number
            else:
                regexes.append(IndexedRegex(PatternRegex(folder), group[0].folder_prefix, b"", number))
        self._folder_regexes = RegexIndex(regexes) if regexes else None

    def __bool__(self) -> bool:
        return bool(self._rules or self._names)

    @property
    def has_path_rules(self) -> bool:
        """Whether rules depend on the folder of a name."""
        return len(self.groups) > 1

    def rule_at(self, lineno: int) -> Rule:
        """Return the rule of a line."""
        rule = self._rules.get(lineno)
        if rule is None:
            name = self._names_by_line[lineno]
            rule = self._rules[lineno] = Rule(name, self._source, lineno, False, False, literal=name)
        return rule

    @cached_property
    def _names_by_line(self) -> dict[int, bytes]:
        return {lineno: name for name, lineno in self._names.items()}

    def find_groups(self, folder: bytes) -> tuple[int, ...]:
        """Return the positions in ``groups`` of the path rules that apply to names in a folder.

        Args:
            folder: The folder below the one of the ignore file, ending in a slash, or empty.
        """
        number = self._folder_numbers.get(folder)
        found = () if number is None else (number,)
        return found if self._folder_regexes is None else (*found, *self._folder_regexes.find_all(folder))


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
        >>> str(file.rule_at(3))
        '.gitignore:3: !/keep.o'
        >>> file.unmatchable
        ((4, b'[z', 'a [ without its ]'),)
    """
    if len(content) <= _MAX_CACHED_BYTES:
        return _parse_cached(content, source, ignore_case)
    return _parse(content, source, ignore_case)


def _parse(content: bytes, source: str, ignore_case: bool) -> IgnoreFile:
    if content.count(b"\n") > MAX_IGNORE_LINES:
        raise TooManyLinesError(f"more than {MAX_IGNORE_LINES:,} lines")
    names: dict[bytes, int] = {}
    rules: list[Rule] = []
    unmatchable: list[tuple[int, bytes, str]] = []
    # Only a newline ends a line.
    for lineno, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if is_plain_name(line) and not ignore_case:
            names[line] = lineno
        elif pattern := _pattern_of_line(line):
            try:
                rules.append(compile_rule(pattern, source, lineno, ignore_case))
            except PatternNeverMatches as reason:
                unmatchable.append((lineno, pattern, str(reason)))
    return IgnoreFile(source, names, rules, unmatchable)


_parse_cached = lru_cache(maxsize=256)(_parse)


def _pattern_of_line(line: bytes) -> bytes:
    """Return the pattern of a line, trimmed as git trims it; empty if it has none."""
    if line[:1] == b"#":
        return b""
    # git works on C strings, so a NUL ends the pattern.
    return _trimmed(line.removesuffix(b"\r").split(b"\0", 1)[0])


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
